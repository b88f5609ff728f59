"""Whether a file can be written at a place, asked before the work whose result it is to hold."""

import contextlib
import os
import tempfile
from pathlib import Path

from ..errors import OutputError, one_line, shown

LONGEST_NAME = 190
"""Bytes of a file name that we write: file systems take 255, and files on the way there have longer names."""


def check_file_place(path: str | Path, what: str) -> None:
    """Refuse a place where no file can be written; the folder above it need not exist yet, and is not made.

    Args:
        what: the file is, for messages, such as `"figure"`.

    Raises:
        OutputError: it is empty, a folder or too long a name, or no file can be made in the folder above it.
    """
    name = shown(str(path))
    if not isinstance(path, str | os.PathLike) or not str(path):
        raise OutputError(f"Give the path of a file for the {what}, not {shown(path)}.")
    try:
        target = Path(os.path.abspath(path))
        if len(os.fsencode(target.name)) > LONGEST_NAME:
            raise OutputError(f"The name of the {what}, {name}, is too long; at most {LONGEST_NAME} bytes are taken.")
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.lstat(target)  # which fails for names that cannot be, where `Path` says that they are not there
        if target.is_dir():
            raise OutputError(f"The {what} {name} is a folder; give the name of a file in it.")
        folder = next(above for above in target.parents if above.exists())
        if not folder.is_dir():
            raise OutputError(f"The {what} {name} cannot be written: {shown(str(folder))} is a file and no folder.")
        with tempfile.TemporaryFile(dir=folder):  # rights say little: file systems may be read-only or virtual
            pass
    except (OSError, ValueError) as error:  # the latter for names with a NUL
        if isinstance(error, OutputError):
            raise
        reason = one_line(error)
        raise OutputError(f"The {what} {name} cannot be written: {reason}. Choose another place.") from error
