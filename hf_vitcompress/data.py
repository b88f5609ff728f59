"""Images from wherever the user keeps them: a Dataset, a folder, a parquet file, a Hub id, a list or a DataLoader."""

import io
import os
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor

from .config import OnBadImage
from .errors import DataError

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
IMAGE_COLUMNS = ("image", "img", "pixel_values")
LABEL_COLUMNS = ("label", "labels", "fine_label")

Raw = Any
"""An image not yet decoded: a path, bytes, `{"bytes": …, "path": …}`, a PIL image or a (channels, h, w) tensor."""


@dataclass
class Batch:
    """`pixel_values` (n, channels, height, width) float32 and, where known, `labels` (n,) int64.

    `index` counts batches, those included of which no image could be read and which do not appear; `positions` are
    those of the images in their batch, without the unreadable ones.
    """

    index: int
    pixel_values: Tensor
    labels: Tensor | None
    positions: list[int] = field(default_factory=list)


@dataclass
class ImageSource:
    """Images in a fixed order, decoded on demand.

    Attributes:
        images: undecoded images.
        labels: class indices, or `None`.
        name: where they come from, for messages and reports.
        on_bad_image: what to do with an image that cannot be read.
        bad_images: descriptions of those that were left out so far.
        hub_id: of the data set they come from; `None` for others.
    """

    images: Sequence[Raw]
    labels: Sequence[int] | None
    name: str
    on_bad_image: OnBadImage = "skip"
    bad_images: list[str] = field(default_factory=list)
    hub_id: str | None = None

    def __len__(self) -> int:
        return len(self.images)

    def select(self, indices: Sequence[int]) -> "ImageSource":
        """The images at `indices`, sharing nothing that changes."""
        labels = None if self.labels is None else [self.labels[i] for i in indices]
        chosen = [self.images[i] for i in indices]
        return ImageSource(chosen, labels, self.name, self.on_bad_image, hub_id=self.hub_id)

    def sample(self, count: int | None, seed: int) -> "ImageSource":
        """At most `count` images in an order drawn from `seed`."""
        order = random.Random(seed).sample(range(len(self)), len(self))
        return self.select(order[:count])

    def batches(self, processor: Any, batch_size: int, wanted: Iterable[int] | None = None) -> Iterator[Batch]:
        """Decode and preprocess batch by batch.

        Args:
            wanted: indices of the batches to read; by default all.

        Raises:
            DataError: an image cannot be read and `on_bad_image` is `"error"`, or all are wanted and none can be read.
        """
        readable = wanted is not None
        for index in range(self.batch_count(batch_size)) if wanted is None else wanted:
            start = index * batch_size
            indices = range(start, min(start + batch_size, len(self)))
            decoded = [(i, image) for i in indices if (image := self._decode(i)) is not None]
            if not decoded:
                continue
            readable = True
            labels = None if self.labels is None else torch.tensor([self.labels[i] for i, _ in decoded])
            pixel_values = _pixel_values([image for _, image in decoded], processor)
            yield Batch(index, pixel_values, labels, [i - start for i, _ in decoded])
        if not readable:
            raise self.unreadable()

    def batch_count(self, batch_size: int) -> int:
        return -(-len(self) // batch_size)

    def unreadable(self) -> DataError:
        """What to raise where not one image can be read."""
        last = f"; the last was {self.bad_images[-1]}" if self.bad_images else ""
        return DataError(f"None of the {len(self)} images of {self.name} can be read{last}.")

    def decoded(self, index: int) -> Image.Image | Tensor:
        """The image at `index`, in RGB."""
        return decode_image(self.images[index])

    def _decode(self, index: int) -> Image.Image | Tensor | None:
        raw = self.images[index]
        try:
            return decode_image(raw)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            # PIL reports a broken PNG as SyntaxError and a broken header as ValueError.
            description = f"image {index} of {self.name}{_path_of(raw)}: {error}"
        if self.on_bad_image == "error":
            raise DataError(
                f'Cannot read {description}. Remove it, or pass on_bad_image="skip" to leave such images out.'
            )
        self.bad_images.append(description)
        return None


def _path_of(raw: Raw) -> str:
    path = raw.get("path") if isinstance(raw, Mapping) else raw if isinstance(raw, str | os.PathLike) else None
    return f" ({path})" if path else ""


def decode_image(raw: Raw) -> Image.Image | Tensor:
    """An RGB image from any supported form; grey, palette, transparent, CMYK and 16-bit images are converted."""
    if isinstance(raw, Tensor):
        return raw
    if isinstance(raw, Mapping):
        raw = io.BytesIO(raw["bytes"]) if raw.get("bytes") else raw["path"]
    elif isinstance(raw, bytes):
        raw = io.BytesIO(raw)
    if isinstance(raw, Image.Image):
        return _as_rgb(raw)
    if raw is None:
        raise ValueError("there is no image")
    with Image.open(raw) as image:
        return _as_rgb(image)


def _as_rgb(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        # PIL clips 16-bit grey to 8 bits instead of scaling it.
        image = image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    if image.mode in ("P", "PA", "LA"):
        image = image.convert("RGBA")
    if image.mode == "RGBA":
        # Onto white: what hides under full transparency is arbitrary.
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _pixel_values(images: list[Any], processor: Any) -> Tensor:
    if all(isinstance(image, Tensor) for image in images):
        return torch.stack(images).float()
    if processor is None:
        raise DataError(
            "Raw images need an image processor and the model has none beside it. Pass image_processor=…, or a "
            "DataLoader of ready `pixel_values`."
        )
    return processor(images=images, return_tensors="pt")["pixel_values"].float()


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
        split: of a Hub data set; by default `train` for want of a better name, or the only one there is.
        label2id: the model's classes; labels are matched to them by name where both have names.
        limit: images to take from an iterable of batches, which is read once and held in memory.

    Raises:
        DataError: nothing is there, or nothing in it is an image.
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
    """Ready batches: tensors, or mappings with `pixel_values` and perhaps `labels`."""
    images: list[Tensor] = []
    labels: list[int] = []
    for batch in batches:
        if isinstance(batch, Mapping) and "pixel_values" in batch:
            pixel_values, batch_labels = batch["pixel_values"], batch.get("labels")
        elif isinstance(batch, Tensor):
            pixel_values, batch_labels = batch, None
        elif isinstance(batch, Sequence) and batch and isinstance(batch[0], Tensor):
            pixel_values, batch_labels = batch[0], batch[1] if len(batch) > 1 else None
        else:
            raise DataError(
                f"A batch is a {type(batch).__name__}; give tensors or mappings with `pixel_values` (and `labels`)."
            )
        images.extend(pixel_values)
        if batch_labels is not None:
            labels.extend(int(label) for label in batch_labels)
        if limit is not None and len(images) >= limit:
            break
    return ImageSource(
        images, labels if len(labels) == len(images) and labels else None, "the DataLoader", on_bad_image
    )


__all__ = ["Batch", "ImageSource", "decode_image", "open_images"]
