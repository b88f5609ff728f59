"""Images that are in memory, or that come as batches: lists, tensors and loaders."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ..config import OnBadImage
from ..errors import DataError
from .images import ImageSource
from .labels import FoundLabels


def from_memory(data: Any, on_bad_image: OnBadImage, limit: int | None) -> ImageSource:
    """Images one by one, one batch of them, or an iterable of batches.

    Raises:
        DataError: it is nothing of that kind.
    """
    if not isinstance(data, Iterable) or getattr(data, "ndim", 3) < 3:
        raise DataError(f"Images cannot be taken from {_kind(data)}.")
    if isinstance(data, Mapping):
        return _from_batches([data], on_bad_image, limit)
    if isinstance(data, Tensor) or (isinstance(data, Sequence) and data and not _is_batch(data[0])):
        return ImageSource(list(data), None, "the list of images", on_bad_image)
    one_batch = isinstance(data, Sequence) and len(data) == 2 and _is_batch(data[0]) and _are_labels(data[1])
    return _from_batches([data] if one_batch else data, on_bad_image, limit)


def _is_batch(item: Any) -> bool:
    """Whether an item of a sequence is a batch, and not an image."""
    return isinstance(item, Mapping | list | tuple) or (isinstance(item, Tensor) and item.dim() > 3)


def _are_labels(item: Any) -> bool:
    """Whether the second of two items are labels of the first, and not a batch of its own."""
    return not _is_batch(item) or (isinstance(item, list | tuple) and not any(map(_is_batch, item)))


def _from_batches(batches: Iterable[Any], on_bad_image: OnBadImage, limit: int | None) -> ImageSource:
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
    found = FoundLabels(labels, None, "the batches") if labels and len(labels) == len(images) else None
    return ImageSource(
        images, None, "the DataLoader", on_bad_image, inputs=inputs if any(inputs) else None, found=found
    )


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
