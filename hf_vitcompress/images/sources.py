"""Images from wherever the user keeps them: a Dataset, a folder, a parquet file, a Hub id, a list or a DataLoader."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import OnBadImage
from ..errors import DataError
from ..runtime.random_state import unchanged_random_state
from .folders import IMAGE_SUFFIXES, from_folder, image_files
from .images import ImageSource
from .indexed import Samples, of_samples
from .memory import from_memory
from .samples import has_images
from .streams import from_iterable_dataset
from .tables import from_dataset, one_split


@unchanged_random_state()
def open_images(
    data: Any,
    split: str | None = None,
    on_bad_image: OnBadImage = "skip",
    label2id: Mapping[str, Any] | None = None,
    limit: int | None = None,
    labels: bool = True,
) -> ImageSource:
    """Make an `ImageSource` of anything that holds images.

    What can be read image by image stays where it is: folders, data sets, and a `DataLoader` of a map-style data set.
    Streams are drawn from once, and what is drawn is held in memory.

    Args:
        data: a `datasets.Dataset` or `IterableDataset`; the path of a folder of images (sub-folders are classes), of a
            parquet file or of a folder of parquet files; the Hub id of a data set; a sequence, a torch data set or an
            iterable, such as a `DataLoader`, of images, samples or batches; or one batch. See `samples.ACCEPTED`.
        split: split of a Hub data set; by default `train`, or the first one if there is no `train`.
        on_bad_image: `"skip"` leaves out an image that cannot be read and counts it; `"error"` stops.
        label2id: index by name of the model's classes; labels are matched to them by name if both have names.
        limit: number of images to draw from a stream; see `streams.from_stream`.
        labels: whether labels are wanted even if every sample of a data set has to be read for them.

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
    else:
        if isinstance(data, Mapping) and not has_images(data):
            data = one_split(data, "the data set", split)
        source = _open_object(data, on_bad_image, limit, labels)
    if not len(source):
        raise DataError(f"No image found in {source.name}. Image files end in {', '.join(sorted(IMAGE_SUFFIXES))}.")
    return source.matched(label2id)


def _open_object(data: Any, on_bad_image: OnBadImage, limit: int | None, labels: bool) -> ImageSource:
    import datasets

    if isinstance(data, datasets.IterableDataset):
        return from_iterable_dataset(data, "the stream of images", on_bad_image, limit)
    if not isinstance(data, datasets.Dataset):
        return from_memory(data, on_bad_image, limit, labels)
    plain = data.with_format(None)
    if data.format["type"] != "custom":
        return from_dataset(plain, "the data set", on_bad_image)
    try:
        source = from_dataset(plain, "the data set", on_bad_image)
    except DataError:  # the transform may make images of rows that have none
        return from_memory(data, on_bad_image, limit, labels)
    samples = Samples(data, range(len(data)), None, source.name)
    return of_samples(samples, source, labels) or source


def _open_path(path: Path, name: str, split: str | None, on_bad_image: OnBadImage) -> ImageSource:
    import datasets

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
