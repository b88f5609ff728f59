"""Decoded images as tensors, by the model's image processor."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..errors import DataError, DataWarning

RANGE = 10
"""Ready `pixel_values` so many times as large as what the image processor makes were not normalized.

Without a processor, values so large that none is negative are taken for such, too."""

FEWEST = 4
"""Of fewer images, all values may lie within 0 … 1 by chance."""


@dataclass
class Shaped:
    """Images of one shape.

    Attributes:
        places: of these images in the sequence that they were taken from, ascending.
        pixel_values: (n, …) float32.
        inputs: what else the image processor says about each of them, (n, …), by argument name.
    """

    places: list[int]
    pixel_values: Tensor
    inputs: dict[str, Tensor] = field(default_factory=dict)


def by_shape(images: Sequence[Image.Image | Tensor], processor: Any) -> list[Shaped]:
    """Images preprocessed, those of one shape together; nearly always all of them.

    An image processor that keeps the aspect ratio makes other shapes of a portrait than of a landscape, and no model
    takes both in one batch.

    Args:
        images: decoded ones; tensors are ready `pixel_values`.

    Raises:
        DataError: there is no processor for images that need one, or it raises something; or pictures and ready
            `pixel_values` are mixed, or the latter are not normalized.
    """
    ready = [image for image in images if isinstance(image, Tensor)]
    if ready and len(ready) < len(images):
        raise DataError("Images of one batch are pictures and ready `pixel_values`. Give all of them in one form.")
    if ready:
        _check_range(ready, processor)
        places = _places(tuple(image.shape) for image in ready)
        return [Shaped(own, torch.stack([ready[i] for i in own]).float()) for own in places.values()]
    if processor is None:
        raise DataError(
            "Raw images need an image processor and the model has none beside it. Pass image_processor=…, or a "
            "DataLoader of ready `pixel_values` (floats)."
        )
    try:
        return [_processed(images, range(len(images)), processor)]
    except Exception as error:  # a processor is anybody's code, and raises anything
        # Only where sizes differ something may come of them one size after the other. All at once is tried first,
        # because some processors pad the images of a batch to one size.
        sizes = _places(image.size for image in images)
        if len(sizes) == 1:
            raise _refusal(processor, images, error) from error
    try:
        return _joined(_processed([images[i] for i in own], own, processor) for own in sizes.values())
    except Exception as error:
        raise _refusal(processor, images, error) from error


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


def _places(keys: Iterable[Any]) -> dict[Any, list[int]]:
    """Where each key stands, in the order in which they first appear."""
    places: dict[Any, list[int]] = {}
    for place, key in enumerate(keys):
        places.setdefault(key, []).append(place)
    return places


def _processed(images: Sequence[Any], places: Iterable[int], processor: Any) -> Shaped:
    found = dict(processor(images=list(images), return_tensors="pt"))
    pixel_values = found.pop("pixel_values")
    if not isinstance(pixel_values, Tensor):
        pixel_values = torch.stack(list(pixel_values))
    about = {name: value for name, value in found.items() if isinstance(value, Tensor) and value.dim() > 0}
    inputs = {name: value for name, value in about.items() if len(value) == len(images)}
    return Shaped(list(places), pixel_values.float(), inputs)


def _joined(parts: Iterable[Shaped]) -> list[Shaped]:
    """Those of one shape, which images of several sizes may come to, in one."""
    by_key: dict[Any, list[Shaped]] = {}
    for part in parts:
        shapes = {name: tuple(value.shape[1:]) for name, value in {"": part.pixel_values, **part.inputs}.items()}
        by_key.setdefault(tuple(sorted(shapes.items())), []).append(part)
    return [_one_of(own) for own in by_key.values()]


def _one_of(parts: Sequence[Shaped]) -> Shaped:
    places = [place for part in parts for place in part.places]
    order = sorted(range(len(places)), key=places.__getitem__)
    inputs = {name: torch.cat([part.inputs[name] for part in parts])[order] for name in parts[0].inputs}
    return Shaped([places[i] for i in order], torch.cat([part.pixel_values for part in parts])[order], inputs)


def _refusal(processor: Any, images: Sequence[Any], error: Exception) -> DataError:
    if isinstance(error, DataError):  # of one that stands for a processor that cannot be loaded
        return error
    name, reason = type(processor).__name__, (str(error).strip() or type(error).__name__).splitlines()[0]
    mean = getattr(processor, "image_mean", None)
    channels = {3} if getattr(processor, "do_convert_rgb", False) else {len(image.getbands()) for image in images}
    if isinstance(mean, list | tuple) and mean and channels != {len(mean)}:
        return DataError(
            f"{name} is made for images of {len(mean)} channel{'s' * (len(mean) > 1)} (image_mean={list(mean)}), and "
            f"these have another number ({reason}). Give one whose image_mean and image_std have as many numbers as "
            "num_channels in the model's config says, and with do_convert_rgb=False unless that is 3; or a DataLoader "
            "of ready `pixel_values` (n, channels, height, width)."
        )
    return DataError(
        f"{name} makes no batch of these images ({reason}). Give a DataLoader of ready `pixel_values` (n, channels, "
        "height, width), or another image processor (image_processor=…)."
    )


# ---- whether ready images are normalized


def _check_range(images: Sequence[Tensor], processor: Any) -> None:
    """That ready images are about as large as those that the processor makes.

    Raises:
        DataError: they are much larger.
    """
    values = [image for image in images if image.numel()]
    lowest = min((float(image.min()) for image in values), default=0.0)
    highest = max((float(image.max()) for image in values), default=0.0)
    made, found = _range(processor), max(-lowest, highest)
    if made is None:
        if processor is None and lowest >= 0 and highest > RANGE:
            _warn(
                "Ready `pixel_values` are nowhere negative and reach more than 10, as if they were not normalized. If "
                "the model takes normalized images, give an image processor (image_processor=…) and pictures (uint8 "
                "tensors, PIL images, paths)."
            )
        return
    name, largest = type(processor).__name__, max(-made[0], made[1])
    if found > RANGE * largest:
        raise DataError(
            f"Ready `pixel_values` reach {found:.4g}, and those that {name} makes reach {largest:.2g}: they are not "
            "normalized. Give pictures (uint8 tensors, PIL images, paths), or what the image processor makes of them."
        )
    if made[0] < 0 <= lowest < highest <= 1 and len(images) >= FEWEST:
        _warn(
            f"Ready `pixel_values` lie between 0 and 1, and those that {name} makes between {made[0]:.2g} and "
            f"{made[1]:.2g}, as if they were not normalized. Unless the model was trained on such, give pictures "
            "(uint8 tensors, PIL images, paths), or what the image processor makes of them."
        )


def _warn(message: str) -> None:
    warnings.warn(message, DataWarning, stacklevel=2)


def _range(processor: Any) -> tuple[float, float] | None:
    """The lowest and the highest value that the image processor makes of a picture; `None` if that is not known."""
    settings = getattr(processor, "data_config", None)
    factor: float | None
    if isinstance(settings, Mapping):  # timm's, whose pictures have values from 0 to 1 before they are normalized
        factor, means, deviations = 1 / 255, settings.get("mean"), settings.get("std")
    elif getattr(processor, "do_rescale", False) and getattr(processor, "do_normalize", False):
        factor, means, deviations = (getattr(processor, f, None) for f in ("rescale_factor", "image_mean", "image_std"))
    else:
        return None
    if not factor or not means or not deviations:
        return None
    pairs = list(zip(_numbers(means), _numbers(deviations), strict=False))
    return min(-m / s for m, s in pairs), max((255 * factor - m) / s for m, s in pairs)


def _numbers(value: Any) -> Sequence[float]:
    return value if isinstance(value, Sequence) else [value]
