"""Users, creating and deleting repositories, and the check of model cards."""

from typing import Any

from .cards import check_card
from .protocol import Answer, Call, HubError, route
from .repositories import Repository


@route("GET", "/api/whoami-v2")
def whoami(call: Call) -> Answer:
    token = call.known_token()
    role = "write" if token.write else "read"
    organizations = [
        {"type": "org", "name": name, "roleInOrg": "write"}
        for name, members in call.hub.organizations.items()
        if token.user in members
    ]
    access = {"type": "access_token", "accessToken": {"displayName": "test", "role": role}}
    return Answer({"type": "user", "name": token.user, "fullname": token.user, "orgs": organizations, "auth": access})


def named_repository(call: Call, body: dict[str, Any], act: str) -> str:
    """The full name of the repository that a request is about, refused unless its namespace is the client's."""
    token = call.known_token()
    namespace = body.get("organization") or token.user
    if body.get("type", "model") != "model":
        raise NotImplementedError("the fake Hub has models only")
    if not (token.write and call.hub.reaches(token, namespace)):
        raise HubError(403, f'You don\'t have the rights to {act} a model under the namespace "{namespace}"')
    return f"{namespace}/{body['name']}"


@route("POST", "/api/repos/create")
def create_repository(call: Call) -> Answer:
    body = call.json()
    name = named_repository(call, body, "create")
    url = f"{call.hub.endpoint}/{name}"
    if name in call.hub.repositories:
        raise HubError(409, "You already created this model repo", url=url)
    private = body.get("visibility") == "private" or bool(body.get("private"))
    call.hub.repositories[name] = Repository.new(name, call.known_token().user, private)
    return Answer({"url": url, "name": name})


@route("DELETE", "/api/repos/delete")
def delete_repository(call: Call) -> Answer:
    name = named_repository(call, call.json(), "delete")
    if call.hub.repositories.pop(name, None) is None:
        raise HubError(404, "Repository not found", "RepoNotFound")
    return Answer()


@route("PUT", "/api/models/{repo}/settings")
def change_settings(call: Call) -> Answer:
    repository = call.writable()
    body = call.json()
    repository.private = body.get("private", body.get("visibility", "public") == "private")
    return Answer({"private": repository.private})


@route("POST", "/api/validate-yaml")
def validate_card(call: Call) -> Answer:
    check = check_card(call.json()["content"])
    found = {name: [{"message": message} for message in messages] for name, messages in check.items()}
    return Answer(found, 400 if check["errors"] else 200)
