"""Large files: what to upload and where, the uploads, and the downloads."""

import hashlib
import re
from typing import Any

from .protocol import Answer, Call, HubError, route
from .reading import part_of
from .repositories import Repository


@route("POST", "/{repo}.git/info/lfs/objects/batch")
def batch(call: Call) -> Answer:
    """Where to upload each object; one that is stored already needs no action."""
    repository = call.writable(as_pull_request="ref" not in call.json())
    objects = [upload_of(call, repository, wanted["oid"], wanted["size"]) for wanted in call.json()["objects"]]
    return Answer({"transfer": "basic", "objects": objects})


def upload_of(call: Call, repository: Repository, oid: str, size: int) -> dict[str, Any]:
    known = {"oid": oid, "size": size, "authenticated": True}
    if oid in repository.large_files:
        return known
    place = f"{call.hub.storage}/stored/{repository.name}/{oid}"
    upload: dict[str, Any] = {"href": place}
    part_size = call.hub.part_size
    if part_size and size > part_size:
        parts = range(1, -(-size // part_size) + 1)
        upload["href"] = f"{call.hub.endpoint}/api/complete_multipart/{repository.name}/{oid}"
        upload["header"] = {"chunk_size": str(part_size), **{str(part): f"{place}/{part}" for part in parts}}
    verify = {"href": f"{call.hub.endpoint}/{repository.name}.git/info/lfs/objects/verify"}
    return {**known, "actions": {"upload": upload, "verify": verify}}


@route("PUT", "/stored/{repo}/{oid}")
def upload(call: Call) -> Answer:
    check_signed(call)
    store(call, call.body)
    return Answer(headers={"ETag": f'"{hashlib.md5(call.body).hexdigest()}"'})


@route("PUT", "/stored/{repo}/{oid}/{part}")
def upload_part(call: Call) -> Answer:
    check_signed(call)
    etag = f'"{hashlib.md5(call.body).hexdigest()}"'
    call.hub.parts[call.parts["oid"], int(call.parts["part"])] = etag, call.body
    return Answer(headers={"ETag": etag})


@route("POST", "/api/complete_multipart/{repo}/{oid}")
def complete(call: Call) -> Answer:
    """Join the parts, which the client names by the ETags that it got."""
    oid = call.parts["oid"]
    parts = [(call.hub.parts[oid, part["partNumber"]], part["etag"]) for part in call.json()["parts"]]
    if any(etag != named for (etag, _), named in parts):
        raise HubError(400, "One or more of the specified parts could not be found")
    store(call, b"".join(content for (_, content), _ in parts))
    return Answer({})


def check_signed(call: Call) -> None:
    """The storage knows no tokens: its addresses are signed, and it refuses who shows it one besides."""
    if "Authorization" in call.headers:
        raise HubError(400, "Only one auth mechanism allowed")


def store(call: Call, content: bytes) -> None:
    """Keep an object under its hash."""
    oid = call.parts["oid"]
    if hashlib.sha256(content).hexdigest() != oid:
        raise HubError(400, "The provided 'x-amz-content-sha256' header does not match what was computed")
    call.hub.repositories[call.parts["repo"]].large_files[oid] = content


@route("POST", "/{repo}.git/info/lfs/objects/verify")
def verify(call: Call) -> Answer:
    stored = call.readable().large_files.get(call.json()["oid"])
    if stored is None or len(stored) != call.json()["size"]:
        raise HubError(404, "Object was not uploaded")
    return Answer({})


@route("GET", "/stored/{repo}/{oid}")
def download(call: Call) -> Answer:
    check_signed(call)
    content = call.hub.repositories[call.parts["repo"]].large_files[call.parts["oid"]]
    name = re.search(r'filename="(.+)"', call.query.get("response-content-disposition", ""))
    headers = {"Content-Disposition": name[0]} if name else {}
    return part_of(content, call, {"ETag": f'"{call.parts["oid"]}"', "Accept-Ranges": "bytes", **headers})
