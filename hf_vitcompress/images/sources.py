"""Images from wherever the user keeps them: a Dataset, a folder, a parquet file, a Hub id, a list or a DataLoader."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config import OnBadImage
from ..errors import DataError
from ..runtime.packages import require_package
from ..runtime.random_state import unchanged_random_state
from .classes import Classes
from .hub import from_hub
from .images import ImageSource
from .memory import from_memory
from .options import DataOptions
from .paths import from_path
from .tables import from_dataset, from_splits


@unchanged_random_state()
def open_images(
    data: Any,
    split: str | None = None,
    on_bad_image: OnBadImage = "skip",
    label2id: Mapping[str, Any] | None = None,
    limit: int | None = None,
    options: DataOptions | None = None,
) -> ImageSource:
    """Make an `ImageSource` of anything that holds images.

    Args:
        data: a `datasets.Dataset`; the path of a folder of images (sub-folders are classes, or splits with classes in
            them), of a parquet file, of a folder of parquet files or of one that `save_to_disk` wrote; the Hub id of a
            data set; a list of PIL images, paths or tensors; a tensor (n, channels, height, width); or an iterable of
            ready batches, such as a DataLoader.
        split: by name; as in `options`, before which it comes.
        on_bad_image: `"skip"` leaves out an image that cannot be read and counts it; `"error"` stops.
        label2id: index by name of the model's classes; labels are matched to them by name if both have names.
        limit: number of images to take from an iterable of batches, which is read once and held in memory, or from a
            large data set on the Hub.
        options: which part of a data set to take, and which of its columns.

    Raises:
        DataError: the source does not exist, or it contains no image, or not what the options name.
    """
    classes = None if label2id is None else Classes.of_label2id(label2id)
    if isinstance(data, ImageSource):
        return data.matched(classes)
    options = options or DataOptions()
    options = options if split is None else replace(options, split=split)
    if isinstance(data, str) and not data.strip():
        raise DataError("The name of the images is empty. If it comes from a variable, that is not set.")
    if isinstance(data, str | os.PathLike):
        try:
            source = _open_path(Path(data), str(data), options, on_bad_image, limit)
        except OSError as error:
            place = str(error.filename or data)
            raise DataError(f"{place!r} cannot be opened: {error.strerror or error}.") from error
    elif hasattr(data, "column_names") and hasattr(data, "features"):
        source = from_dataset(data, "the data set", on_bad_image, options)
    elif isinstance(data, Mapping) and "pixel_values" not in data:
        source = from_splits(data, "the data set", on_bad_image, options)
    else:
        source = from_memory(data, on_bad_image, limit)
    if not len(source):
        raise DataError(f"No image found in {source.name}.")
    if options.split and source.split is None:
        raise DataError(f"{source.name} has no splits: leave out the split {options.split!r} (--split).")
    return source.matched(classes)


def _open_path(path: Path, name: str, options: DataOptions, on_bad_image: OnBadImage, limit: int | None) -> ImageSource:
    require_package("datasets", "Reading images from a folder or a data set")
    if path.exists() or path.is_symlink():
        return from_path(path, options, on_bad_image)
    looks_local = (
        path.is_absolute() or name.startswith((".", "~")) or name.endswith("/") or name.count("/") > 1 or path.suffix
    )
    if looks_local:
        raise DataError(f"There is no folder or file {name!r}.")
    return from_hub(name, options, on_bad_image, limit)
