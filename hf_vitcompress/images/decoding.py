"""One image from any supported form, as `transformers.pipeline` sees it."""

import io
import os
import stat
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

from ..errors import DataError
from .arrays import is_ready, picture_of, single
from .colours import RGB, in_channels, in_eight_bits

Raw = Any
"""An image not yet decoded: a path, bytes, `{"bytes": …, "path": …}`, a PIL image, an array or a tensor."""

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


def read_image(raw: Raw, channels: int = RGB) -> Image.Image | Tensor:
    """`decode_image`, with one kind of error for whatever may be wrong with an image.

    Raises:
        UnreadableImageError: it cannot be decoded.
        DataError: it is in no form that an image may have.
    """
    try:
        return decode_image(raw, channels)
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


def decode_image(raw: Raw, channels: int = RGB) -> Image.Image | Tensor:
    """An upright image of so many channels from any supported form.

    Pictures in RGB are those that `transformers.image_utils.load_image` makes, so that a model is calibrated on what
    its pipeline shows it: the alpha channel is dropped, and of an animation the first frame is taken. Only 16-bit,
    32-bit and float pictures differ, which that function clips; see `colours.in_eight_bits`.

    Args:
        raw: arrays and tensors are ready `pixel_values` or pictures, see `arrays.is_ready`.
        channels: of the model (`num_channels` in its config).

    Returns:
        a picture, or ready `pixel_values` as they are.

    Raises:
        DataError: it is in no form that an image may have, or does not have as many channels.
    """
    if isinstance(raw, Tensor | np.ndarray):
        raw = single(raw)
        return torch.as_tensor(raw) if is_ready(raw) else _as_seen(picture_of(raw), channels)
    if isinstance(raw, Mapping):
        raw = raw.get("bytes") or raw.get("path")
    if raw is None:
        raise ValueError("there is no image")
    if isinstance(raw, Image.Image):
        return _as_seen(raw, channels)
    if isinstance(raw, str | os.PathLike):
        _check_regular(raw)
    elif isinstance(raw, bytes):
        raw = io.BytesIO(raw)
    elif hasattr(raw, "seek"):
        raw.seek(0)  # of a file that is open, which may have been read before
    else:
        raise DataError(f"An image is of type {type(raw).__name__}. Give PIL images, paths, bytes, arrays or tensors.")
    with Image.open(raw) as image:
        return _as_seen(image, channels)


def _check_regular(path: str | os.PathLike[str]) -> None:
    """A pipe would be waited for, and a device read without end."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("it is not a regular file")


def _as_seen(image: Image.Image, channels: int) -> Image.Image:
    if 0 in image.size:
        raise ValueError("it has no pixels")
    shape = max(image.size) / min(image.size)
    if shape > LONGEST_SHAPE:
        raise ValueError(f"it has {image.width} × {image.height} pixels, more than {LONGEST_SHAPE} to 1")
    image.load()  # before its metadata, some of which stands behind the pixels
    turn = UPRIGHT.get(_orientation(image))
    if turn is not None:
        image = image.transpose(turn)
    return in_channels(in_eight_bits(image), channels)


def _orientation(image: Image.Image) -> Any:
    """The orientation alone: other metadata may be damaged in any way, and the pixels are good all the same."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
        hash(orientation)
    except Exception:  # as in `read_image`, and nothing that is wrong here is wrong with the pixels
        return None
    return orientation
