"""Images from wherever the user keeps them: a Dataset, a folder, a parquet file, a Hub id, a list or a DataLoader."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..config import OnBadImage
from ..errors import DataError
from ..runtime.random_state import unchanged_random_state
from .images import ImageSource
from .labels import class_ids, is_class, known_classes, known_targets

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
IMAGE_COLUMNS = ("image", "img", "pixel_values")
LABEL_COLUMNS = ("label", "labels", "fine_label")


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
            source = _open_path(Path(data), str(data), split, on_bad_image, label2id)
        except OSError as error:
            raise DataError(f"{str(data)!r} cannot be opened: {error.strerror or error}.") from error
    elif hasattr(data, "column_names") and hasattr(data, "features"):
        source = _from_dataset(data, "the data set", on_bad_image, label2id)
    elif isinstance(data, Mapping) and "pixel_values" not in data:
        source = _from_dataset(_one_split(data, "the data set", split), "the data set", on_bad_image, label2id)
    else:
        source = _from_memory(data, on_bad_image, label2id, limit)
    if not len(source):
        raise DataError(f"No image found in {source.name}. Image files end in {', '.join(sorted(IMAGE_SUFFIXES))}.")
    return source


def _from_memory(
    data: Any, on_bad_image: OnBadImage, label2id: Mapping[str, Any] | None, limit: int | None
) -> ImageSource:
    """Images one by one, one batch of them, or an iterable of batches."""
    if not isinstance(data, Iterable) or getattr(data, "ndim", 3) < 3:
        raise DataError(f"Images cannot be taken from {_kind(data)}.")
    if isinstance(data, Mapping):
        return _from_batches([data], on_bad_image, label2id, limit)
    if isinstance(data, Tensor) or (isinstance(data, Sequence) and data and not _is_batch(data[0])):
        return ImageSource(list(data), None, "the list of images", on_bad_image)
    one_batch = isinstance(data, Sequence) and len(data) == 2 and _is_batch(data[0]) and _are_labels(data[1])
    return _from_batches([data] if one_batch else data, on_bad_image, label2id, limit)


def _open_path(
    path: Path, name: str, split: str | None, on_bad_image: OnBadImage, label2id: Mapping[str, Any] | None
) -> ImageSource:
    import datasets

    if path.is_dir() and (files := _image_files(path)):
        return _from_folder(path, files, on_bad_image, label2id)
    parquet = [path] if path.suffix == ".parquet" else sorted(path.glob("*.parquet")) if path.is_dir() else []
    if parquet and all(p.is_file() for p in parquet):
        files_ = [str(p) for p in parquet]
        try:
            dataset = datasets.Dataset.from_parquet(files_)
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            raise DataError(f"{name!r} cannot be read as parquet: {error}") from error
        return _from_dataset(dataset, path.name, on_bad_image, label2id)
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
    return _from_dataset(_one_split(loaded, name, split), name, on_bad_image, label2id)


def _image_files(folder: Path) -> list[Path]:
    """In the order of their names; a folder may be called anything."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and not p.is_dir())


def _one_split(splits: Mapping[str, Any], name: str, split: str | None) -> Any:
    chosen = split or ("train" if "train" in splits else next(iter(splits), "train"))
    if chosen not in splits:
        raise DataError(f"{name} has no split {chosen!r}; it has {', '.join(splits)}.")
    return splits[chosen]


def _from_folder(
    root: Path, files: list[Path], on_bad_image: OnBadImage, label2id: Mapping[str, Any] | None
) -> ImageSource:
    classes = sorted({p.relative_to(root).parts[0] for p in files if len(p.relative_to(root).parts) > 1})
    labels = None
    if classes and all(len(p.relative_to(root).parts) > 1 for p in files):
        to_id = class_ids(classes, label2id)
        labels = None if to_id is None else [to_id[p.relative_to(root).parts[0]] for p in files]
    return ImageSource([str(p) for p in files], labels, root.name, on_bad_image)


def _from_dataset(dataset: Any, name: str, on_bad_image: OnBadImage, label2id: Mapping[str, Any] | None) -> ImageSource:
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
    label_column = next((c for c in LABEL_COLUMNS if c in features), None)
    labels = None
    if label_column is not None:
        values = list(dataset[label_column])
        names = getattr(features[label_column], "names", None)
        to_id = None if names is None else class_ids(names, label2id)
        if names is None:
            labels = known_classes(values, label2id, name) if all(map(is_class, values)) else None
        elif to_id is not None and (known := known_classes(values, label2id, name)) is not None:
            labels = [to_id[names[v]] for v in known]
    return ImageSource(dataset[column], labels, name, on_bad_image, hub_id=_hub_id(dataset))


def _hub_id(dataset: Any) -> str | None:
    """The Hub id of the one data set whose files were downloaded to make this one."""
    urls = dataset.info.download_checksums or {}
    ids = {match[1] for url in urls if (match := re.match(r"hf://datasets/([^@]+)@", url))}
    return ids.pop() if len(ids) == 1 else None


def _is_batch(item: Any) -> bool:
    """Whether an item of a sequence is a batch, and not an image."""
    return isinstance(item, Mapping | list | tuple) or (isinstance(item, Tensor) and item.dim() > 3)


def _are_labels(item: Any) -> bool:
    """Whether the second of two items are labels of the first, and not a batch of its own."""
    return not _is_batch(item) or (isinstance(item, list | tuple) and not any(map(_is_batch, item)))


def _from_batches(
    batches: Iterable[Any], on_bad_image: OnBadImage, label2id: Mapping[str, Any] | None, limit: int | None
) -> ImageSource:
    """Ready batches: tensors, or mappings with `pixel_values` and perhaps `labels` and more about each image."""
    images: list[Tensor] = []
    labels: list[Any] = []
    inputs: list[dict[str, Tensor]] = []
    for batch in batches:
        pixel_values, batch_labels, about = _parts_of(batch)
        images.extend(pixel_values)
        inputs.extend({name: value[i] for name, value in about.items()} for i in range(len(pixel_values)))
        if batch_labels is not None:
            labels.extend(batch_labels)
        if limit is not None and len(images) >= limit:
            break
    source = ImageSource(images, None, "the DataLoader", on_bad_image, inputs=inputs if any(inputs) else None)
    if labels and len(labels) == len(images):
        if all(map(is_class, labels)):
            source.labels = known_classes(labels, label2id, source.name)
        else:
            source.targets = known_targets(labels, source.name)
    return source


def _parts_of(batch: Any) -> tuple[Tensor, Sequence[Any] | Tensor | None, dict[str, Tensor]]:
    """`pixel_values`, labels and what else there is about each image.

    Raises:
        DataError: it is not a batch.
    """
    about: dict[str, Tensor] = {}
    pixel_values, labels = batch, None
    if isinstance(batch, Mapping):
        pixel_values, labels = batch.get("pixel_values"), batch.get("labels")
        others = {name: value for name, value in batch.items() if name not in ("pixel_values", "labels")}
        about = {name: value for name, value in others.items() if isinstance(value, Tensor) and value.dim() > 0}
    elif isinstance(batch, Sequence) and len(batch):
        pixel_values, labels = batch[0], batch[1] if len(batch) > 1 else None
    if not isinstance(pixel_values, Tensor) or pixel_values.dim() < 3:
        raise DataError(
            f"A batch is {_kind(batch)}. Give tensors (n, channels, height, width), or mappings with such "
            "`pixel_values` (and `labels`), or pairs of such a tensor and labels."
        )
    count = len(pixel_values)
    if labels is not None and _length(labels) != count:
        raise DataError(
            f"A batch holds `pixel_values` of shape {tuple(pixel_values.shape)} and {_kind(labels)} as its labels. "
            "There has to be one label for each image; samples become batches in a DataLoader."
        )
    return pixel_values, labels, {name: value for name, value in about.items() if len(value) == count}


def _length(labels: Any) -> int | None:
    """`None` of a single value."""
    try:
        return len(labels)
    except TypeError:
        return None


def _kind(value: Any) -> str:
    """What it is, for a message."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a mapping with {', '.join(map(str, value)) or 'nothing in it'}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {', '.join(type(item).__name__ for item in value[:3]) or 'nothing'}"
    return f"a {type(value).__name__}"
