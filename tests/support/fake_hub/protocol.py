"""Requests, answers and the table of routes: what the handlers of the fake Hub share."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

if TYPE_CHECKING:
    from .hub import FakeHub, Token
    from .repositories import Repository

NO_CREDENTIALS = "Invalid username or password."
BAD_TOKEN = "Invalid credentials in Authorization header"
READ_ONLY = "Forbidden: you must use a write token to upload to a repository."
STALE = "A commit has happened since. Please refresh and try again."


class HubError(Exception):
    """An answer other than success, told the way the Hub tells it: in the body and in headers."""

    def __init__(
        self, status: int, message: str, code: str | None = None, headers: Mapping[str, str] | None = None, **body: Any
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": message, **body}
        line = " ".join(message.encode("ascii", "backslashreplace").decode().split())
        coded = {"X-Error-Code": code} if code else {}
        self.headers = {"X-Error-Message": line, **coded, **(headers or {})}

    def answer(self) -> "Answer":
        return Answer(self.body, self.status, self.headers)


@dataclass
class Answer:
    """`body` is sent as JSON unless it is bytes."""

    body: Any = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)

    def content(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()

    def all_headers(self) -> dict[str, str]:
        kind = "application/octet-stream" if isinstance(self.body, bytes) else "application/json; charset=utf-8"
        return {"Content-Type": kind, "Content-Length": str(len(self.content())), **self.headers}


@dataclass(frozen=True)
class Request:
    """What a client asked, and the status that it got; 0 where the connection was cut."""

    method: str
    path: str
    """With the query, unquoted."""
    status: int
    kind: str
    """The route, such as "POST /api/models/{repo}/commit/{revision}"."""

    def matches(self, method: str, pattern: str) -> bool:
        return method == self.method and re.search(pattern, self.path) is not None


@dataclass
class Call:
    """A request on its way to its handler."""

    hub: "FakeHub"
    method: str
    url: str
    headers: Message
    body: bytes = b""
    parts: dict[str, str] = field(default_factory=dict)

    @property
    def query(self) -> dict[str, str]:
        return {name: values[-1] for name, values in parse_qs(urlsplit(self.url).query).items()}

    def json(self) -> Any:
        return json.loads(self.body or b"{}")

    def token(self) -> "Token | None":
        """Whose request this is; an unknown token is refused everywhere, even for public repositories."""
        header = self.headers.get("Authorization")
        if header is None:
            return None
        secret = header.removeprefix("Bearer ")
        if secret not in self.hub.tokens:
            raise HubError(401, BAD_TOKEN)
        return self.hub.tokens[secret]

    def known_token(self) -> "Token":
        token = self.token()
        if token is None:
            raise HubError(401, NO_CREDENTIALS)
        return token

    def readable(self) -> "Repository":
        """The repository of the request; one that is private is as good as absent for those outside."""
        token = self.token()
        repository = self.hub.repositories.get(self.parts["repo"])
        if repository is None or not self.hub.shows(repository, token):
            status, message = (401, NO_CREDENTIALS) if token is None else (404, "Repository not found")
            raise HubError(status, message, "RepoNotFound")
        return repository

    def writable(self, as_pull_request: bool = False) -> "Repository":
        """The repository of a request that changes it. Anybody who can read one may open a pull request."""
        repository = self.readable()
        token = self.known_token()
        if not token.write:
            raise HubError(403, READ_ONLY)
        if not (as_pull_request or self.hub.reaches(token, repository.namespace)):
            raise HubError(403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")
        return repository


Handler = Callable[[Call], Answer]

PATTERNS = {"repo": r"[^/]+/[^/]+", "path": r".+"}


@dataclass(frozen=True)
class Route:
    method: str
    template: str
    handler: Handler

    @cached_property
    def pattern(self) -> str:
        def part(name: re.Match[str]) -> str:
            return f"(?P<{name[1]}>{PATTERNS.get(name[1], '[^/]+')})"

        return re.sub(r"\\{(\w+)\\}", part, re.escape(self.template))

    def match(self, method: str, path: str) -> dict[str, str] | None:
        """The named parts of a path that is still quoted, so that "refs%2Fpr%2F1" is one part."""
        found = re.fullmatch(self.pattern, path) if self.method == ("GET" if method == "HEAD" else method) else None
        return found and {name: unquote(value) for name, value in found.groupdict().items()}


ROUTES: list[Route] = []


def route(method: str, template: str) -> Callable[[Handler], Handler]:
    """Register the handler of a kind of request."""

    def register(handler: Handler) -> Handler:
        ROUTES.append(Route(method, template, handler))
        return handler

    return register
