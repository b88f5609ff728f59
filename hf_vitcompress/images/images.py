"""Images in a fixed order, decoded and preprocessed batch by batch, and what is known about each of them."""

import io
import os
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..config import OnBadImage
from ..errors import DataError

T = TypeVar("T")

Raw = Any
"""An image not yet decoded: a path, bytes, `{"bytes": …, "path": …}`, a PIL image or a (channels, h, w) tensor."""


@dataclass
class Batch:
    """Images that a model processes together.

    Attributes:
        index: number of the batch, from 0; batches without a readable image are counted, but do not appear.
        pixel_values: (n, channels, height, width), or (n, patches, features), float32.
        labels: class indices (n,) int64; `None` if they are not known.
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
        labels: class indices, or `None`.
        name: where they come from, for messages and reports.
        on_bad_image: what to do with an image that cannot be read.
        bad_images: descriptions of those that were left out so far.
        hub_id: of the data set they come from; `None` for others.
        targets: for each image what the model's own loss takes as `labels`, where that is more than a class: a map of
            pixels, or a mapping with boxes; `None` without.
        inputs: for each image what else is known about it, by the name of the model's argument; `None` without.
    """

    images: Sequence[Raw]
    labels: Sequence[int] | None
    name: str
    on_bad_image: OnBadImage = "skip"
    bad_images: list[str] = field(default_factory=list)
    hub_id: str | None = None
    targets: Sequence[Any] | None = None
    inputs: Sequence[Mapping[str, Tensor]] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def select(self, indices: Sequence[int]) -> "ImageSource":
        """The images at `indices`, sharing nothing that changes."""

        def chosen(values: Sequence[T] | None) -> list[T] | None:
            return None if values is None else [values[i] for i in indices]

        return replace(
            self,
            images=[self.images[i] for i in indices],
            labels=chosen(self.labels),
            bad_images=[],
            targets=chosen(self.targets),
            inputs=chosen(self.inputs),
        )

    def sample(self, count: int | None, seed: int) -> "ImageSource":
        """At most `count` images in an order drawn from `seed`."""
        order = random.Random(seed).sample(range(len(self)), len(self))
        return self.select(order[:count])

    def batches(self, processor: Any, batch_size: int, wanted: Iterable[int] | None = None) -> Iterator[Batch]:
        """Decode and preprocess batch by batch.

        Args:
            wanted: indices of the batches to read; by default all.

        Raises:
            DataError: an image cannot be read and `on_bad_image` is `"error"`, or all are wanted and none can be read;
                or images of a batch do not have one size.
        """
        readable = wanted is not None
        for index in range(self.batch_count(batch_size)) if wanted is None else wanted:
            start = index * batch_size
            indices = range(start, min(start + batch_size, len(self)))
            decoded = [(i, image) for i in indices if (image := self._decode(i)) is not None]
            if not decoded:
                continue
            readable = True
            kept = [i for i, _ in decoded]
            labels = None if self.labels is None else torch.tensor([self.labels[i] for i in kept])
            pixel_values, inputs = preprocess([image for _, image in decoded], processor)
            inputs |= self._inputs(kept)
            yield Batch(index, pixel_values, labels, [i - start for i in kept], inputs, self._targets(kept))
        if not readable:
            raise self.unreadable()

    def _inputs(self, indices: Sequence[int]) -> dict[str, Tensor]:
        if self.inputs is None:
            return {}
        own = [self.inputs[i] for i in indices]
        names = set.intersection(*(set(inputs) for inputs in own))
        return {name: stacked([inputs[name] for inputs in own], f"`{name}`") for name in sorted(names)}

    def _targets(self, indices: Sequence[int]) -> list[dict[str, Any]] | Tensor | None:
        if self.targets is None:
            return None
        own = [self.targets[i] for i in indices]
        if all(isinstance(target, Mapping) for target in own):
            return [dict(target) for target in own]
        return stacked([torch.as_tensor(target) for target in own], "Targets")

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


def preprocess(images: Sequence[Any], processor: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """`pixel_values` (n, …) float32 of images, and what else the processor says about each of them.

    Raises:
        DataError: there is no processor for images that need one, or they do not become tensors of one size.
    """
    if all(isinstance(image, Tensor) for image in images):
        return stacked(images, "Images").float(), {}
    if processor is None:
        raise DataError(
            "Raw images need an image processor and the model has none beside it. Pass image_processor=…, or a "
            "DataLoader of ready `pixel_values`."
        )
    try:
        found = dict(processor(images=list(images), return_tensors="pt"))
    except ValueError as error:
        raise DataError(
            f"{type(processor).__name__} makes no batch of these images ({str(error).splitlines()[0]}). Where they "
            "keep different sizes, let it resize or pad them to one (do_resize, do_pad), or take batches of one image."
        ) from error
    pixel_values = found.pop("pixel_values")
    if not isinstance(pixel_values, Tensor):
        pixel_values = stacked(pixel_values, "Images")
    about = {name: value for name, value in found.items() if isinstance(value, Tensor) and value.dim() > 0}
    return pixel_values.float(), {name: value for name, value in about.items() if len(value) == len(images)}


def stacked(tensors: Sequence[Tensor], what: str) -> Tensor:
    """(n, …) of tensors of one shape.

    Raises:
        DataError: their shapes differ.
    """
    shapes = sorted({tuple(tensor.shape) for tensor in tensors})
    if len(shapes) > 1:
        raise DataError(
            f"{what} of one batch have different shapes, such as {shapes[0]} and {shapes[-1]}. Resize or pad them to "
            "one, or take batches of one image."
        )
    return torch.stack(list(tensors))
