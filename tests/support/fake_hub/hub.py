"""The fake Hub that a test holds: its contents, its tokens, its faults, and what was asked of it."""

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import RLock

from .faults import Fault
from .protocol import Request
from .repositories import Commit, Repository
from .server import Listener


@dataclass(frozen=True)
class Token:
    """Whose access token it is, and whether it is more than read-only."""

    user: str
    write: bool


class FakeHub:
    """Speaks the API of the Hugging Face Hub on two local ports: one is the Hub, one its storage of large files.

    Everything that arrives is kept in memory. `home` is where clients keep their caches.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.user = "me"
        """Whom tokens belong to, unless they are made for somebody else."""
        self.organizations: dict[str, set[str]] = {}
        """Their members, who may write there."""
        self.part_size: int | None = None
        """Large files of more bytes than this are uploaded in parts."""
        self.repositories: dict[str, Repository] = {}
        self.parts: dict[tuple[str, int], tuple[str, bytes]] = {}
        """ETag and content of the uploaded parts of large files, by hash and number."""
        self.tokens: dict[str, Token] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.waits: list[float] = []
        """Seconds that the client in this process would have slept, were its waits not skipped."""
        self.errors: list[str] = []
        """Tracebacks of requests that the fake does not understand."""
        self.lock = RLock()
        # Two hosts, as in life: clients before 2.2 show their token to every port of the Hub's host.
        self.listeners = (Listener(self, "127.0.0.1"), Listener(self, "localhost"))
        self.endpoint, self.storage = (listener.url for listener in self.listeners)

    def start(self) -> None:
        for listener in self.listeners:
            listener.start()

    def stop(self) -> None:
        for listener in self.listeners:
            listener.stop()

    def token(self, write: bool = True, user: str | None = None) -> str:
        """An access token; the same one whenever it is asked for."""
        wanted = Token(user or self.user, write)
        for secret, token in self.tokens.items():
            if token == wanted:
                return secret
        secret = f"hf_{secrets.token_hex(17)}"
        self.tokens[secret] = wanted
        return secret

    def reaches(self, token: Token, namespace: str) -> bool:
        """Whether the repositories of a namespace are the token's owner's."""
        return namespace == token.user or token.user in self.organizations.get(namespace, ())

    def shows(self, repository: Repository, token: Token | None) -> bool:
        """Whether a repository exists for whom a token belongs to, or for somebody without one."""
        return not repository.private or (token is not None and self.reaches(token, repository.namespace))

    def environment(self, token: str | None = None) -> dict[str, str]:
        """Variables with which the client of another process talks to this Hub."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(self.home),
            "HF_TOKEN": token or self.token(),
            "HF_HUB_OFFLINE": "0",
            "TRANSFORMERS_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }

    def add_repo(self, name: str, files: Mapping[str, bytes] | None = None, private: bool = False) -> Repository:
        """A repository that somebody made before, with one more commit if it has files."""
        repository = Repository.new(name, name.split("/")[0], private)
        self.repositories[name] = repository
        if files:
            self._change(repository, files, "Add files", "main")
        return repository

    def put(
        self, name: str, path: str, content: bytes, revision: str = "main", title: str = "Edit on the web site"
    ) -> Commit:
        """A person's edit on the web site."""
        return self._change(self.repositories[name], {path: content}, title, revision)

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """Contents by path, without the `.gitattributes` that every repository is born with."""
        files = self.repositories[name].find(revision).files
        return {path: blob.content for path, blob in sorted(files.items()) if path != ".gitattributes"}

    def commits(self, name: str, revision: str = "main") -> list[Commit]:
        """Newest first; the last one is the Hub's own "initial commit"."""
        return list(self.repositories[name].find(revision).history())

    def seen(self, method: str, pattern: str) -> list[Request]:
        """The requests whose path (with its query) has a match of a regular expression."""
        return [request for request in self.requests if request.matches(method, pattern)]

    def kinds(self) -> list[str]:
        """The distinct kinds of request, with the statuses that they got."""
        return sorted({f"{request.kind} -> {request.status or 'cut'}" for request in self.requests})

    def fail(
        self,
        method: str,
        pattern: str,
        status: int,
        headers: Mapping[str, str] | None = None,
        times: int = 1,
        message: str | None = None,
        applied: bool = False,
    ) -> None:
        """Answer the next `times` requests that match by an error; `applied` ones are carried out all the same.

        A gateway's errors (502 to 504) come as HTML, unless there is a message.
        """
        self.faults.append(Fault(method, re.compile(pattern), times, status, headers or {}, message, applied=applied))

    def cut(self, method: str, pattern: str, after_bytes: int = 0, times: int = 1, applied: bool = False) -> None:
        """Close the connection of the next `times` requests that match, `after_bytes` into the content that is sent.

        The content is the answer's of a GET and the client's of others. `applied` ones are read and carried out, and
        closed in place of an answer.
        """
        self.faults.append(Fault(method, re.compile(pattern), times, None, after_bytes=after_bytes, applied=applied))

    def take_fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times and fault.method == method and fault.pattern.search(path):
                    fault.times -= 1
                    return fault
        return None

    def _change(self, repository: Repository, files: Mapping[str, bytes], title: str, revision: str) -> Commit:
        with self.lock:
            ref = repository.ref(revision)
            assert ref is not None, f"no branch {revision}"
            blobs = {path: repository.blob(revision, path, content) for path, content in files.items()}
            merged = {**repository.refs[ref].files, **blobs}
            return repository.commit(ref, merged, title, "", repository.namespace)
