"""Images of data sets and loaders that are read one by one, by their index, whenever they are asked for."""

import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from accelerate.data_loader import BatchSamplerShard
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Subset, TensorDataset

from ..config import OnBadImage
from ..errors import DataError
from ..runtime.random_state import seeded
from ..runtime.run import STREAM_IMAGES
from .decoding import Raw, UnreadableImageError
from .images import ImageSource
from .labels import FoundLabels
from .samples import Sample, samples_of
from .tables import LABEL_COLUMNS

TRIED = 8
"""So many samples, evenly over a data set, tell what it holds."""
KEPT = 128
"""Of so many images, what is known about them is kept until the batch that they were read for is complete."""


class Samples(Sequence[Sample]):
    """The samples of a map-style data set, none of which is held.

    A sample is the same whenever it is read, though the data set may augment it: its transforms draw from a random
    state that its index decides.

    Args:
        data: anything with `data[place]`.
        places: of the samples in it.
        collate: makes a batch of a list of items; by default the item itself is the sample.
        name: of the data set.
    """

    def __init__(self, data: Any, places: Sequence[Any], collate: Callable[[list[Any]], Any] | None, name: str) -> None:
        self.data, self.places, self.collate, self.name = data, places, collate, name
        self._about: OrderedDict[int, Mapping[str, Tensor]] = OrderedDict()

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Any) -> Any:
        """The sample at `index`.

        Raises:
            UnreadableImageError: the data set raises something.
            DataError: what it returns is not one sample.
        """
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        if not 0 <= index < len(self):
            raise IndexError(index)
        with seeded(index):
            item = self._read(index)
        found = samples_of(item)
        if len(found) != 1:
            raise DataError(f"item {index} of {self.name} holds {len(found)} images instead of one")
        if found[0].about:
            self._about[index] = found[0].about
            if len(self._about) > KEPT:
                self._about.popitem(last=False)
        return found[0]

    def _read(self, index: int) -> Any:
        try:
            item = self.data[self.places[index]]
            return item if self.collate is None else self.collate([item])
        except Exception as error:  # the data set and its transforms are anybody's code, and raise anything
            said = str(error).strip().partition("\n")[0].rstrip(".")
            raise UnreadableImageError(f"{type(error).__name__}{f', {said}' if said else ''}") from error

    def about(self, index: int) -> Mapping[str, Tensor]:
        """What is known of the sample at `index`, without reading it again if it was read just now."""
        return self._about[index] if index in self._about else self[index].about


class Images(Sequence[Raw]):
    """The images of samples."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: Any) -> Any:
        return self.samples[index].image


class About(Sequence[Mapping[str, Tensor]]):
    """What is known of each of some samples."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: Any) -> Any:
        return self.samples.about(index)


def from_indexed(
    data: Any,
    name: str,
    on_bad_image: OnBadImage,
    labels: bool,
    places: Sequence[Any] | None = None,
    collate: Callable[[list[Any]], Any] | None = None,
) -> ImageSource | None:
    """The images of a map-style data set of samples; `None` if its first items are not samples.

    Args:
        data: anything with a length and with `data[index]`.
        labels: whether labels are wanted even if every sample has to be read for them.
        places, collate: see `Samples`.

    Raises:
        DataError: an item is not an image, a sample or a batch.
    """
    samples = Samples(data, range(len(data)) if places is None else places, collate, name)
    beside = labels_beside(data)
    if beside is not None and places is not None:
        beside = replace(beside, values=[beside.values[place] for place in places])
    return of_samples(samples, ImageSource(samples, None, name, on_bad_image, found=beside), labels)


def of_samples(samples: Samples, source: ImageSource, labels: bool) -> ImageSource | None:
    """`source` with the images of samples; `None` if its items are not samples.

    Its own labels stay, unless the samples have others.

    Raises:
        DataError: none of those that are tried can be read.
    """
    tried = tried_samples(samples)
    if tried is None or not len(samples):
        return None if tried is None else source
    found, theirs = source.found, [sample.label for sample in tried.values()]
    if any(label is not None for label in theirs):
        if found is None:
            names = class_names(samples.data)
            found = FoundLabels(_read_labels(samples), names, source.name) if labels else None
        elif not all(_same(found.values[index], sample.label) for index, sample in tried.items()):
            found = FoundLabels(_read_labels(samples), None, source.name) if labels else None
    about = About(samples) if any(sample.about for sample in tried.values()) else None
    return replace(source, images=Images(samples), inputs=about, found=found)


def tried_samples(samples: Samples) -> dict[int, Sample] | None:
    """Some samples that can be read, by their index; `None` if one of them is not a single sample.

    Raises:
        DataError: none can be read.
    """
    tried, failed = {}, ""
    count = min(TRIED, len(samples))
    for index in [place * (len(samples) - 1) // max(1, count - 1) for place in range(count)]:
        try:
            tried[index] = samples[index]
        except UnreadableImageError as error:
            failed = str(error)
        except DataError:
            return None
    if failed and not tried:
        raise DataError(f"None of {count} images of {samples.name} that were tried can be read: {failed}.")
    return tried


def _same(label: Any, other: Any) -> bool:
    if label is None or other is None:
        return label is other
    if isinstance(label, Tensor) or isinstance(other, Tensor):
        return torch.equal(torch.as_tensor(label), torch.as_tensor(other))
    return bool(label == other)


def _read_labels(samples: Samples) -> list[Any]:
    """Of every sample; `None` of those that cannot be read, which will be left out."""
    values = []
    for index in range(len(samples)):
        try:
            values.append(samples[index].label)
        except UnreadableImageError:
            values.append(None)
    return values


def labels_beside(data: Any) -> FoundLabels | None:
    """Labels that a data set holds beside its samples, so that these need not be read; those of torchvision do.

    The parts of a data set (`Subset`, `random_split`, `ConcatDataset`) have those of the whole.
    """
    if isinstance(data, Subset):
        whole = labels_beside(data.dataset)
        return None if whole is None else replace(whole, values=[whole.values[i] for i in data.indices])
    if isinstance(data, ConcatDataset):
        parts = [labels_beside(part) for part in data.datasets]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts) or any(part.names != known[0].names for part in known):
            return None
        return replace(known[0], values=[value for part in known for value in part.values])
    if hasattr(data, "features") and hasattr(data, "with_format"):  # of `datasets`, which is slow to import
        column = next((key for key in LABEL_COLUMNS if key in data.features), None)
        names = getattr(data.features.get(column), "names", None)
        return None if column is None else FoundLabels(list(data.with_format(None)[column]), names, "the data set")
    if isinstance(data, TensorDataset):
        values: Any = data.tensors[1] if len(data.tensors) > 1 else None
    else:
        values = next((getattr(data, name) for name in ("targets", "labels") if hasattr(data, name)), None)
    if not isinstance(values, Sequence | Tensor | np.ndarray) or len(values) != len(data):
        return None
    plain = values if isinstance(values, Sequence) else values.tolist() if values.ndim == 1 else list(values)
    return FoundLabels(plain, class_names(data), "the data set")


def class_names(data: Any) -> list[str] | None:
    """Of a data set of torchvision's kind or of a part of one, by their index."""
    while isinstance(data, Subset):
        data = data.dataset
    names = getattr(data, "classes", None)
    if not isinstance(names, list | tuple) or not names:
        return None
    return [", ".join(name) if isinstance(name, tuple) else str(name) for name in names]


def from_loader(
    loader: "DataLoader[Any]", name: str, on_bad_image: OnBadImage, limit: int | None, labels: bool
) -> ImageSource | None:
    """The images that a pass over a `DataLoader` would give, each read and collated by itself.

    `None` if it can only be drawn from: its data set is a stream, or its collator makes no batch of one item.
    """
    if isinstance(loader.dataset, IterableDataset) or loader.batch_sampler is None:
        return None
    if not hasattr(loader.dataset, "__getitem__"):
        return None
    places = _places(loader, limit)
    try:
        return from_indexed(loader.dataset, name, on_bad_image, labels, places, loader.collate_fn)
    except DataError:  # of one item: whether it makes batches of several shows when it is drawn from
        return None


def _places(loader: "DataLoader[Any]", limit: int | None) -> list[Any]:
    """Which items a pass reads; of a sampler without an end as many as are wanted."""
    sampler: Any = loader.batch_sampler
    if isinstance(sampler, BatchSamplerShard):  # the loader's part for one of several processes, which share the work
        sampler = sampler.batch_sampler
    places: list[Any] = []
    with seeded(0), unchanged_generators(loader):
        try:
            count: int | None = len(sampler)
        except TypeError:
            count = None
        for batch in itertools.islice(sampler, count):
            places += batch
            if count is None and len(places) >= (STREAM_IMAGES if limit is None else limit):
                break
    return places


@contextmanager
def unchanged_generators(loader: Any) -> Iterator[None]:
    """A block that leaves the generators of a loader and of its sampler as they were, for its owner's next pass."""
    owners = (loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None))
    with ExitStack() as stack:
        for generator in [getattr(owner, "generator", None) for owner in owners]:
            if isinstance(generator, torch.Generator):
                stack.callback(generator.set_state, generator.get_state())
        yield
