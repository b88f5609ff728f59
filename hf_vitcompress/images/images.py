"""Images in a fixed order, decoded and preprocessed batch by batch, and what is known about each of them."""

import os
import random
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from ..config import OnBadImage
from ..errors import DataError
from ..runtime.distributed import gather_objects
from .classes import UNLABELLED, Classes
from .decoding import Raw, UnreadableImageError, decode_image, read_image
from .labels import FoundLabels, Matched, labels_for
from .preprocessing import preprocess, stacked
from .tally import Tally, check_readable, tell_left_out

T = TypeVar("T")


@dataclass
class Batch:
    """Images that a model processes together.

    Attributes:
        index: number of the batch, from 0; batches without a readable image are counted, but do not appear.
        pixel_values: (n, channels, height, width), or (n, patches, features), float32.
        labels: class indices (n,) int64, `UNLABELLED` where one is not known; `None` if none is.
        positions: positions in the batch of the images that could be read.
        inputs: further inputs of the model, each (n, …), by argument name.
        targets: `labels` for the model's own loss if they are more than classes: a mapping for each image, or a tensor
            (n, …).
    """

    index: int
    pixel_values: Tensor
    labels: Tensor | None
    positions: list[int] = field(default_factory=list)
    inputs: dict[str, Tensor] = field(default_factory=dict)
    targets: list[dict[str, Any]] | Tensor | None = None

    def targets_on(self, device: torch.device) -> list[dict[str, Any]] | Tensor | None:
        """`labels` for the model's own loss, on `device`: the targets, or else the class indices."""
        if isinstance(self.targets, list):
            return [
                {name: value.to(device) if isinstance(value, Tensor) else value for name, value in target.items()}
                for target in self.targets
            ]
        targets = self.labels if self.targets is None else self.targets
        return None if targets is None else targets.to(device)


@dataclass
class ImageSource:
    """Images in a fixed order, decoded on demand.

    Attributes:
        images: undecoded images.
        labels: indices of the model's classes, `UNLABELLED` where one is not known, or `None`; see `matched`.
        name: where they come from, for messages and reports.
        on_bad_image: what to do with an image that cannot be read.
        hub_id: of the data set they come from; `None` for others.
        split: of that data set, or of the folder; `None` if there is only one.
        targets: for each image what the model's own loss takes as `labels`, where that is more than a class: a map of
            pixels, or a mapping with boxes; `None` without.
        inputs: for each image what else is known about it, by the name of the model's argument; `None` without.
        found: labels as the images have them, not matched to any model; `None` without.
        matching: how they were matched to a model's classes; `None` until they are.
        numbers: of each image in what was opened, where this is a part of it; `None` for all of it.
        tally: which were read so far, and which were left out, by these numbers; a copy begins anew.
        digests: of the content of each image, without and with its labels, once `digest` has looked at them.
    """

    images: Sequence[Raw]
    labels: Sequence[int] | None
    name: str
    on_bad_image: OnBadImage = "skip"
    hub_id: str | None = None
    targets: Sequence[Any] | None = None
    inputs: Sequence[Mapping[str, Tensor]] | None = None
    found: FoundLabels | None = None
    matching: Matched | None = None
    split: str | None = None
    numbers: Sequence[int] | None = None
    tally: Tally = field(init=False, compare=False)
    digests: dict[bool, list[str]] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        self.tally, self.digests = Tally(len(self.images)), {}

    def __len__(self) -> int:
        return len(self.images)

    @property
    def bad_images(self) -> list[str]:
        """Descriptions of the images that were left out so far, each with its place and the reason."""
        return list(self.tally.bad.values())

    def select(self, indices: Sequence[int]) -> "ImageSource":
        """The images at `indices`, sharing nothing that changes."""

        def chosen(values: Sequence[T] | None) -> list[T] | None:
            return None if values is None else [values[i] for i in indices]

        return replace(
            self,
            images=[self.images[i] for i in indices],
            labels=chosen(self.labels),
            targets=chosen(self.targets),
            inputs=chosen(self.inputs),
            found=None if self.found is None else replace(self.found, values=[self.found.values[i] for i in indices]),
            numbers=chosen(range(len(self)) if self.numbers is None else self.numbers),
        )

    def matched(self, classes: Classes | None) -> "ImageSource":
        """The same images, with the labels that were found as a model's classes; once only.

        Args:
            classes: of the model; `None` keeps the images' own numbers until it is known.
        """
        if self.found is None or self.matching is not None:
            return self
        found = labels_for(self.found, classes, self.name)
        matching = None if classes is None else Matched(how=found.how, problem=found.problem)
        return replace(self, labels=found.labels, targets=found.targets, matching=matching)

    def labelled(self) -> "ImageSource":
        """Those of the images whose label or target is known; itself where all are."""
        targets, labels = self.targets, self.labels
        known = [
            i
            for i in range(len(self))
            if (labels is not None and labels[i] != UNLABELLED) or (targets is not None and targets[i] is not None)
        ]
        return self if len(known) == len(self) else self.select(known)

    def sample(self, count: int | None, seed: int) -> "ImageSource":
        """At most `count` images in an order drawn from `seed`."""
        order = random.Random(seed).sample(range(len(self)), len(self))
        return self.select(order[:count])

    def batches(self, processor: Any, batch_size: int, wanted: Iterable[int] | None = None) -> Iterator[Batch]:
        """Decode and preprocess batch by batch.

        Args:
            wanted: indices of the batches to read; by default all.

        Raises:
            DataError: an image cannot be read and `on_bad_image` is `"error"`, or most cannot be read; or images of a
                batch do not have one size.
        """
        for index in range(self.batch_count(batch_size)) if wanted is None else wanted:
            start = index * batch_size
            indices = range(start, min(start + batch_size, len(self)))
            decoded = [(i, image) for i in indices if (image := self._decode(i)) is not None]
            if not decoded:
                continue
            kept = [i for i, _ in decoded]
            labels = None if self.labels is None else torch.tensor([self.labels[i] for i in kept])
            pixel_values, inputs = preprocess([image for _, image in decoded], processor)
            inputs |= self._inputs(kept)
            yield Batch(index, pixel_values, labels, [i - start for i in kept], inputs, self._targets(kept))
        if wanted is None:
            check_readable(self.name, len(self.tally.good), len(self.tally.bad), self.bad_images)

    def _inputs(self, indices: Sequence[int]) -> dict[str, Tensor]:
        if self.inputs is None:
            return {}
        own = [self.inputs[i] for i in indices]
        names = set.intersection(*(set(inputs) for inputs in own))
        return {name: stacked([inputs[name] for inputs in own], f"`{name}`") for name in sorted(names)}

    def _targets(self, indices: Sequence[int]) -> list[dict[str, Any]] | Tensor | None:
        if self.targets is None or any(self.targets[i] is None for i in indices):
            return None
        own = [self.targets[i] for i in indices]
        if all(isinstance(target, Mapping) for target in own):
            return [dict(target) for target in own]
        return stacked([torch.as_tensor(target) for target in own], "Targets")

    def batch_count(self, batch_size: int) -> int:
        return -(-len(self) // batch_size)

    def account(self, accelerator: Accelerator, good: int | None = None, bad: int | None = None) -> int:
        """How many images were left out on all processes; the main one warns of them.

        Args:
            good, bad: how many were read and left out in all, where that is more than what this source has seen.

        Raises:
            DataError: most could not be read.
        """
        read, left_out = self._gathered(accelerator)
        good, bad = (read, len(left_out)) if good is None or bad is None else (good, bad)
        check_readable(self.name, good, bad, left_out)
        if accelerator.is_main_process:
            tell_left_out(self.name, good, bad, left_out)
        return bad

    def check_any(self, accelerator: Accelerator) -> None:
        """That at least one of the images tried on all processes could be read.

        Raises:
            DataError: none could.
        """
        read, left_out = self._gathered(accelerator)
        if not read:
            check_readable(self.name, read, len(left_out), left_out)

    def _gathered(self, accelerator: Accelerator) -> tuple[int, list[str]]:
        """How many images all processes have read, and which they have left out."""
        tallies = gather_objects(accelerator, (len(self.tally.good), self.bad_images))
        return sum(read for read, _ in tallies), [text for _, left_out in tallies for text in left_out]

    def decoded(self, index: int) -> Image.Image | Tensor:
        """The image at `index`, in RGB."""
        return decode_image(self.images[index])

    def repaired(self, numbers: Collection[int]) -> bool:
        """Whether some images that could not be read before can be read now; those that still cannot are noted."""
        return any(self._decode(i) is not None for i in range(len(self)) if self.number(i) in numbers)

    def describe(self, index: int) -> str:
        """Where the image at `index` is found: its number in what was opened, and its path if it has one."""
        return self._place(index, self.images[index])

    def _place(self, index: int, raw: Raw) -> str:
        path = raw.get("path") if isinstance(raw, Mapping) else raw
        named = isinstance(path, str | os.PathLike) and path
        return f"image {self.number(index)} of {self.name}{f' ({path})' if named else ''}"

    def number(self, index: int) -> int:
        """Of the image at `index`, in what was opened."""
        return index if self.numbers is None else self.numbers[index]

    def _decode(self, index: int) -> Image.Image | Tensor | None:
        raw, number = self.images[index], self.number(index)
        try:
            image = read_image(raw)
        except UnreadableImageError as error:
            description = f"{self._place(index, raw)}: {error}"
            if self.on_bad_image == "error":
                raise DataError(
                    f'Cannot read {description}. Remove it, or pass on_bad_image="skip" to leave such images out.'
                ) from error
            self.tally.add_bad(number, description, self.name)
            return None
        self.tally.add_good(number)
        return image
