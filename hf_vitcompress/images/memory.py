"""Images that Python objects hold or give: lists, tensors, torch data sets, loaders and streams."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from ..config import OnBadImage
from ..errors import DataError
from .arrays import CHANNELS
from .images import ImageSource
from .indexed import class_names, from_indexed, from_loader, unchanged_generators
from .samples import ACCEPTED, Sample, as_tensor, is_pair, kind_of, samples_of
from .streams import drawn, from_samples, from_stream

FRAMES = ("pandas", "polars")
"""Libraries of tables, which iterate over the names of their columns."""
FLOATS = (np.dtype("float16"), np.dtype("float32"), np.dtype("float64"))


def from_memory(data: Any, on_bad_image: OnBadImage, limit: int | None = None, labels: bool = True) -> ImageSource:
    """Images, samples or batches, in a sequence, in a data set or in an iterable; or one batch.

    What can be indexed is read image by image whenever it is asked for, and stays where it is; all else is drawn from
    once.

    Args:
        limit: number of images to draw from what cannot be indexed.
        labels: whether labels are wanted even if every sample of a data set has to be read for them.

    Raises:
        DataError: it is nothing of that kind.
    """
    _check_holds_images(data)
    if isinstance(data, Mapping) or is_pair(data):
        return from_samples(next(drawn([data], "the batch")), "the batch", on_bad_image)
    if isinstance(data, Tensor | np.ndarray):
        return from_samples(_of_array(data), "the tensor", on_bad_image)
    if isinstance(data, list | tuple):
        found = list(drawn(data, "the list of images"))
        name = "the list of batches" if any(len(samples) > 1 for samples in found) else "the list of images"
        return from_samples([sample for samples in found for sample in samples], name, on_bad_image)
    indexed = _is_indexed(data)
    name = "the DataLoader" if isinstance(data, DataLoader) else "the data set" if indexed else "the stream of images"
    if isinstance(data, DataLoader):
        source = from_loader(data, name, on_bad_image, limit, labels)
    else:
        source = from_indexed(data, name, on_bad_image, labels) if indexed else None
    if source is not None:
        return source
    items = data if isinstance(data, Iterable) else (data[index] for index in range(len(data)))
    with unchanged_generators(data):
        return from_stream(items, name, on_bad_image, limit, class_names(getattr(data, "dataset", data)))


def _of_array(data: Tensor | np.ndarray) -> list[Sample]:
    """Of images (n, …), or of a single one with its channels first or last."""
    if data.ndim == 3 and (len(data) in CHANNELS or data.shape[-1] in CHANNELS):
        return samples_of(data)
    return [Sample(image) for image in (as_tensor(data) if data.dtype in FLOATS else data)]


def _is_indexed(data: Any) -> bool:
    """Whether items can be asked for; a torch stream has inherited a method for that, which it does not use."""
    return hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, IterableDataset)


def _check_holds_images(data: Any) -> None:
    """That there may be images in it.

    Raises:
        DataError: it is one value, or a table of another library.
    """
    library = type(data).__module__.partition(".")[0]
    if library in FRAMES:
        raise DataError(
            f"Images cannot be taken from a {library} {type(data).__name__}. `datasets.Dataset.from_{library}` makes a "
            "data set of a DataFrame, whose column of images is then found."
        )
    indexed = _is_indexed(data)
    if not (isinstance(data, Iterable) or indexed) or isinstance(data, bytes) or getattr(data, "ndim", 3) < 3:
        lacking = ", which has no length (`__len__`)" if hasattr(data, "__getitem__") and not indexed else ""
        raise DataError(f"Images cannot be taken from {kind_of(data)}{lacking}. {ACCEPTED}")
