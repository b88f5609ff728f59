"""Images that come one after the other: drawn once, as many as are wanted, and held in memory."""

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from ..config import OnBadImage
from ..errors import DataError, DataWarning
from ..runtime.random_state import seeded
from ..runtime.run import STREAM_IMAGES
from .images import ImageSource
from .labels import FoundLabels
from .options import DataOptions
from .samples import Sample, let_go, samples_of, size_of
from .tables import image_column, label_column

HELD_BYTES = 4 * 2**30
"""Of images of a stream, about, however many are wanted."""


def from_samples(
    samples: list[Sample], name: str, on_bad_image: OnBadImage, names: list[str] | None = None
) -> ImageSource:
    """Images that are in memory.

    Args:
        names: of the classes, where the samples' labels are numbers of them.
    """
    about = [sample.about for sample in samples]
    labels = [sample.label for sample in samples]
    where = f"the {name.split(' of ')[-1].removeprefix('the ')}"
    found = FoundLabels(labels, names, where) if any(label is not None for label in labels) else None
    images = [sample.image for sample in samples]
    return ImageSource(images, None, name, on_bad_image, inputs=about if any(about) else None, found=found)


def from_stream(
    items: Iterable[Any], name: str, on_bad_image: OnBadImage, limit: int | None, names: list[str] | None = None
) -> ImageSource:
    """What an iterable gives: images, samples or batches. It is drawn from once, and no further than is wanted.

    Args:
        limit: number of images that are wanted; the batch that reaches it is taken whole. Without it, `STREAM_IMAGES`
            are drawn, with a warning, as a stream need not have an end.
        names: see `from_samples`.

    Raises:
        DataError: an item is not an image, a sample or a batch; or the iterable itself raises something.
    """
    samples: list[Sample] = []
    wanted, held = STREAM_IMAGES if limit is None else limit, 0
    with seeded(0):  # every process draws the same
        for found in drawn(items, name):
            samples += [replace(sample, image=let_go(sample.image)) for sample in found]
            held += sum(size_of(sample.image) for sample in samples[-len(found) :])
            if len(samples) >= wanted or held >= HELD_BYTES:
                break
    if held >= HELD_BYTES or (limit is None and len(samples) >= wanted):
        warnings.warn(
            f"{len(samples):,} images were drawn from {name}, {held / 2**20:,.0f} MB in memory; any others are not "
            f"used. To use more, give `open_images` a larger limit (up to {HELD_BYTES / 2**30:g} GB), or give a folder "
            "or a data set whose images can be read one by one.",
            DataWarning,
            stacklevel=4,
        )
    return from_samples(samples, name, on_bad_image, names)


def drawn(items: Iterable[Any], name: str) -> Iterator[list[Sample]]:
    """The samples of each item.

    Raises:
        DataError: see `from_stream`.
    """
    count = 0
    try:
        for item in items:
            found = samples_of(item)
            count += len(found)
            yield found
    except DataError as error:
        raise DataError(f"{_failed(name, count)}: {error}") from error
    except Exception as error:  # the iterable is anybody's code, and raises anything
        said = str(error).strip().partition("\n")[0] or "without a message"
        raise DataError(f"{_failed(name, count)}: {type(error).__name__}, {said}") from error


def _failed(name: str, count: int) -> str:
    return f"{name[0].upper()}{name[1:]} cannot be read{f' past {count} images' if count else ''}"


def from_iterable_dataset(
    dataset: Any, name: str, on_bad_image: OnBadImage, options: DataOptions, limit: int | None
) -> ImageSource:
    """The images of a `datasets.IterableDataset`, as files that are not decoded yet where its features say which.

    Args:
        options: which of its columns to take.
        limit: see `from_stream`.

    Raises:
        DataError: see `from_stream`; or there is no such column.
    """
    import datasets

    features, column, label = dataset.features or {}, options.image_column, options.label_column
    if features:
        column = image_column(features, name, column)
        label = label_column(features, column, name, label)
    names = getattr(features.get(label), "names", None)
    if isinstance(features.get(column), datasets.Image):
        dataset = dataset.with_format(None).select_columns([column] if label is None else [column, label])
        dataset = dataset.cast_column(column, datasets.Image(decode=False))
    elif options.image_column is None and options.label_column is None:
        return from_stream(dataset, name, on_bad_image, limit, names)  # of samples, with whatever else is in them
    elif column is None:
        raise DataError(f"The columns of {name} are not known before it is read: say image_column, too.")
    items = (row[column] if label is None else (row[column], row[label]) for row in dataset)
    return from_stream(items, name, on_bad_image, limit, names)
