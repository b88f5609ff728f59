"""What clients read: facts of a repository, its files, branches and commits."""

from typing import Any
from urllib.parse import parse_qs, quote

from .cards import metadata_of
from .protocol import Answer, Call, HubError, route
from .repositories import Blob, Commit, Repository


def large_file(blob: Blob) -> dict[str, Any]:
    return {"oid": blob.sha256, "sha256": blob.sha256, "size": len(blob.content), "pointerSize": len(blob.pointer)}


def file_entry(path: str, blob: Blob) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "oid": blob.oid, "size": len(blob.content)}
    return {**entry, "lfs": large_file(blob)} if blob.is_lfs else entry


def sibling(path: str, blob: Blob, with_blobs: bool) -> dict[str, Any]:
    if not with_blobs:
        return {"rfilename": path}
    facts = {"rfilename": path, "size": len(blob.content), "blobId": blob.oid}
    return {**facts, "lfs": large_file(blob)} if blob.is_lfs else facts


def card_facts(commit: Commit) -> dict[str, Any]:
    """What the Hub shows of a model card's metadata."""
    card = commit.files.get("README.md")
    metadata = metadata_of(card.content.decode()) if card else None
    if not isinstance(metadata, dict):
        return {"tags": []}
    named = {name: metadata[name] for name in ("pipeline_tag", "library_name") if name in metadata}
    licenses = [f"license:{metadata['license']}"] if "license" in metadata else []
    return {**named, "cardData": metadata, "tags": [*metadata.get("tags", []), *licenses]}


@route("GET", "/api/models/{repo}")
@route("GET", "/api/models/{repo}/revision/{revision}")
def model_info(call: Call) -> Answer:
    repository = call.readable()
    commit = repository.find(call.parts.get("revision", "main"))
    with_blobs = call.query.get("blobs", "false").lower() == "true"
    facts = {
        "id": repository.name,
        "modelId": repository.name,
        "author": repository.namespace,
        "sha": commit.oid,
        "lastModified": commit.date,
        "createdAt": list(commit.history())[-1].date,
        "private": repository.private,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "siblings": [sibling(path, blob, with_blobs) for path, blob in sorted(commit.files.items())],
    }
    return Answer({**facts, **card_facts(commit)})


def folders_of(path: str) -> list[str]:
    parts = path.split("/")[:-1]
    return ["/".join(parts[: end + 1]) for end in range(len(parts))]


@route("GET", "/api/models/{repo}/tree/{revision}")
@route("GET", "/api/models/{repo}/tree/{revision}/{path}")
def tree(call: Call) -> Answer:
    """The files and folders of a folder, with those below where `recursive` is asked for."""
    commit = call.readable().find(call.parts["revision"])
    prefix = f"{call.parts['path']}/" if "path" in call.parts else ""
    inside = {path: blob for path, blob in sorted(commit.files.items()) if path.startswith(prefix)}
    if prefix and not inside:
        raise HubError(404, f'{call.parts["path"]} does not exist on "{call.parts["revision"]}"', "EntryNotFound")
    folders = sorted({folder for path in inside for folder in folders_of(path) if folder.startswith(prefix)})
    entries: list[dict[str, Any]] = [
        {"type": "directory", "path": folder, "oid": commit.oid, "size": 0} for folder in folders
    ]
    entries += [file_entry(path, blob) for path, blob in inside.items()]
    if call.query.get("recursive", "false").lower() != "true":
        entries = [entry for entry in entries if "/" not in entry["path"].removeprefix(prefix)]
    return Answer(entries)


@route("POST", "/api/models/{repo}/paths-info/{revision}")
def paths_info(call: Call) -> Answer:
    files = call.readable().find(call.parts["revision"]).files
    is_json = "json" in call.headers.get("Content-Type", "")
    paths = call.json()["paths"] if is_json else parse_qs(call.body.decode()).get("paths", [])
    return Answer([file_entry(path, files[path]) for path in paths if path in files])


@route("GET", "/api/models/{repo}/refs")
def references(call: Call) -> Answer:
    repository = call.readable()

    def of_kind(prefix: str) -> list[dict[str, str]]:
        found = ((ref, head) for ref, head in repository.refs.items() if ref.startswith(prefix))
        return [{"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": head.oid} for ref, head in found]

    refs: dict[str, Any] = {"branches": of_kind("refs/heads/"), "tags": of_kind("refs/tags/"), "converts": []}
    return Answer({**refs, "pullRequests": of_kind("refs/pr/")} if "include_prs" in call.query else refs)


@route("GET", "/api/models/{repo}/commits/{revision}")
def commits(call: Call) -> Answer:
    history = call.readable().find(call.parts["revision"]).history()
    return Answer([commit_entry(commit) for commit in history])


def commit_entry(commit: Commit) -> dict[str, Any]:
    authors = [{"user": commit.author}]
    facts = {"title": commit.title, "message": commit.description, "date": commit.date}
    return {"id": commit.oid, "authors": authors, **facts}


@route("GET", "/{repo}/resolve/{revision}/{path}")
def resolve(call: Call) -> Answer:
    """A file of git itself, or the way to a large one, which another host has."""
    repository = call.readable()
    commit = repository.find(call.parts["revision"])
    path = call.parts["path"]
    headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
    if path not in commit.files:
        raise HubError(404, "Entry not found", "EntryNotFound", headers=headers)
    blob = commit.files[path]
    headers["ETag"] = f'"{blob.etag}"'
    if not blob.is_lfs:
        return part_of(blob.content, call, headers)
    linked = {"X-Linked-Size": str(len(blob.content)), "X-Linked-Etag": f'"{blob.sha256}"'}
    location = {"Location": stored_at(call, repository, blob.sha256, path)}
    return Answer(b"Found. Redirecting", 302, {**headers, **linked, **location})


def stored_at(call: Call, repository: Repository, oid: str, path: str) -> str:
    """The signed address of a large file; like the Hub's, it says what file it is."""
    name = quote(f'inline; filename="{path.split("/")[-1]}"')
    return f"{call.hub.storage}/stored/{repository.name}/{oid}?response-content-disposition={name}"


def part_of(content: bytes, call: Call, headers: dict[str, str]) -> Answer:
    """The content, or the range of it that the request wants."""
    wanted = call.headers.get("Range")
    if wanted is None:
        return Answer(content, headers=headers)
    first, _, last = wanted.removeprefix("bytes=").partition("-")
    start, end = int(first), min(int(last or len(content)), len(content) - 1)
    span = {"Content-Range": f"bytes {start}-{end}/{len(content)}"}
    return Answer(content[start : end + 1], 206, {**headers, **span})
