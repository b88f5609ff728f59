"""Pictures in the depth and in the channels in which a model takes them."""

import numpy as np
from PIL import Image

from ..errors import DataError

RGB = 3
"""Channels of nearly all models, and of what `transformers.pipeline` shows them."""

TRANSPARENT = ("LA", "PA")
"""Modes of pictures with an alpha channel that become RGBA where a model takes four channels."""


def in_eight_bits(image: Image.Image) -> Image.Image:
    """A picture of 16-bit or 32-bit integers or of floats in 8 bits, others as they are.

    `transformers` clips such pictures to 0 … 255. Values that this changes, and floats up to 1, of which it would leave
    nothing but black, are scaled instead: the lowest becomes black and the highest white. Files do not say what they
    hold, whether heights, 12 bits of X-rays or temperatures, and no other range suits all of them.

    Raises:
        ValueError: a value is not finite.
    """
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("it holds NaN or infinite values")
    low, high = float(values.min()), float(values.max())
    fits = low >= 0 and high <= 255 and (image.mode != "F" or high > 1)
    if not fits and low < high:
        values = np.rint((values - low) * (255 / (high - low)))
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def in_channels(image: Image.Image, channels: int) -> Image.Image:
    """A picture of 8 bits in RGB, in grey for one channel, and as it is where it has as many channels.

    Raises:
        DataError: it does not have as many channels, and they cannot be made of those that it has.
    """
    if channels not in (1, RGB):
        return _as_it_is(image, channels)
    if isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")  # the same pixels, without Pillow's advice to do so
    image = image.convert("RGB")
    return image if channels == RGB else image.convert("L")


def _as_it_is(image: Image.Image, channels: int) -> Image.Image:
    if channels == 4 and (image.mode in TRANSPARENT or (image.mode == "P" and "transparency" in image.info)):
        image = image.convert("RGBA")
    if image.mode in ("P", "PA") or len(image.getbands()) != channels:
        fitting = {2: "pictures in grey with an alpha channel (LA), or ", 4: "pictures in RGBA or CMYK, or "}
        raise DataError(
            f"A picture is in mode {image.mode}, and the model takes {channels} channels (num_channels={channels} in "
            f"its config). Give {fitting.get(channels, '')}a DataLoader of ready `pixel_values` (n, {channels}, "
            "height, width) in floats."
        )
    return image
