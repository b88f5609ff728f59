"""What the fake Hub stores: files, commits that name them, and repositories of branches."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatch
from functools import cached_property

from .protocol import HubError

INLINE_LIMIT = 10_000_000
LFS_SUFFIXES = (
    *("7z", "arrow", "bin", "bz2", "ckpt", "ftz", "gz", "h5", "joblib", "lfs.*", "mlmodel", "model", "msgpack", "npy"),
    *("npz", "onnx", "ot", "parquet", "pb", "pickle", "pkl", "pt", "pth", "rar", "safetensors", "tar.*", "tar"),
    *("tflite", "tgz", "wasm", "xz", "zip", "zst"),
)
GITATTRIBUTES = "".join(f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()


@dataclass(frozen=True)
class Blob:
    """One version of a file, in git or in large file storage."""

    content: bytes
    is_lfs: bool = False

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        """What git holds in place of a large file."""
        lines = ("version https://git-lfs.github.com/spec/v1", f"oid sha256:{self.sha256}", f"size {len(self.content)}")
        return "".join(f"{line}\n" for line in lines).encode()

    @cached_property
    def oid(self) -> str:
        """The git hash of the file, or of its pointer."""
        stored = self.pointer if self.is_lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest()

    @property
    def etag(self) -> str:
        """The hash by which clients know a file that they have."""
        return self.sha256 if self.is_lfs else self.oid


@dataclass(frozen=True)
class Commit:
    """All files of a repository after one change."""

    title: str
    description: str
    author: str
    files: Mapping[str, Blob]
    parent: "Commit | None" = None
    date: str = field(default_factory=lambda: f"{datetime.now(UTC).isoformat(timespec='milliseconds')[:-6]}Z")

    @cached_property
    def oid(self) -> str:
        facts = (self.title, self.description, self.author, self.date, self.parent and self.parent.oid)
        names = sorted((path, blob.oid) for path, blob in self.files.items())
        return hashlib.sha1(repr((facts, names)).encode()).hexdigest()

    def history(self) -> "Iterator[Commit]":
        """This commit and those before it, newest first."""
        commit: Commit | None = self
        while commit is not None:
            yield commit
            commit = commit.parent

    def changed(self) -> list[str]:
        """The paths that this commit adds, changes or deletes."""
        before = self.parent.files if self.parent else {}
        return sorted(path for path in {*before, *self.files} if before.get(path) != self.files.get(path))


@dataclass
class Repository:
    """A model repository; `refs` are full names like "refs/heads/main" and "refs/pr/1"."""

    name: str
    private: bool
    refs: dict[str, Commit]
    large_files: dict[str, bytes] = field(default_factory=dict)
    """Uploaded contents by their SHA-256, whether or not a commit names them."""

    @classmethod
    def new(cls, name: str, owner: str, private: bool = False) -> "Repository":
        first = Commit("initial commit", "", owner, {".gitattributes": Blob(GITATTRIBUTES)})
        return cls(name, private, {"refs/heads/main": first})

    @property
    def namespace(self) -> str:
        return self.name.split("/")[0]

    def ref(self, revision: str) -> str | None:
        """The full name of a branch, tag or pull request."""
        names = (f"refs/heads/{revision}", f"refs/tags/{revision}", revision)
        return next((name for name in names if name in self.refs), None)

    def find(self, revision: str) -> Commit:
        """The commit that a branch, tag, pull request or hash stands for."""
        if name := self.ref(revision):
            return self.refs[name]
        known = {commit.oid: commit for head in self.refs.values() for commit in head.history()}
        if revision not in known:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return known[revision]

    def commit(self, ref: str, files: Mapping[str, Blob], title: str, description: str, author: str) -> Commit:
        self.refs[ref] = Commit(title, description, author, dict(files), self.refs[ref])
        return self.refs[ref]

    def is_large(self, revision: str, path: str, size: int, sample: bytes) -> bool:
        """Whether a file goes to large file storage: by its size, `.gitattributes`, or because it is not text."""
        attributes = self.find(revision).files.get(".gitattributes", Blob(b"")).content.decode()
        patterns = [line.split()[0] for line in attributes.splitlines() if "filter=lfs" in line]
        named = any(fnmatch(path, pattern) or fnmatch(path.split("/")[-1], pattern) for pattern in patterns)
        return size > INLINE_LIMIT or named or b"\0" in sample

    def blob(self, revision: str, path: str, content: bytes) -> Blob:
        blob = Blob(content, self.is_large(revision, path, len(content), content[:512]))
        if blob.is_lfs:
            self.large_files[blob.sha256] = content
        return blob
