"""Samples and batches, in every form in which data sets and loaders hand them on."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFile
from torch import Tensor

from ..errors import DataError
from .arrays import CHANNELS
from .decoding import Raw
from .tables import IMAGE_COLUMNS, LABEL_COLUMNS

IMAGE_KEYS = ("pixel_values", *IMAGE_COLUMNS)
"""Under which name a sample has its image; the first that there is. What a processor made comes before the picture."""
OF_PATCHES = ("pixel_attention_mask", "spatial_shapes")
"""What stands beside `pixel_values` that are patches: (patches, features) of an image."""

ACCEPTED = (
    "Images are PIL images, paths, bytes, arrays or tensors; samples are mappings with `pixel_values` or `image`, or "
    "pairs (image, label); batches are tensors (n, channels, height, width), pairs of these and labels, or mappings "
    "with such `pixel_values`."
)


@dataclass(frozen=True)
class Sample:
    """An image and what was handed on with it.

    Attributes:
        image: not yet decoded.
        label: as it was handed on; `None` without.
        about: what else is known of it, by the name of the model's argument.
    """

    image: Raw
    label: Any = None
    about: Mapping[str, Tensor] = field(default_factory=dict)


def has_images(item: Mapping[str, Any]) -> bool:
    """Whether a mapping is a sample or a batch."""
    return any(key in item for key in IMAGE_KEYS)


def samples_of(item: Any) -> list[Sample]:
    """One sample of an image or of a sample, and n samples of a batch of n.

    Raises:
        DataError: it is none of these.
    """
    if isinstance(item, Mapping) and not is_image(item) and has_images(item):
        return _of_mapping(item)
    if isinstance(item, list | tuple) and item and not is_image(item):
        if _is_pair(item):
            return _of_pair(item[0], item[1], {})
        return [sample for part in item for sample in samples_of(part)]
    return _of_pair(item, None, {})


def is_pair(item: Any) -> bool:
    """Whether a sequence of two is one batch, of images and their labels, and not two items."""
    if not isinstance(item, list | tuple) or len(item) != 2 or not _are_images(item[0]):
        return False
    images, second = item
    if isinstance(second, Tensor | np.ndarray):
        return second.ndim <= 3
    return isinstance(second, list | tuple) and not any(
        _are_images(part) or _are_alike(images[0], part) or (isinstance(part, Mapping) and has_images(part))
        for part in second
    )


def is_image(item: Any) -> bool:
    """Whether something may be one image, as far as can be said without reading it."""
    if isinstance(item, Mapping):
        return bool(item) and item.keys() <= {"bytes", "path"}
    if isinstance(item, Tensor | np.ndarray):
        return item.ndim == 3 or (item.ndim == 2 and not (isinstance(item, Tensor) and item.is_floating_point()))
    # Where an image is missing, it cannot be read, and is left out.
    return item is None or isinstance(item, Image.Image | bytes | str | os.PathLike) or hasattr(item, "seek")


def _are_images(item: Any) -> bool:
    """Whether something is a batch of images, without anything else."""
    if isinstance(item, Tensor | np.ndarray):
        return item.ndim > 3
    return isinstance(item, list | tuple) and bool(item) and all(map(is_image, item))


def _is_pair(item: Sequence[Any]) -> bool:
    """Whether a list or tuple begins with images and their labels.

    A tuple does whatever its second part is: what a data set returns as a tuple is an input and a target, which may
    be an image itself. A list may be a batch of images.
    """
    if len(item) < 2:
        return False
    first, second = item[0], item[1]
    if is_image(first):
        return isinstance(item, tuple) or not _are_alike(first, second)
    return _are_images(first) and (isinstance(first, Tensor | np.ndarray) or is_pair(item[:2]))


def _are_alike(image: Any, other: Any) -> bool:
    """Whether something is an image of the same sort as another one."""
    if isinstance(image, Tensor | np.ndarray) and isinstance(other, Tensor | np.ndarray):
        return image.ndim == other.ndim
    return is_image(other) and type(image) is type(other)


def _of_mapping(item: Mapping[str, Any]) -> list[Sample]:
    name = next(key for key in IMAGE_KEYS if key in item)
    label_name = next((key for key in LABEL_COLUMNS if key in item), None)
    others = {key: value for key, value in item.items() if key not in (name, label_name)}
    about = {}
    if name == "pixel_values":  # what a processor made of a picture says nothing that it will not say again
        arrays = {key: as_tensor(value) for key, value in others.items() if _is_array(value)}
        about = {key: value for key, value in arrays.items() if value.dim() > 0}
    return _of_pair(item[name], None if label_name is None else item[label_name], about)


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, np.ndarray) and value.dtype.kind in "biuf")


def _of_pair(image: Any, label: Any, about: Mapping[str, Tensor]) -> list[Sample]:
    image, label = _plain(image), _plain_label(label)
    if not _is_batch(image, label, about):
        if not is_image(image) and not (_is_array(image) and any(key in about for key in OF_PATCHES)):
            raise DataError(f"{kind_of(image)} is not an image, a sample or a batch. {ACCEPTED}")
        return [Sample(image, label, about)]
    count = len(image)
    if label is not None and _length(label) != count:
        raise DataError(
            f"a batch holds {kind_of(image)} and {kind_of(label)} as its labels. There has to be one label for each "
            "image."
        )
    own = {key: value for key, value in about.items() if len(value) == count}
    labels = [None] * count if label is None else label
    return [
        Sample(_plain(image[i]), _plain_label(labels[i]), {key: value[i] for key, value in own.items()})
        for i in range(count)
    ]


def _is_batch(image: Any, label: Any, about: Mapping[str, Tensor]) -> bool:
    """Whether these are several images; of patches (n, patches, features) what stands beside them tells."""
    if not _is_array(image) or image.ndim != 3:
        return _are_images(image)
    if any(key in about for key in OF_PATCHES):
        return any(about[key].dim() == 2 and len(about[key]) == len(image) for key in OF_PATCHES if key in about)
    return len(image) not in CHANNELS and _length(label) == len(image)


def _plain(image: Any) -> Any:
    """Ready `pixel_values` as tensors, if they are an array of any library or nested lists, as `map` stores them."""
    if isinstance(image, list) and image and isinstance(image[0], list) and not _are_images(image):
        try:
            image = np.asarray(image, dtype=np.float32 if _holds_floats(image) else np.uint8)
        except (ValueError, TypeError, OverflowError):
            return image  # not of numbers, or not of one shape
    if not isinstance(image, Image.Image | Tensor | np.ndarray) and hasattr(image, "__array__"):
        image = np.asarray(image)
    ready = isinstance(image, np.ndarray) and image.dtype.kind == "f" and image.ndim >= 3
    return as_tensor(image) if ready else image


def as_tensor(array: Tensor | np.ndarray) -> Tensor:
    """Tensors share no memory that is not to be written to, and have no negative strides: both are copied."""
    return array if isinstance(array, Tensor) else torch.from_numpy(np.require(array, requirements=["C", "W"]))


def _holds_floats(nested: Any) -> bool:
    while isinstance(nested, list) and nested:
        nested = nested[0]
    return isinstance(nested, float)


def _plain_label(label: Any) -> Any:
    """Numbers of other libraries as Python's, and their arrays and maps of pixels as tensors."""
    if isinstance(label, Image.Image) or (hasattr(label, "__array__") and not isinstance(label, Tensor)):
        label = np.asarray(label)
    if not isinstance(label, np.ndarray):
        return label
    return label.item() if label.ndim == 0 else as_tensor(label) if label.dtype.kind in "biuf" else list(label)


def let_go(image: Raw) -> Raw:
    """The path of a picture whose file is open and not read yet, as thousands of open files are refused."""
    if isinstance(image, ImageFile.ImageFile) and getattr(image, "fp", None) is not None:
        path = getattr(image, "filename", None)
        if isinstance(path, str | os.PathLike) and path and os.path.isfile(path):
            return os.fspath(path)
    return image


def size_of(image: Raw) -> int:
    """Bytes of memory, about."""
    if isinstance(image, Tensor | np.ndarray):
        return image.nbytes
    if isinstance(image, Mapping):
        return len(image.get("bytes") or b"")
    if isinstance(image, Image.Image):
        return image.width * image.height * len(image.getbands())
    return len(image) if isinstance(image, bytes) else 0


def _length(labels: Any) -> int | None:
    """`None` of a single value."""
    try:
        return len(labels)
    except TypeError:
        return None


def kind_of(value: Any) -> str:
    """What it is, for a message."""
    if isinstance(value, Tensor | np.ndarray):
        return f"{'a tensor' if isinstance(value, Tensor) else 'an array'} of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a mapping with {', '.join(map(str, value)) or 'nothing in it'}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {', '.join(type(item).__name__ for item in value[:3]) or 'nothing'}"
    return f"a value of type {type(value).__name__}"
