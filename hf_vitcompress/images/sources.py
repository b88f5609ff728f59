"""Images from wherever the user keeps them: a Dataset, a folder, a parquet file, a Hub id, a list or a DataLoader."""

import importlib
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config import OnBadImage
from ..errors import DataError
from ..runtime.files import looks_local
from ..runtime.packages import require_package
from ..runtime.random_state import unchanged_random_state
from .classes import Classes
from .hub import from_hub
from .images import ImageSource
from .indexed import Samples, of_samples
from .memory import from_memory
from .options import DataOptions, in_split, one_split
from .paths import from_path
from .samples import has_images
from .streams import from_iterable_dataset
from .tables import from_dataset


@unchanged_random_state()
def open_images(
    data: Any,
    split: str | None = None,
    on_bad_image: OnBadImage = "skip",
    label2id: Mapping[str, Any] | None = None,
    limit: int | None = None,
    options: DataOptions | None = None,
    labels: bool = True,
) -> ImageSource:
    """Make an `ImageSource` of anything that holds images.

    What can be read image by image stays where it is: folders, data sets, and a `DataLoader` of a map-style data set.
    Streams are drawn from once, and what is drawn is held in memory.

    Args:
        data: a `datasets.Dataset` or `IterableDataset`; the path of a folder of images (sub-folders are classes, or
            splits with classes in them), of a parquet file, of a folder of parquet files or of one that `save_to_disk`
            wrote; the Hub id of a data set; a sequence, a torch data set or an iterable, such as a `DataLoader`, of
            images, samples or batches; one batch; or a mapping of splits that are any of these.
        split: by name; as in `options`, before which it comes.
        on_bad_image: `"skip"` leaves out an image that cannot be read and counts it; `"error"` stops.
        label2id: index by name of the model's classes; labels are matched to them by name if both have names.
        limit: number of images to draw from a stream, see `streams.from_stream`, or from a large data set on the Hub.
        options: which part of a data set to take, and which of its columns.
        labels: whether labels are wanted even if every sample of a data set has to be read for them.

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
    elif isinstance(data, Mapping) and data and not has_images(data):
        chosen, split = one_split([str(name) for name in data], "the data set", options)
        name = in_split("the data set", split)
        source = replace(_open_object(data[chosen], name, on_bad_image, options, limit, labels), split=split)
    else:
        source = _open_object(data, "the data set", on_bad_image, options, limit, labels)
    if not len(source):
        raise DataError(f"No image found in {source.name}.")
    if options.split and source.split is None:
        raise DataError(f"{source.name} has no splits: leave out the split {options.split!r} (--split).")
    return source.matched(classes)


def _open_object(
    data: Any, name: str, on_bad_image: OnBadImage, options: DataOptions, limit: int | None, labels: bool
) -> ImageSource:
    # Only what has its methods may be of the library, whose import takes a second.
    datasets = importlib.import_module("datasets") if hasattr(data, "with_format") else None
    if datasets is not None and isinstance(data, datasets.IterableDataset):
        return from_iterable_dataset(data, name.replace("data set", "stream of images"), on_bad_image, options, limit)
    if datasets is None or not isinstance(data, datasets.Dataset):
        if options.image_column or options.label_column:
            raise DataError(f"{name} is not a data set with columns: leave out image_column and label_column.")
        return from_memory(data, on_bad_image, limit, labels)
    if data.format["type"] != "custom":
        return from_dataset(data.with_format(None), name, on_bad_image, options)
    try:
        source = from_dataset(data.with_format(None), name, on_bad_image, options)
    except DataError:  # the transform may make images of rows that have none
        return from_memory(data, on_bad_image, limit, labels)
    return of_samples(Samples(data, range(len(data)), None, name), source, labels) or source


def _open_path(path: Path, name: str, options: DataOptions, on_bad_image: OnBadImage, limit: int | None) -> ImageSource:
    require_package("datasets", "Reading images from a data set or a folder")
    if path.exists() or path.is_symlink():
        return from_path(path, options, on_bad_image)
    if looks_local(name) or path.suffix:
        raise DataError(f"There is no folder or file {name!r}.")
    return from_hub(name, options, on_bad_image, limit)
