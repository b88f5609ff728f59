"""One image from any supported form, in RGB."""

import io
import os
import stat
from collections.abc import Mapping
from typing import Any

import torch
from PIL import ExifTags, Image
from torch import Tensor

from ..errors import DataError

Raw = Any
"""An image not yet decoded: a path, bytes, `{"bytes": …, "path": …}`, a PIL image or a (channels, h, w) tensor."""

LONGEST_SHAPE = 200
"""Longer side ÷ shorter side of the most extreme image that is read.

A processor that keeps the aspect ratio makes 224 × 224,000 pixels of one that is 1 × 1000, which fills memory."""

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What sets an image upright, by the orientation in its EXIF data."""


class UnreadableImageError(Exception):
    """An image that is in a supported form, and cannot be decoded; the message says why."""


def read_image(raw: Raw) -> Image.Image | Tensor:
    """`decode_image`, with one kind of error for whatever may be wrong with an image.

    Raises:
        UnreadableImageError: it cannot be decoded.
        DataError: it is in no form that an image may have.
    """
    try:
        return decode_image(raw)
    except DataError:
        raise
    except Image.UnidentifiedImageError as error:  # its message holds an address in memory
        raise UnreadableImageError("its content is in no image format that Pillow reads") from error
    except Exception as error:
        # Pillow's decoders raise whatever their format's parser meets: OSError, SyntaxError, struct.error, zlib.error,
        # KeyError, MemoryError … They have no common base class.
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        reason = said.strip().partition("\n")[0].rstrip(".")
        raise UnreadableImageError(reason or f"its decoder raised {type(error).__name__}") from error


def decode_image(raw: Raw) -> Image.Image | Tensor:
    """An RGB image from any supported form; grey, palette, transparent, CMYK and 16-bit images are converted.

    Tensors of floats are ready `pixel_values` and stay as they are; tensors of integers are pictures.

    Raises:
        DataError: it is in no form that an image may have.
    """
    if isinstance(raw, Tensor):
        return raw if raw.is_floating_point() else _as_rgb(_from_integers(raw))
    if isinstance(raw, Mapping):
        raw = raw.get("bytes") or raw.get("path")
    if raw is None:
        raise ValueError("there is no image")
    if isinstance(raw, Image.Image):
        return _as_rgb(raw)
    if isinstance(raw, str | os.PathLike):
        _check_regular(raw)
    elif isinstance(raw, bytes):
        raw = io.BytesIO(raw)
    else:
        raise DataError(f"An image is of type {type(raw).__name__}. Give PIL images, paths, bytes or tensors.")
    with Image.open(raw) as image:
        return _as_rgb(image)


def _check_regular(path: str | os.PathLike[str]) -> None:
    """A pipe would be waited for, and a device read without end."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("it is not a regular file")


def _from_integers(tensor: Tensor) -> Image.Image:
    """A picture of integers 0 … 255 (channels, height, width)."""
    if tensor.dtype == torch.bool or tensor.dim() != 3 or len(tensor) not in (1, 3, 4):
        shape = tuple(tensor.shape)
        raise DataError(
            f"An image is a tensor of {tensor.dtype} of shape {shape}. Give pictures as uint8 (channels, height, "
            "width) with 1, 3 or 4 channels, or `pixel_values` as the image processor makes them, in floats."
        )
    if tensor.numel() and not 0 <= int(tensor.min()) <= int(tensor.max()) <= 255:
        raise DataError(
            f"An image is a tensor of {tensor.dtype} with values from {int(tensor.min())} to {int(tensor.max())}. "
            "Pictures of integers have values from 0 to 255."
        )
    rows = tensor.to(device="cpu", dtype=torch.uint8).permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(rows[:, :, 0] if len(tensor) == 1 else rows)


def _as_rgb(image: Image.Image) -> Image.Image:
    shape = max(image.size) / max(1, min(image.size))
    if shape > LONGEST_SHAPE:
        raise ValueError(f"it has {image.width} × {image.height} pixels, more than {LONGEST_SHAPE} to 1")
    image.load()  # before its metadata, some of which stands behind the pixels
    turn = UPRIGHT.get(_orientation(image))
    if turn is not None:
        image = image.transpose(turn)
    if image.mode.startswith("I"):
        # PIL clips 16-bit grey to 8 bits instead of scaling it.
        image = image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    if image.mode in ("P", "PA", "LA"):
        image = image.convert("RGBA")
    if image.mode == "RGBA":
        # Onto white: what hides under full transparency is arbitrary.
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _orientation(image: Image.Image) -> Any:
    """The orientation alone: other metadata may be damaged in any way, and the pixels are good all the same."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
        hash(orientation)
    except Exception:  # as in `read_image`, and nothing that is wrong here is wrong with the pixels
        return None
    return orientation
