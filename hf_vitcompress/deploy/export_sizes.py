"""For images of what size a program is made: those that the image processor beside it makes of pictures."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from PIL import Image
from transformers import PreTrainedModel
from transformers.utils import logging

from ..architectures.families import row_of
from ..architectures.inputs import image_shape
from ..errors import ConfigError, ExportError, one_line
from ..images.unloaded import UnloadedProcessor
from ..model.timm_images import is_of_timm

logger = logging.get_logger(__name__)

PICTURES = ((640, 640), (640, 480), (480, 640))
"""Width and height of pictures that tell whether a processor makes one size of all."""

Size = tuple[int, int]
"""Height and width."""


@dataclass(frozen=True)
class Fit:
    """What a program takes, and the image processor that makes it.

    Attributes:
        shape: (channels, height, width) of one image.
        processor: to lie beside the program; `None` where there is none.
    """

    shape: tuple[int, int, int]
    processor: Any = None


def checked_size(size: int | Size | None) -> Size | None:
    """Height and width of what was asked for.

    Raises:
        ConfigError: it is no size.
    """
    if size is None:
        return None
    both = (size, size) if isinstance(size, int) else size
    whole = isinstance(both, tuple | list) and [type(number) is int and number > 0 for number in both]
    if whole != [True, True]:
        raise ConfigError(f"image_size is {size!r}; give a number of pixels, or height and width.")
    return both[0], both[1]


def fit_for(model: PreTrainedModel, processor: Any, wanted: Size | None) -> Fit:
    """For what images to make a program of a model.

    Args:
        processor: the image processor beside the model, or `None`.
        wanted: height and width that were asked for; by default those that the processor makes, of a square picture if
            it keeps the aspect ratio; without a processor those in the config.

    Raises:
        ExportError: the model takes no images, but patches of them.
        UnsupportedModelError: the config does not state an image size.
    """
    if (row := row_of(model)) is not None and row.inputs == "patches":
        raise ExportError(
            f"{type(model).__name__} takes patches of images of any size, with a mask and their grid, and a program "
            "takes images alone. Run it with torch."
        )
    channels, *stated = image_shape(model)
    made = _sizes_made(processor, channels)
    size = wanted or (made[0] if made else (stated[0], stated[1]))
    fit = Fit((channels, *size), processor)
    if not made or set(made) == {size}:
        return fit
    fitted = _fitted(processor, channels, made[0], size)
    _say(processor, len(set(made)) > 1 and wanted is None, size, fitted is not None)
    return fit if fitted is None else Fit(fit.shape, fitted)


def _say(processor: Any, keeps_ratio: bool, size: Size, fits: bool) -> None:
    name = type(processor).__name__
    if not fits:
        logger.warning(
            f"The program takes images of {size[0]} × {size[1]} pixels, and the {name} beside it makes others. Resize "
            "them, or choose another size with image_size (--image-size)."
        )
    elif keeps_ratio:
        logger.warning(
            f"{name} keeps the aspect ratio of pictures, and a program takes images of one size: {size[0]} × {size[1]} "
            "pixels. The one beside the program makes all pictures that size; choose another with image_size "
            "(--image-size HEIGHTxWIDTH)."
        )


def _sizes_made(processor: Any, channels: int) -> list[Size]:
    """Height and width that an image processor makes of each of `PICTURES`; none where they stay, or are unknown."""
    if processor is None:
        return []
    if isinstance(processor, UnloadedProcessor):
        logger.warning(f"{processor.reason} The program takes images of the size in the model's config.")
        return []
    mode = {1: "L", 4: "RGBA"}.get(channels, "RGB")
    try:
        made = [processor(images=[Image.new(mode, size)], return_tensors="pt")["pixel_values"] for size in PICTURES]
        sizes = [(int(pixels.shape[-2]), int(pixels.shape[-1])) for pixels in made]
        return [] if sizes == [(height, width) for width, height in PICTURES] else sizes
    except Exception as error:  # a processor is anybody's code, and raises anything
        logger.warning(
            f"{type(processor).__name__} does not say what size it makes ({one_line(error)}). The program takes images "
            "of the size in the model's config."
        )
        return []


def _fitted(processor: Any, channels: int, made: Size, size: Size) -> Any:
    """A copy of an image processor that makes every picture that size; `None` if its settings cannot say so.

    One that crops keeps the share of the picture that it keeps, as far as whole numbers do.
    """
    for changes in _changes(processor, made, size):
        try:
            other = type(processor).from_dict({**copy.deepcopy(processor.to_dict()), **changes})
        except Exception:  # the constructors of processors check little, and each in its way
            continue
        if set(_sizes_made(other, channels)) == {size}:
            return other
    return None


def _changes(processor: Any, made: Size, size: Size) -> Iterator[dict[str, Any]]:
    """Settings that may make a size, the more faithful first."""
    if is_of_timm(processor):
        channels = processor.data_config["input_size"][0]
        yield {"pretrained_cfg": {**processor.data_config, "input_size": [channels, *size]}}
        return
    exact, crops = {"height": size[0], "width": size[1]}, getattr(processor, "do_center_crop", None)
    edge = (getattr(processor, "size", None) or {}).get("shortest_edge")
    if crops and edge and made[0] == made[1] and size[0] == size[1]:
        yield {"size": {"shortest_edge": round(edge * size[0] / made[0])}, "crop_size": exact}
    switches = {name: False for name in ("keep_aspect_ratio", "do_pad") if hasattr(processor, name)}
    yield {"do_resize": True, "size": exact, **({"crop_size": exact} if crops else {}), **switches}
