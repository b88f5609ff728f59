"""Decoded images as one tensor, by the model's image processor."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError

RANGE = 10
"""Ready `pixel_values` so many times as large as what the image processor makes were not normalized."""


def preprocess(images: Sequence[Any], processor: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """`pixel_values` (n, …) float32 of images, and what else the processor says about each of them.

    Args:
        images: decoded ones; tensors are ready `pixel_values`.

    Raises:
        DataError: there is no processor for images that need one, or they do not become tensors of one size; or ready
            `pixel_values` are not normalized.
    """
    ready = [isinstance(image, Tensor) for image in images]
    if all(ready):
        pixel_values = stacked(images, "Images").float()
        _check_range(pixel_values, processor)
        return pixel_values, {}
    if any(ready):
        raise DataError("Images of one batch are pictures and ready `pixel_values`. Give all of them in one form.")
    if processor is None:
        raise DataError(
            "Raw images need an image processor and the model has none beside it. Pass image_processor=…, or a "
            "DataLoader of ready `pixel_values` (floats)."
        )
    try:
        found = dict(processor(images=list(images), return_tensors="pt"))
    except Exception as error:  # a processor is anybody's code, and raises anything
        raise _refusal(processor, error) from error
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


def _refusal(processor: Any, error: Exception) -> DataError:
    if isinstance(error, DataError):  # of one that stands for a processor that cannot be loaded
        return error
    name, reason = type(processor).__name__, (str(error).strip() or type(error).__name__).splitlines()[0]
    mean = getattr(processor, "image_mean", None)
    if isinstance(mean, list | tuple) and len(mean) not in (0, 3):
        return DataError(
            f"{name} is made for images of {len(mean)} channel{'s' * (len(mean) > 1)} (image_mean={list(mean)}), and "
            "pictures are read in RGB. Give a DataLoader of ready `pixel_values` (n, channels, height, width)."
        )
    return DataError(
        f"{name} makes no batch of these images ({reason}). Where they keep different sizes, let it resize or pad them "
        "to one (do_resize, do_pad), or take batches of one image."
    )


def _check_range(pixel_values: Tensor, processor: Any) -> None:
    """That ready images are about as large as those that the processor makes."""
    largest = _largest(processor)
    found = float(pixel_values.abs().max()) if pixel_values.numel() else 0.0
    if largest is not None and found > RANGE * largest:
        raise DataError(
            f"Ready `pixel_values` reach {found:.4g}, and those that {type(processor).__name__} makes reach "
            f"{largest:.2g}: they are not normalized. Give pictures (uint8 tensors, PIL images, paths), or what the "
            "image processor makes of them."
        )


def _largest(processor: Any) -> float | None:
    """Magnitude of the largest value that the image processor makes of a picture; `None` if that is not known."""
    if not (getattr(processor, "do_rescale", False) and getattr(processor, "do_normalize", False)):
        return None
    factor, means, deviations = (getattr(processor, f, None) for f in ("rescale_factor", "image_mean", "image_std"))
    if not factor or not means or not deviations:
        return None
    white = 255 * factor
    return max(max(abs(white - m), abs(m)) / s for m, s in zip(means, deviations, strict=False))
