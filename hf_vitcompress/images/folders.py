"""Images in a folder, whose sub-folders may be classes."""

from pathlib import Path

from ..config import OnBadImage
from .images import ImageSource
from .labels import FoundLabels

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})


def image_files(folder: Path) -> list[Path]:
    """In the order of their names; a folder may be called anything."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and not p.is_dir())


def from_folder(root: Path, files: list[Path], on_bad_image: OnBadImage) -> ImageSource:
    """The images `files` in `root`; labels are the names of the sub-folders."""
    places = [p.relative_to(root).parts for p in files]
    found = None
    if all(len(parts) > 1 for parts in places):
        names = sorted({parts[0] for parts in places})
        number = {name: i for i, name in enumerate(names)}
        found = FoundLabels([number[parts[0]] for parts in places], names, "the folders")
    return ImageSource([str(p) for p in files], None, root.name, on_bad_image, found=found)
