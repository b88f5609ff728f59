"""Images in a folder, whose sub-folders may be splits or classes."""

import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from PIL import Image

from ..config import OnBadImage
from .images import ImageSource
from .labels import FoundLabels
from .options import DataOptions, chosen_split, split_of_folder

NO_PICTURES = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")
"""Formats that Pillow knows by name and reads only with other programs, if at all."""
NOT_OURS = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found", "__pycache__"})
"""Folders that systems and programs leave behind, besides hidden ones."""


@functools.cache
def image_suffixes() -> frozenset[str]:
    """Of the pictures that Pillow reads here, in small letters; plugins such as pillow-heif add theirs."""
    known = Image.registered_extensions()
    return frozenset(suffix for suffix, kind in known.items() if kind in Image.OPEN and kind not in NO_PICTURES)


def files_in(folder: Path) -> list[Path]:
    """All files in a folder and its sub-folders, in the order of their names; hidden ones are left out.

    Links are followed; no folder is read twice, so that links in a circle end.
    """
    return sorted(_files(folder, set()))


def _files(folder: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    status = folder.stat()
    if (status.st_dev, status.st_ino) in seen:
        return
    seen.add((status.st_dev, status.st_ino))
    with os.scandir(folder) as entries:
        visible = sorted((entry for entry in entries if _is_visible(entry.name)), key=lambda entry: entry.name)
    for entry in visible:
        if entry.is_dir():
            yield from _files(folder / entry.name, seen)
        else:
            yield folder / entry.name


def _is_visible(name: str) -> bool:
    return not name.startswith(".") and name not in NOT_OURS


def folders_in(folder: Path) -> list[Path]:
    """The visible folders right in it."""
    return sorted(path for path in folder.iterdir() if _is_visible(path.name) and path.is_dir())


def split_folder(root: Path, options: DataOptions) -> tuple[Path, str | None]:
    """The folder of the chosen split and its name, where `root` has one for each; otherwise `root` itself.

    Sub-folders are splits, and not classes, where all have names of splits, or there is one for training and one to
    judge by. A single folder around everything, as archives have it, is passed through.
    """
    splits = _splits(root)
    while not splits and (inner := _only_folder(root)) is not None:
        root, splits = inner, _splits(inner)
    if not splits:
        return root, None
    name = chosen_split(list(splits), root.name, options)
    return splits[name], name


def _splits(root: Path) -> Mapping[str, Path]:
    folders = folders_in(root)
    kinds = {folder: split_of_folder(folder.name) for folder in folders}
    found = set(kinds.values())
    if None in found and not ("train" in found and found & {"test", "validation"}):
        return {}
    return {folder.name: folder for folder, kind in kinds.items() if kind is not None}


def _only_folder(root: Path) -> Path | None:
    """The one folder in `root`, if it holds several and nothing stands beside it or them."""
    folders = folders_in(root)
    if len(folders) != 1 or len(folders_in(folders[0])) < 2 or _has_pictures(root) or _has_pictures(folders[0]):
        return None
    return folders[0]


def _has_pictures(folder: Path) -> bool:
    return any(path.suffix.lower() in image_suffixes() and _is_visible(path.name) for path in folder.iterdir())


def from_pictures(root: Path, files: Sequence[Path], name: str, on_bad_image: OnBadImage) -> ImageSource:
    """The pictures `files` in `root`; labels are the names of its sub-folders, and pictures beside these have none."""
    places = [file.relative_to(root).parts for file in files]
    names = sorted({parts[0] for parts in places if len(parts) > 1})
    number = {name: i for i, name in enumerate(names)}
    values = [number[parts[0]] if len(parts) > 1 else None for parts in places]
    found = FoundLabels(values, names, "the folders") if names else None
    return ImageSource([str(file) for file in files], None, name, on_bad_image, found=found)
