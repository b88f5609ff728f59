"""Ending a piece of work before any of its changes to a disk, as a kill would: nothing is cleaned up after it."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Killed(BaseException):
    """Raised in place of a change, and of every later one."""


def _raise() -> None:
    raise Killed


@dataclass
class Watch:
    """Counts the changes below a folder; calls `end` before number `last` and each after it.

    Attributes:
        last: the first change that does not happen, from 0; `None`: all happen.
    """

    folder: Path
    last: int | None = None
    end: Callable[[], None] = _raise
    count: int = 0

    def see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not isinstance(flags, int) or not flags & WRITING:
                return
            within = self._within(path)
        elif event in CHANGES:
            within = any(self._within(path) for path in arguments if isinstance(path, str | bytes | os.PathLike))
        else:
            return
        if within:
            if self.last is not None and self.count >= self.last:
                self.end()
            self.count += 1

    def _within(self, path: Any) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        name = os.fsdecode(path)
        # A name alone is one in a folder that `shutil.rmtree` has open.
        return os.sep not in name or os.path.abspath(name).startswith(f"{self.folder}{os.sep}")


_watches: list[Watch] = []
_installed: list[bool] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    for watch in _watches:
        watch.see(event, arguments)


@contextlib.contextmanager
def watching(folder: Path, last: int | None = None, end: Callable[[], None] = _raise) -> Iterator[Watch]:
    """Watch the changes below `folder` inside the block."""
    if not _installed:
        sys.addaudithook(_hook)  # for the rest of the process: Python has no way to take one back
        _installed.append(True)
    watch = Watch(folder.resolve(), last, end)
    _watches.append(watch)
    try:
        yield watch
    finally:
        _watches.remove(watch)


def killed_before(work: Callable[[], object], folder: Path, change: int) -> bool:
    """Do some work until its change number `change` below `folder`; whether that is as far as it got."""
    try:
        with watching(folder, change):
            work()
    except Killed:
        return True
    return False
