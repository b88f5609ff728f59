"""Images from wherever the user keeps them: a Dataset, a folder, a parquet file, a Hub id, a list or a DataLoader."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

from torch import Tensor

from ..config import OnBadImage
from ..errors import DataError
from ..runtime.random_state import unchanged_random_state
from .images import ImageSource

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
    if isinstance(data, str | os.PathLike):
        source = _open_path(Path(data), str(data), split, on_bad_image, label2id)
    elif hasattr(data, "column_names") and hasattr(data, "features"):
        source = _from_dataset(data, "the data set", on_bad_image, label2id)
    elif isinstance(data, Mapping):
        source = _from_dataset(_one_split(data, "the data set", split), "the data set", on_bad_image, label2id)
    elif isinstance(data, Tensor) or (isinstance(data, Sequence) and data and not isinstance(data[0], Mapping)):
        source = ImageSource(list(data), None, "the list of images", on_bad_image)
    elif isinstance(data, Iterable):
        source = _from_batches(data, on_bad_image, limit)
    else:
        raise DataError(f"Images cannot be taken from a {type(data).__name__}.")
    if not len(source):
        raise DataError(f"No image found in {source.name}. Image files end in {', '.join(sorted(IMAGE_SUFFIXES))}.")
    return source


def _open_path(
    path: Path, name: str, split: str | None, on_bad_image: OnBadImage, label2id: Mapping[str, Any] | None
) -> ImageSource:
    import datasets

    if path.is_dir() and (files := sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)):
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
        to_id = _class_ids(classes, label2id)
        labels = None if to_id is None else [to_id[p.relative_to(root).parts[0]] for p in files]
    return ImageSource([str(p) for p in files], labels, root.name, on_bad_image)


def _from_dataset(dataset: Any, name: str, on_bad_image: OnBadImage, label2id: Mapping[str, Any] | None) -> ImageSource:
    import datasets

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
        to_id = None if names is None else _class_ids(names, label2id)
        if names is None:
            labels = values if all(isinstance(v, int) for v in values) else None
        elif to_id is not None:
            labels = [to_id[names[v]] if v >= 0 else -1 for v in values]
        if labels is not None and min(labels, default=0) < 0:
            labels = None  # -1 is how data sets say that a label is withheld
    return ImageSource(dataset[column], labels, name, on_bad_image, hub_id=_hub_id(dataset))


def _hub_id(dataset: Any) -> str | None:
    """The Hub id of the one data set whose files were downloaded to make this one."""
    urls = dataset.info.download_checksums or {}
    ids = {match[1] for url in urls if (match := re.match(r"hf://datasets/([^@]+)@", url))}
    return ids.pop() if len(ids) == 1 else None


def _class_ids(names: Sequence[str], label2id: Mapping[str, Any] | None) -> dict[str, int] | None:
    """Class name → the model's index; by position where the model's classes have no names of their own."""
    if label2id and all(name in label2id for name in names):
        return {name: int(label2id[name]) for name in names}
    if not label2id or all(name.startswith("LABEL_") for name in label2id):
        return {name: i for i, name in enumerate(names)}
    return None  # other classes than the model's: the images are unlabelled for it


def _from_batches(batches: Iterable[Any], on_bad_image: OnBadImage, limit: int | None) -> ImageSource:
    """Ready batches: tensors, or mappings with `pixel_values` and perhaps `labels` and more about each image."""
    images: list[Tensor] = []
    labels: list[Any] = []
    inputs: list[dict[str, Tensor]] = []
    for batch in batches:
        about: dict[str, Tensor] = {}
        if isinstance(batch, Mapping) and "pixel_values" in batch:
            pixel_values, batch_labels = batch["pixel_values"], batch.get("labels")
            others = {name: value for name, value in batch.items() if name not in ("pixel_values", "labels")}
            tensors = {name: value for name, value in others.items() if isinstance(value, Tensor) and value.dim() > 0}
            about = {name: value for name, value in tensors.items() if len(value) == len(pixel_values)}
        elif isinstance(batch, Tensor):
            pixel_values, batch_labels = batch, None
        elif isinstance(batch, Sequence) and batch and isinstance(batch[0], Tensor):
            pixel_values, batch_labels = batch[0], batch[1] if len(batch) > 1 else None
        else:
            raise DataError(
                f"A batch is a {type(batch).__name__}; give tensors or mappings with `pixel_values` (and `labels`)."
            )
        images.extend(pixel_values)
        inputs.extend({name: value[i] for name, value in about.items()} for i in range(len(pixel_values)))
        if batch_labels is not None:
            labels.extend(batch_labels)
        if limit is not None and len(images) >= limit:
            break
    source = ImageSource(images, None, "the DataLoader", on_bad_image, inputs=inputs if any(inputs) else None)
    if labels and len(labels) == len(images):
        if all(_is_class(label) for label in labels):
            source.labels = [int(label) for label in labels]
        else:
            source.targets = labels
    return source


def _is_class(label: Any) -> bool:
    """Whether it is the index of a class, and not a map of pixels, some boxes or a number that is to be predicted."""
    if isinstance(label, Tensor):
        return label.dim() == 0 and not label.is_floating_point()
    return isinstance(label, Integral)
