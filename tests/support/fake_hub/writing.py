"""What clients write: uploads of small files, commits, branches, tags and pull requests."""

import base64
import json
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from typing import Any

from .cards import check_card
from .protocol import STALE, Answer, Call, HubError, route
from .repositories import Blob, Commit, Repository


@route("POST", "/api/models/{repo}/preupload/{revision}")
def preupload(call: Call) -> Answer:
    """Which files go to large file storage, which are ignored, and which of them the branch has already."""
    repository = call.writable(as_pull_request="create_pr" in call.query)
    revision = call.parts["revision"]
    files = repository.find(revision).files
    ignored = call.json().get("gitIgnore") or files.get(".gitignore", Blob(b"")).content.decode()
    answers = []
    for file in call.json()["files"]:
        path = file["path"]
        is_large = repository.is_large(revision, path, file["size"], base64.b64decode(file["sample"]))
        answer = {"path": path, "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": ignores(ignored, path)}
        answers.append({**answer, "oid": files[path].etag} if path in files else answer)
    return Answer({"files": answers})


def ignores(gitignore: str, path: str) -> bool:
    """Whether a `.gitignore` of plain patterns names a path or a folder that it lies in."""
    patterns = [line.strip().strip("/") for line in gitignore.splitlines() if line.strip() and line[0] != "#"]
    parts = path.split("/")
    names = [*parts, *("/".join(parts[:end]) for end in range(1, len(parts) + 1))]
    return any(fnmatch(name, pattern) for name in names for pattern in patterns)


@route("POST", "/api/models/{repo}/commit/{revision}")
def commit(call: Call) -> Answer:
    """A commit to a branch, or one on top of it that opens a pull request."""
    as_pull_request = "create_pr" in call.query
    repository = call.writable(as_pull_request)
    lines = [json.loads(line) for line in call.body.splitlines()]
    header, changes = lines[0]["value"], lines[1:]
    if as_pull_request:
        ref, base = next_pull_request(repository), repository.find(header.get("parentCommit", call.parts["revision"]))
    else:
        ref, base = branch_head(repository, call.parts["revision"], header.get("parentCommit"))
    files = changed(repository, base.files, changes)
    repository.refs[ref] = base
    author = call.known_token().user
    made = repository.commit(ref, files, header["summary"], header.get("description", ""), author)
    url = f"{call.hub.endpoint}/{repository.name}"
    answer = {"success": True, "commitOid": made.oid, "commitUrl": f"{url}/commit/{made.oid}", "hookOutput": ""}
    number = ref.removeprefix("refs/pr/")
    return Answer({**answer, "pullRequestUrl": f"{url}/discussions/{number}"} if as_pull_request else answer)


def next_pull_request(repository: Repository) -> str:
    return f"refs/pr/{1 + sum(ref.startswith('refs/pr/') for ref in repository.refs)}"


def branch_head(repository: Repository, revision: str, expected: str | None) -> tuple[str, Commit]:
    """The full name and head of a branch or pull request; the head is the expected commit, if one is."""
    ref = repository.ref(revision)
    if ref is None:
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    head = repository.refs[ref]
    if expected and not head.oid.startswith(expected):
        raise HubError(412, STALE)
    return ref, head


def changed(repository: Repository, files: Mapping[str, Blob], changes: Iterable[dict[str, Any]]) -> dict[str, Blob]:
    """The files after the operations of a commit."""
    files = dict(files)
    for change in changes:
        value, path = change["value"], change["value"]["path"]
        match change["key"]:
            case "file":
                files[path] = small_file(path, base64.b64decode(value["content"]))
            case "lfsFile":
                files[path] = large_file(repository, path, value["oid"])
            case "deletedFile":
                if files.pop(path, None) is None:
                    raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
            case "deletedFolder":
                files = {name: blob for name, blob in files.items() if not name.startswith(f"{path.rstrip('/')}/")}
            case key:
                raise NotImplementedError(f"the fake Hub does not know the operation {key}")
    return files


def small_file(path: str, content: bytes) -> Blob:
    if path == "README.md" and (errors := check_card(content.decode())["errors"]):
        raise HubError(400, f"Invalid metadata in README.md: {'; '.join(errors)}")
    return Blob(content)


def large_file(repository: Repository, path: str, oid: str) -> Blob:
    if oid not in repository.large_files:
        message = "Your push was rejected because an LFS pointer pointed to a file that does not exist"
        raise HubError(400, f"{message}. Offending file: {path}")
    return Blob(repository.large_files[oid], is_lfs=True)


@route("POST", "/api/models/{repo}/branch/{branch}")
def create_branch(call: Call) -> Answer:
    return create_reference(call, f"refs/heads/{call.parts['branch']}", call.json().get("startingPoint", "main"))


@route("POST", "/api/models/{repo}/tag/{revision}")
def create_tag(call: Call) -> Answer:
    return create_reference(call, f"refs/tags/{call.json()['tag']}", call.parts["revision"])


def create_reference(call: Call, ref: str, start: str) -> Answer:
    repository = call.writable()
    if ref in repository.refs:
        raise HubError(409, f"Reference already exists: {ref}")
    repository.refs[ref] = repository.find(start)
    return Answer()


@route("DELETE", "/api/models/{repo}/branch/{name}")
@route("DELETE", "/api/models/{repo}/tag/{name}")
def delete_reference(call: Call) -> Answer:
    repository = call.writable()
    kind = "heads" if "/branch/" in call.url else "tags"
    ref = f"refs/{kind}/{call.parts['name']}"
    if ref == "refs/heads/main":
        raise HubError(403, "Cannot delete the default branch")
    if repository.refs.pop(ref, None) is None:
        raise HubError(404, f"Invalid rev id: {call.parts['name']}", "RevisionNotFound")
    return Answer()
