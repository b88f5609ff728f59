"""Writing single files, so that an interruption or a full disk leaves nothing half-written."""

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ..errors import OutputError, shown

LONGEST_NAME = 255
"""Bytes in the name of a file, on all common file systems."""


def real_path(path: str | Path) -> Path:
    """The absolute path without symbolic links; what it names need not exist.

    Raises:
        OutputError: the path is blank, as one from an unset variable is, or nothing can have that name.
    """
    if not isinstance(path, str | os.PathLike):
        raise OutputError(f"Give the path of an output, not {shown(path)}.")
    if not str(path).strip():
        raise OutputError("The name of the output is empty. If it comes from a variable, that is not set.")
    try:
        found = Path(os.path.realpath(path))
        with contextlib.suppress(FileNotFoundError):
            found.lstat()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise OutputError(f"{_shortened(path)} cannot be an output: {reason}. Choose another name.") from error
    return found


def looks_local(name: str) -> bool:
    """Whether a name can be that of a file or a folder alone: an id on the Hub is `owner/name`."""
    return Path(name).is_absolute() or name.startswith((".", "~")) or name.endswith("/") or name.count("/") > 1


def with_ending(path: Path, ending: str) -> Path:
    """A path beside `path`, named after it and with an ending; where that is too long, with a digest of the name."""
    name = f"{path.name}{ending}"
    if len(os.fsencode(name)) > LONGEST_NAME:
        name = f"{short_name(path)}{ending}"
    return path.with_name(name)


def short_name(path: Path) -> str:
    """What stands for the name of `path` where that is too long."""
    return hashlib.sha256(os.fsencode(path.name)).hexdigest()[:32]


def hidden_beside(path: Path, ending: str) -> Path:
    """The same, hidden."""
    return with_ending(path.with_name(f".{path.name}"), ending)


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block ends well, remove it when not.

    A link of that name is replaced; what it leads to stays as it was.

    Raises:
        OutputError: the disk is full or the place cannot be written to; `path` is as it was.
    """
    real_path(path)
    target = real_path(Path(path).parent) / Path(path).name
    temporary = hidden_beside(target, f".{os.getpid()}-{threading.get_native_id()}.part")
    with explained(target):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            for part in abandoned_beside(target, ".part"):
                remove(part)
            yield temporary
            sync(temporary)
            os.replace(temporary, target)
            sync(target.parent)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a file in UTF-8, all of it or nothing; folders that it needs are made.

    Raises:
        OutputError: see `atomic_path`.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def explained(target: Path) -> Iterator[None]:
    """What a disk refuses inside is an `OutputError` that names `target`."""
    try:
        yield
    except OutputError:
        raise
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"{_shortened(target)} could not be written: {error}. Free some space or choose another place; what was "
            "there before is untouched."
        ) from error


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # some file systems cannot do this with folders
            raise
    finally:
        os.close(descriptor)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- what runs that were killed left behind


def abandoned(folder: Path, ending: str) -> Iterator[tuple[str, Path]]:
    """What another process made in `folder` and did not finish, and that has ended since: its stem, and its path."""
    pattern = re.compile(rf"(.+)\.(\d+)(-\d+)?{re.escape(ending)}")
    for path in folder.iterdir():
        match = pattern.fullmatch(path.name)
        if match is not None and not _is_alive(int(match[2])):
            yield match[1], path


def abandoned_beside(target: Path, ending: str) -> list[Path]:
    """The same of what was made for `target`."""
    stem = hidden_beside(target, f".{os.getpid()}{ending}").name.removesuffix(f".{os.getpid()}{ending}")
    return [path for of, path in abandoned(target.parent, ending) if of == stem]


def remove(path: Path) -> None:
    """Remove a file or a folder of ours, as far as that is possible."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # somebody else's process
        return True
    return True


# ---- before any work


def check_file(
    path: str | Path,
    inputs: Mapping[str, Any] | None = None,
    beside: tuple[str, ...] = (),
    renews: Callable[[Path], bool] = lambda _: False,
) -> None:
    """Refuse a file that could not be written, or that would replace something, before any work is done.

    Args:
        inputs: as of `check_apart`.
        beside: as of `check_apart`.
        renews: whether a file that is there may be replaced, because this command wrote it.

    Raises:
        OutputError: it is refused.
    """
    target = real_path(path)
    check_apart(target, inputs or {}, beside)
    if target.is_dir():
        raise OutputError(f"The output {_shortened(path)} is a folder; give the name of a file.")
    place = next(folder for folder in target.parents if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=place):  # rights say little: file systems may be read-only or virtual
            pass
    except OSError as error:
        raise OutputError(
            f"{_shortened(path)} cannot be written: {str(place)!r} is not a folder that you may write to."
        ) from error
    if target.exists() and not target.is_file():
        raise OutputError(f"The output {_shortened(path)} is a device or a pipe; give the name of a file.")
    if target.exists() and not renews(target):
        raise OutputError(
            f"{_shortened(path)} exists and would be replaced, and this command did not write it. Choose another name, "
            "or remove it first."
        )


def check_apart(target: Path, inputs: Mapping[str, Any], beside: tuple[str, ...] = ()) -> None:
    """Refuse an output that is, contains or lies inside an input; links are followed.

    Args:
        target: the output.
        inputs: by what to call them, such as `"the model"`: paths, or models that were loaded from one. What is no path
            of this machine does not count.
        beside: names of inputs that the output may lie inside.

    Raises:
        OutputError: it does.
    """
    for name, value in inputs.items():
        given = getattr(value, "name_or_path", value)
        if not isinstance(given, str | Path) or not os.path.exists(given):
            continue
        place = Path(os.path.realpath(given))
        if _same(target, place):
            relation = "is"
        elif any(_same(target, folder) for folder in place.parents):
            relation = "contains"
        elif name not in beside and any(_same(place, folder) for folder in target.parents):
            relation = "lies inside"
        else:
            continue
        raise OutputError(f"The output {_shortened(target)} {relation} {name}, {str(given)!r}. Choose another place.")


def _same(one: Path, other: Path) -> bool:
    return one == other or (one.exists() and other.exists() and os.path.samefile(one, other))


def _shortened(path: str | Path) -> str:
    text = str(path)
    return repr(text if len(text) <= 400 else f"{text[:200]}…{text[-100:]}")
