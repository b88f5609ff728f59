"""Images in a data set of `datasets`, in memory, in a parquet file or on the Hub."""

import re
from collections.abc import Mapping
from typing import Any

from ..config import OnBadImage
from ..errors import DataError
from .images import ImageSource
from .labels import FoundLabels

IMAGE_COLUMNS = ("image", "img", "pixel_values")
LABEL_COLUMNS = ("label", "labels", "fine_label")


def one_split(splits: Mapping[str, Any], name: str, split: str | None) -> Any:
    """The split that was asked for; by default `train`, or the first one.

    Raises:
        DataError: there is no such split.
    """
    chosen = split or ("train" if "train" in splits else next(iter(splits), "train"))
    if chosen not in splits:
        raise DataError(f"{name} has no split {chosen!r}; it has {', '.join(splits)}.")
    return splits[chosen]


def from_dataset(dataset: Any, name: str, on_bad_image: OnBadImage) -> ImageSource:
    """The images of a `datasets.Dataset`, with the labels in its column of labels.

    Raises:
        DataError: it is something else, or has no column of images.
    """
    import datasets

    if not isinstance(dataset, datasets.Dataset):
        raise DataError(f"Images cannot be taken from a {type(dataset).__name__}. Give a `datasets.Dataset`.")
    features = dataset.features
    column = next((c for c, f in features.items() if isinstance(f, datasets.Image)), None)
    column = column or next((c for c in IMAGE_COLUMNS if c in features), None)
    if column is None:
        raise DataError(f"{name} has no column of images; its columns are {', '.join(features)}.")
    if isinstance(features[column], datasets.Image):
        # Undecoded, so that one broken image is one broken image and not the end of the iteration.
        dataset = dataset.cast_column(column, datasets.Image(decode=False))
    else:
        dataset = dataset.with_format("torch")  # of lists of numbers, as `map` stores `pixel_values`
    label_column = next((c for c in LABEL_COLUMNS if c in features), None)
    found = None
    if label_column is not None:
        names = getattr(features[label_column], "names", None)
        found = FoundLabels(list(dataset[label_column]), names, f"the column {label_column!r}")
    return ImageSource(dataset[column], None, name, on_bad_image, hub_id=_hub_id(dataset), found=found)


def _hub_id(dataset: Any) -> str | None:
    """The Hub id of the one data set whose files were downloaded to make this one."""
    urls = dataset.info.download_checksums or {}
    ids = {match[1] for url in urls if (match := re.match(r"hf://datasets/([^@]+)@", url))}
    return ids.pop() if len(ids) == 1 else None
