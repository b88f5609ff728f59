"""Images from wherever the user keeps them: a Dataset, a folder, a parquet file, a Hub id, a list or a DataLoader."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import OnBadImage
from ..errors import DataError
from ..runtime.packages import require_package
from ..runtime.random_state import unchanged_random_state
from .folders import IMAGE_SUFFIXES, from_folder, image_files
from .images import ImageSource
from .memory import from_memory
from .tables import from_dataset, one_split


@unchanged_random_state()
def open_images(
    data: Any,
    split: str | None = None,
    on_bad_image: OnBadImage = "skip",
    label2id: Mapping[str, Any] | None = None,
    limit: int | None = None,
) -> ImageSource:
    """Make an `ImageSource` of anything that holds images.

    Args:
        data: a `datasets.Dataset`; the path of a folder of images (sub-folders are classes), of a parquet file or of
            a folder of parquet files; the Hub id of a data set; a list of PIL images, paths or tensors; a tensor
            (n, channels, height, width); or an iterable of ready batches, such as a DataLoader.
        split: split of a Hub data set; by default `train`, or the first one if there is no `train`.
        on_bad_image: `"skip"` leaves out an image that cannot be read and counts it; `"error"` stops.
        label2id: index by name of the model's classes; labels are matched to them by name if both have names.
        limit: number of images to take from an iterable of batches, which is read once and held in memory.

    Raises:
        DataError: the source does not exist, or it contains no image.
    """
    if isinstance(data, ImageSource):
        return data
    if isinstance(data, str) and not data.strip():
        raise DataError("The name of the images is empty. If it comes from a variable, that is not set.")
    if isinstance(data, str | os.PathLike):
        try:
            source = _open_path(Path(data), str(data), split, on_bad_image)
        except OSError as error:
            raise DataError(f"{str(data)!r} cannot be opened: {error.strerror or error}.") from error
    elif hasattr(data, "column_names") and hasattr(data, "features"):
        source = from_dataset(data, "the data set", on_bad_image)
    elif isinstance(data, Mapping) and "pixel_values" not in data:
        source = from_dataset(one_split(data, "the data set", split), "the data set", on_bad_image)
    else:
        source = from_memory(data, on_bad_image, limit)
    if not len(source):
        raise DataError(f"No image found in {source.name}. Image files end in {', '.join(sorted(IMAGE_SUFFIXES))}.")
    return source.matched(label2id)


def _open_path(path: Path, name: str, split: str | None, on_bad_image: OnBadImage) -> ImageSource:
    datasets = require_package("datasets", "Reading images from a data set or a folder")
    if path.is_dir() and (files := image_files(path)):
        return from_folder(path, files, on_bad_image)
    parquet = [path] if path.suffix == ".parquet" else sorted(path.glob("*.parquet")) if path.is_dir() else []
    if parquet and all(p.is_file() for p in parquet):
        files_ = [str(p) for p in parquet]
        try:
            dataset = datasets.Dataset.from_parquet(files_)
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            raise DataError(f"{name!r} cannot be read as parquet: {error}") from error
        return from_dataset(dataset, path.name, on_bad_image)
    if path.exists():
        raise DataError(
            f"No image found in {name!r}. Image files end in {', '.join(sorted(IMAGE_SUFFIXES))}; .parquet works too."
        )
    looks_local = path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or path.suffix
    if looks_local:
        raise DataError(f"There is no folder or file {name!r}.")
    try:
        loaded = datasets.load_dataset(name)
    except Exception as error:  # the Hub client has no common base class for its errors
        raise DataError(
            f"{name!r} is neither a local folder or file nor a data set that could be loaded: {error}"
        ) from error
    return from_dataset(one_split(loaded, name, split), name, on_bad_image)
