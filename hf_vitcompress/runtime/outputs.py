"""Folders of results: nobody else's file is lost, and a kill at any moment leaves the old result or the new one.

A result is written to a folder beside its place, or inside the folder that it replaces, and is on the disk before
anything else changes. A new folder then appears by one renaming. In an old one the complete new files get the name
`READY`, from which moment the exchange only goes on: `config.json` goes first and comes last, so that a folder between
the two does not load, and whoever comes next to the folder completes what was interrupted.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from ..errors import OutputError
from ..modeling_factored import CARD_FILE, READY
from .exchange import NEW, complete, plan_exchange, put_in_place
from .files import (
    abandoned,
    abandoned_beside,
    check_apart,
    explained,
    file_digest,
    hidden_beside,
    real_path,
    remove,
)
from .manifest import changed_files, entries, foreign_files, holds_another_model, is_former_name, is_result

PART = ".vitcompress-part"
LOCK = ".vitcompress.lock"

Way = Literal["new", "overwrite", "renew"]
"""What may be there: nothing; a result, which is replaced; or anything but another model, of which some files are."""


@dataclass(frozen=True)
class Output:
    """A folder that this process alone writes to until it is done.

    Attributes:
        path: absolute, without links.
        way: what may be there.
        staging: where the new files are written; on the same file system.
    """

    path: Path
    way: Way
    staging: Path

    @contextlib.contextmanager
    def replaced(self) -> Iterator[Path]:
        """Yield an empty folder, but for the card that is there; what it then holds takes its place in the output.

        Raises:
            OutputError: the disk is full, or the output has become something that may not be replaced.
        """
        new = self.staging / NEW
        with explained(self.path):
            new.mkdir()
            card = self._copied_card(new)
            try:
                yield new
                _check(self.path, self.way)
                put_in_place(self.path, self.staging, plan_exchange(self.path, new, card, self.way == "renew"))
            finally:
                remove(new)

    def _copied_card(self, new: Path) -> str | None:
        """Copy the card that is there, of which a part may be renewed; its digest."""
        card = self.path / CARD_FILE
        if not card.is_file():
            return None
        shutil.copyfile(card, new / CARD_FILE)
        return file_digest(new / CARD_FILE)


@contextlib.contextmanager
def reserved(
    path: str | Path,
    way: Way = "new",
    inputs: Mapping[str, Any] | None = None,
    beside: tuple[str, ...] = (),
) -> Iterator[Output]:
    """Keep a folder for one result, and refuse it before any work where that could not be written there.

    An exchange that was interrupted is completed, and what killed runs left behind is removed.

    Args:
        way: what may be there.
        inputs: what the output must be apart from, see `files.check_apart`.
        beside: as of `files.check_apart`.

    Raises:
        OutputError: the folder is refused, cannot be written to, or another run is writing to it.
    """
    target = real_path(path)
    check_apart(target, inputs or {}, beside)
    if target.exists() and not target.is_dir():
        raise OutputError(f"The output {str(target)!r} is a file; give the name of a folder.")
    made = [folder for folder in target.parents if not folder.exists()]
    with _in_new_folders(target, made), _locked(target):
        with explained(target):
            complete(target)
            _clear_leftovers(target)
            _check(target, way)
            staging = target / PART if target.is_dir() else hidden_beside(target, ".part")
            staging.mkdir()
        try:
            yield Output(target, way, staging)
        finally:
            remove(staging)


def is_staging(folder: Path) -> bool:
    """Whether a folder is one that `Output.replaced` has yielded, which needs no second one."""
    parent = folder.parent.name
    return folder.name == NEW and parent.startswith(".") and parent.endswith((PART, ".part"))


def complete_exchange(folder: str | Path) -> None:
    """Complete an exchange of a folder's files that was interrupted; does nothing for what is no folder.

    Raises:
        OutputError: it cannot be completed, or another run is writing to the folder.
    """
    if not (Path(folder) / READY).is_dir():
        return
    target = real_path(folder)
    with _locked(target), explained(target):
        complete(target)


def work_path(output: str | Path, ending: str) -> Path:
    """A hidden path for what is kept between runs for an output: beside it, or in it where only that is writable."""
    target = real_path(output)
    if target.is_dir() and not os.access(target.parent, os.W_OK):
        return target / f".vitcompress{ending}"
    return hidden_beside(target, ending)


# ---- what may be replaced


def check_renewable(path: str | Path) -> None:
    """Refuse a folder that a model could not be saved to, before any work is done.

    Raises:
        OutputError: it holds another model, is a file or cannot be written to.
    """
    target = real_path(path)
    place = next(folder for folder in (target, *target.parents) if folder.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise OutputError(f"Nothing can be saved to {str(path)!r}: {str(place)!r} is not a folder you may write to.")
    _check(target, "renew")


def _check(target: Path, way: Way) -> None:
    if not target.is_dir() or not entries(target):
        return
    name = repr(str(target))
    if way == "renew":
        if holds_another_model(target):
            raise OutputError(
                f"{name} holds a model that was not written by this package, and it is not replaced. Choose another "
                "folder, or remove that model first."
            )
        return
    if not is_result(target):
        raise OutputError(
            f"The output folder {name} exists and is not empty, and what it holds was not written by this package. "
            "Choose another name; --overwrite (overwrite) replaces results of this package only."
        )
    if way == "new":
        raise OutputError(
            f"The output folder {name} exists and is not empty. Choose another name, or pass overwrite (--overwrite) "
            "to replace the result in it."
        )
    if foreign := foreign_files(target):
        raise OutputError(
            f"The output folder {name} also holds {_listed(foreign)}, not written by this package. Move what you want "
            "to keep elsewhere, or choose another name."
        )
    if changed := changed_files(target):
        raise OutputError(
            f"In the output folder {name}, {_listed(changed)} changed after this package wrote it. Move what you want "
            "to keep elsewhere, or choose another name."
        )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"


# ---- one run at a time, and what is left of those that were killed


@contextlib.contextmanager
def _locked(target: Path) -> Iterator[None]:
    """One process at a time; the lock of a process that was killed is free."""
    path = target / LOCK
    if not target.is_dir() or os.access(target.parent, os.W_OK):
        path = hidden_beside(target, ".lock")
    lock = FileLock(path)
    with explained(target):
        try:
            lock.acquire(blocking=False)
        except Timeout:
            if not path.exists():  # nobody holds it: it cannot be made there
                raise OSError(f"no file can be made in {str(path.parent)!r}") from None
            raise OutputError(
                f"Another run is writing to {str(target)!r}. Wait until it has ended, or choose another name."
            ) from None
    try:
        yield
    finally:
        remove(path)  # while it is held: who has opened it meanwhile tries again
        lock.release()


@contextlib.contextmanager
def _in_new_folders(target: Path, made: list[Path]) -> Iterator[None]:
    """Make the folders that a target needs, and remove those that stay empty."""
    with explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            for folder in made:
                folder.rmdir()


def _clear_leftovers(target: Path) -> None:
    """What killed runs left, those of former versions included."""
    remove(hidden_beside(target, ".part"))
    for old in abandoned_beside(target, ".old"):
        _put_back(old, target)
    for part in abandoned_beside(target, ".part"):
        remove(part)
    if target.is_dir():
        parts = [path for _, path in abandoned(target, ".part")]
        for path in (target / PART, *target.glob(".saving-*"), *parts):
            remove(path)


def _put_back(old: Path, target: Path) -> None:
    """Former versions moved everything out of a folder, then the new result in; what they did not finish is undone."""
    new = old.with_suffix(".part")
    unfinished = new.is_dir() and any(new.iterdir())
    target.mkdir(exist_ok=True)
    moved_out = {path.name for path in old.iterdir()}
    there = {path.name for path in entries(target)}
    if unfinished and there & moved_out:  # everything was out, so that all that is there came in
        for name in there:
            os.replace(target / name, new / name)
    for path in list(old.iterdir()):
        place = target / path.name
        if not os.path.lexists(place) and (unfinished or not is_former_name(path.name)):
            os.replace(path, place)
    if all(is_former_name(path.name) for path in old.iterdir()):
        remove(old)
