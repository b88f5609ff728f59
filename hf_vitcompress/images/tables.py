"""Images in a data set of `datasets`: its columns of images and of labels."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config import OnBadImage
from ..errors import DataError
from .images import ImageSource
from .labels import FoundLabels
from .options import DataOptions, in_split, one_split

IMAGE_COLUMNS = (
    *("image", "img", "pixel_values", "picture", "photo", "jpg", "jpeg", "png", "webp"),
    *("image_path", "file_name", "filename", "path", "file"),
)
"""What columns of images are called, the likeliest first."""
LABEL_COLUMNS = (
    *("label", "labels", "target", "targets", "class", "fine_label", "category", "cls", "y"),
    *("class_label", "label_id", "class_id", "category_id", "label_name", "class_name"),
)
"""What columns of classes are called, the likeliest first."""


def from_dataset(
    dataset: Any, name: str, on_bad_image: OnBadImage, options: DataOptions, folder: Path | None = None
) -> ImageSource:
    """The images of a `datasets.Dataset`, with the labels in its column of labels.

    Args:
        folder: that paths of images are relative to.

    Raises:
        DataError: it is something else, or has no column of images, several, or not the one that was asked for.
    """
    import datasets

    if not isinstance(dataset, datasets.Dataset):
        raise DataError(f"Images cannot be taken from a {type(dataset).__name__}. Give a `datasets.Dataset`.")
    features = dataset.features
    column = image_column(features, name, options.image_column)
    found = _labels(dataset, column, name, options.label_column)
    if isinstance(features[column], datasets.Image):
        # Undecoded, so that one broken image is one broken image and not the end of the iteration.
        dataset = dataset.cast_column(column, datasets.Image(decode=False))
    elif not _is_text(features[column]):
        dataset = dataset.with_format("torch")  # of lists of numbers, as `map` stores `pixel_values`
    images: Sequence[Any] = dataset[column]
    if folder is not None and _is_text(features[column]):
        images = [path and str(folder / path) for path in images]
    return ImageSource(images, None, name, on_bad_image, hub_id=_hub_id(dataset), found=found)


def from_splits(loaded: Any, name: str, on_bad_image: OnBadImage, options: DataOptions) -> ImageSource:
    """The images of a data set, or of one split of it where there are several.

    Raises:
        DataError: see `from_dataset`; or there is no such split.
    """
    if not isinstance(loaded, Mapping):
        return from_dataset(loaded, name, on_bad_image, options)
    chosen, split = one_split(list(loaded), name, options)
    return replace(from_dataset(loaded[chosen], in_split(name, split), on_bad_image, options), split=split)


def image_column(features: Any, name: str, wanted: str | None) -> str:
    """The column that was asked for; else the only one of images, or the one that is called so.

    Raises:
        DataError: there is none, or there are several and none is called so.
    """
    import datasets

    if wanted is not None:
        return _existing(features, wanted, name, "--image-column")
    of_images = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    if len(of_images) == 1:
        return of_images[0]
    column = _likeliest(of_images or features, IMAGE_COLUMNS)
    if column is not None:
        return column
    if of_images:
        raise DataError(
            f"{name} has several columns of images: {', '.join(of_images)}. Say which one to take (--image-column, "
            "DataOptions(image_column=…))."
        )
    raise DataError(f"{name} has no column of images; its columns are {', '.join(features)}.")


def _labels(dataset: Any, of_images: str, name: str, wanted: str | None) -> FoundLabels | None:
    features = dataset.features
    column = label_column(features, of_images, name, wanted)
    if column is not None:
        names = getattr(features[column], "names", None)
        return FoundLabels(list(dataset.with_format(None)[column]), names, f"the column {column!r}")
    if len(of_classes := _columns_of_classes(features)) > 1:
        several = f"{name} has several columns of classes: {', '.join(of_classes)}. Say which one to take "
        several += "(--label-column, DataOptions(label_column=…))."
        return FoundLabels([None] * len(dataset), None, "the columns", several)
    return None


def label_column(features: Any, of_images: str, name: str, wanted: str | None) -> str | None:
    """The column that was asked for; else the one that is called so, or the only one of classes.

    Args:
        of_images: the column of images.

    Raises:
        DataError: the one that was asked for does not exist.
    """
    import datasets

    if wanted is not None:
        return _existing(features, wanted, name, "--label-column")
    others = [key for key in features if key != of_images and not isinstance(features[key], datasets.Image)]
    of_classes = _columns_of_classes(features)
    column = _likeliest(of_classes, LABEL_COLUMNS) or _likeliest(others, LABEL_COLUMNS)
    return column or (of_classes[0] if len(of_classes) == 1 else None)


def _columns_of_classes(features: Any) -> list[str]:
    import datasets

    return [column for column in features if isinstance(features[column], datasets.ClassLabel)]


def _existing(features: Any, column: str, name: str, flag: str) -> str:
    if column not in features:
        raise DataError(f"{name} has no column {column!r} ({flag}); its columns are {', '.join(features)}.")
    return column


def _likeliest(columns: Any, known: Sequence[str]) -> str | None:
    """The first of the known names that a column has, in small letters or large ones."""
    by_name = {column.lower(): column for column in columns}
    return next((by_name[name] for name in known if name in by_name), None)


def _is_text(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in ("string", "large_string")


def _hub_id(dataset: Any) -> str | None:
    """The Hub id of the one data set whose files were downloaded to make this one."""
    urls = dataset.info.download_checksums or {}
    ids = {match[1] for url in urls if (match := re.match(r"hf://datasets/([^@]+)@", url))}
    return ids.pop() if len(ids) == 1 else None
