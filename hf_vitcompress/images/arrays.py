"""Images in arrays and tensors: ready `pixel_values`, or pictures."""

from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ..errors import DataError

CHANNELS = (1, 2, 3, 4)
"""Numbers of channels that a picture in an array may have, at its beginning or at its end."""

GREY = {"|u1": "|u1", "|i1": "<i4", "<u2": "<u2", "<i2": "<i4", "<i4": "<i4", "<f4": "<f4", "<f8": "<f4", "<f2": "<f4"}
"""In which type Pillow takes a grey picture of values of a type."""


def single(image: Tensor | np.ndarray) -> Tensor | np.ndarray:
    """The image in an array of one, as processors return it for one picture: (1, channels, height, width).

    Raises:
        DataError: it has more dimensions than an image.
    """
    whole = image
    while image.ndim > 3 and len(image) == 1:
        image = image[0]
    if image.ndim > 3:
        raise DataError(
            f"An image has the shape {tuple(whole.shape)}. Give (channels, height, width) for each; several images of "
            "one sample are not taken."
        )
    return image


def is_ready(image: Any) -> bool:
    """Whether an array or a tensor holds `pixel_values` as an image processor makes them, and not a picture.

    These are floats in the order (channels, height, width), and tensors of floats (patches, features). Integers are
    pictures, and so are floats in another order, as matplotlib and OpenCV have them, and arrays (height, width).
    """
    if isinstance(image, Tensor):
        return image.is_floating_point() and (image.dim() == 2 or not _channels_last(tuple(image.shape)))
    if not isinstance(image, np.ndarray) or not np.issubdtype(image.dtype, np.floating):
        return False
    return image.ndim != 2 and not _channels_last(image.shape)


def _channels_last(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 and shape[2] in CHANNELS and shape[0] not in CHANNELS


def picture_of(image: Tensor | np.ndarray) -> Image.Image:
    """The picture in an array or a tensor (height, width), (channels, height, width) or (height, width, channels).

    Colours are integers of 0 … 255, or floats of 0 … 1 or 0 … 255. Grey values may be any that a TIFF may hold.

    Raises:
        DataError: it is no picture, or its values are out of range.
    """
    what = f"{'a tensor' if isinstance(image, Tensor) else 'an array'} of {image.dtype}"
    if isinstance(image, Tensor):
        plain = image.detach().cpu()
        rows = (plain.float() if plain.is_floating_point() else plain).numpy()  # NumPy knows no bfloat16
    else:
        rows = image
    if rows.ndim == 3 and not _channels_last(rows.shape):
        rows = np.moveaxis(rows, 0, -1)
    if rows.dtype.kind not in "uif" or rows.ndim not in (2, 3) or (rows.ndim == 3 and rows.shape[2] not in CHANNELS):
        raise DataError(
            f"An image is {what} of shape {tuple(image.shape)}. Give pictures as uint8 (channels, height, width) with "
            "1, 3 or 4 channels, or `pixel_values` as the image processor makes them, in floats."
        )
    if rows.ndim == 3 and rows.shape[2] == 1:
        rows = rows[:, :, 0]
    if rows.ndim == 2 and (kind := GREY.get(rows.dtype.newbyteorder("<").str)) is not None:
        return Image.fromarray(np.ascontiguousarray(rows.astype(kind)))
    return Image.fromarray(_colours(rows, what))


def _colours(rows: np.ndarray, what: str) -> np.ndarray:
    """Values of 0 … 255 as uint8."""
    low, high = (rows.min().item(), rows.max().item()) if rows.size else (0, 0)
    floats = rows.dtype.kind == "f"
    if not 0 <= low <= high <= 255:
        kind = "floats have values from 0 to 1 or from 0 to 255" if floats else "integers have values from 0 to 255"
        order = " Ready `pixel_values` have the order (channels, height, width)." if floats else ""
        raise DataError(f"An image is {what} with values from {low:g} to {high:g}. Pictures of {kind}.{order}")
    if floats:
        rows = np.rint(rows.astype(np.float64) * (255 if high <= 1 else 1))
    return np.ascontiguousarray(rows.astype(np.uint8))
