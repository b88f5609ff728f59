"""Whether a file can be written at a place, asked before the work whose result it is to hold."""

import os
from pathlib import Path

from ..errors import OutputError, one_line, shown

LONGEST_NAME = 190
"""Bytes of a file name that we write: file systems take 255, and files on the way there have longer names."""


def check_file_place(path: str | Path, what: str) -> None:
    """Refuse a place where no file can be written; the folder above it need not exist yet, and is not made.

    Args:
        what: the file is, for messages, such as `"figure"`.

    Raises:
        OutputError: it is empty, a folder or too long a name, or the nearest folder above it takes no files.
    """
    name = shown(str(path))
    if not isinstance(path, str | os.PathLike) or not str(path):
        raise OutputError(f"Give the path of a file for the {what}, not {shown(path)}.")
    try:
        target = Path(os.path.abspath(path))
        if len(os.fsencode(target.name)) > LONGEST_NAME:
            raise OutputError(f"The name of the {what}, {name}, is too long; at most {LONGEST_NAME} bytes are taken.")
        if target.is_dir():
            raise OutputError(f"The {what} {name} is a folder; give the name of a file in it.")
        folder = next(above for above in target.parents if above.exists())
        if not folder.is_dir():
            raise OutputError(f"The {what} {name} cannot be written: {shown(str(folder))} is a file and no folder.")
    except (OSError, ValueError) as error:  # names that are too long, and those with a NUL
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"The {what} {name} cannot be written: {one_line(error)}. Choose another place.") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(
            f"The {what} {name} cannot be written: no file may be made in {shown(str(folder))}. Choose another place."
        )
