"""Writing results so that an interruption or a full disk leaves nothing half-written."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from ..errors import OutputError


@contextlib.contextmanager
def atomic_path(path: str | Path, folder: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block ends well, remove it when not.

    Raises:
        OutputError: the disk is full or the place cannot be written to; `path` is as it was.
    """
    target = Path(os.path.abspath(path))
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if folder:
            temporary.mkdir()
        yield temporary
        if folder and target.is_dir():
            _replace_contents(target, temporary)
        else:
            os.replace(temporary, target)
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"{str(target)!r} could not be written: {error}. Free some space or choose another place; what was there "
            "before is untouched."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink(missing_ok=True)


def _replace_contents(folder: Path, new: Path) -> None:
    """By renaming only, and without replacing the folder itself, which may be somebody's current one."""
    old = new.with_suffix(".old")
    old.mkdir()
    for entry in list(folder.iterdir()):
        os.replace(entry, old / entry.name)
    for entry in list(new.iterdir()):
        os.replace(entry, folder / entry.name)
    shutil.rmtree(old)


def check_new_folder(path: str | Path, overwrite: bool = False) -> None:
    """Refuse an output folder that exists and is not empty, before any work is done.

    Raises:
        OutputError: it exists (and `overwrite` is false), or is a file.
    """
    target = Path(path)
    if target.is_file():
        raise OutputError(f"The output {str(target)!r} is a file; give the name of a folder.")
    if target.is_dir() and any(target.iterdir()) and not overwrite:
        raise OutputError(
            f"The output folder {str(target)!r} exists and is not empty. Choose another name, or pass overwrite "
            "(--overwrite) to replace it."
        )
