"""The inputs of a model: pixels, and whatever else its forward pass takes about them."""

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import UnsupportedModelError
from .families import row_of
from .subject import Subject
from .timm_inputs import timm_images

INTERPOLATE = "interpolate_pos_encoding"
"""Argument of many models that fits their position embeddings to images of another size."""


def model_inputs(
    model: PreTrainedModel, pixel_values: Tensor, extra: Mapping[str, Tensor] | None = None
) -> dict[str, Any]:
    """Arguments of the model's forward pass for a batch of images, on its device and in its dtype.

    The same images give the same arguments, in every process and for every model of the architecture: a model that
    masks patches at random masks those that the position in the batch decides, and one that knows the positions of as
    many patches as its config says is told to interpolate them for images of another size.

    Args:
        pixel_values: (n, channels, height, width), or (n, patches, features) of images that are cut into patches.
        extra: further inputs from the image processor or the user, each (n, …), by argument name; those that the model
            does not take are left out. By default no patch is padding, and the grid is the squarest possible.
    """
    row = row_of(model)
    wants = None if row is None else row.inputs
    given = dict(extra or {})
    if wants == "noise":
        given = {"noise": _noise(model, pixel_values), **given}
    elif wants == "patches":
        given = {**_full_grid(pixel_values), **given}
    accepted = set(_parameters(model)) - {"labels", "pixel_values"}
    inputs: dict[str, Any] = {"pixel_values": pixel_values.to(model.device, model.dtype)}
    for name in accepted & given.keys():
        value = given[name]
        # The grid's sizes decide shapes: the processor reads them as numbers, wherever the model is.
        inputs[name] = value.cpu() if name == "spatial_shapes" else value.to(model.device)
    if pixel_values.dim() == 4 and tuple(pixel_values.shape[2:]) != _size_in_config(model) and _interpolates(model):
        inputs[INTERPOLATE] = True
    return inputs


def subject_inputs(subject: Subject, pixel_values: Tensor, extra: Mapping[str, Tensor] | None = None) -> dict[str, Any]:
    """`model_inputs`, and the request for what the model around the subject reads of it."""
    inputs = model_inputs(subject.model, pixel_values, extra)
    if subject.reading is not None and subject.reading.layers:
        inputs["output_hidden_states"] = True
    return inputs


def example_inputs(model: PreTrainedModel, images: int = 1, shape: Sequence[int] | None = None) -> dict[str, Any]:
    """Arguments of the model's forward pass for random images; on the meta device for images without numbers.

    Args:
        shape: shape of one image's `pixel_values`, (channels, height, width) or (patches, features); by default the
            shape in the config. Image processors may produce another one.
    """
    config, row = _image_config(model), row_of(model)
    if shape is None and row is not None and row.inputs == "patches":
        shape = (config.num_patches, config.num_channels * config.patch_size**2)
    elif shape is None:
        shape = image_shape(model)
    noise = torch.randn(images, *shape, dtype=torch.float32, generator=torch.Generator().manual_seed(0))
    inputs = model_inputs(model, noise)
    if model.device.type == "meta" and "pixel_attention_mask" in inputs:
        inputs["pixel_attention_mask"] = None  # whether it is full can be asked only of numbers; and it is
    return inputs


def image_shape(model: PreTrainedModel) -> tuple[int, int, int]:
    """Shape (channels, height, width) of the images that the model's config states.

    Raises:
        UnsupportedModelError: the config does not state an image size.
    """
    config = _image_config(model)
    size = getattr(config, "image_size", None)
    if size is None:
        raise UnsupportedModelError(f"The config of {type(model).__name__} does not say for what image_size it is.")
    return config.num_channels, *height_and_width(size)


def image_channels(model: PreTrainedModel) -> int:
    """Channels of the images that the model's config states; 3 where it states none."""
    return getattr(_image_config(model), "num_channels", None) or 3


def _size_in_config(model: PreTrainedModel) -> tuple[int, int] | None:
    """Height and width; `None` where the config states none."""
    size = getattr(_image_config(model), "image_size", None)
    return None if size is None else height_and_width(size)


def height_and_width(size: Any) -> tuple[int, int]:
    """Height and width from a size in a config: one number for both, a pair, or a mapping."""
    if isinstance(size, Mapping):
        return size["height"], size["width"]
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def _image_config(model: PreTrainedModel) -> Any:
    """The config, or the part of it, that is about images; of timm's own modules, what their config leaves unsaid."""
    if hasattr(model, "timm_model") and not hasattr(model.config, "image_size"):
        return timm_images(model)
    parts = (getattr(model.config, name, None) for name in ("vision_config", "backbone_config"))
    inner = next((part for part in parts if part is not None), model.config)
    return model.config if hasattr(model.config, "image_size") else inner


def _parameters(model: nn.Module) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(model.forward).parameters


def _interpolates(model: PreTrainedModel) -> bool:
    """Whether it takes `INTERPOLATE`, or passes its further arguments on to a model in it that does."""
    own = _parameters(model)
    if not any(parameter.kind == parameter.VAR_KEYWORD for parameter in own.values()):
        return INTERPOLATE in own
    parts = (model, *(part for part in model.children() if isinstance(part, PreTrainedModel)))
    return any(INTERPOLATE in _parameters(part) for part in parts)


def _noise(model: PreTrainedModel, pixel_values: Tensor) -> Tensor:
    """(n, patches) uniform in [0, 1), the same rows whatever n is."""
    patch_height, patch_width = height_and_width(model.config.patch_size)
    images, _, height, width = pixel_values.shape
    patches = (height // patch_height) * (width // patch_width)
    rows = [
        torch.rand(patches, dtype=torch.float32, generator=torch.Generator().manual_seed(row)) for row in range(images)
    ]
    return torch.stack(rows)


def _full_grid(pixel_values: Tensor) -> dict[str, Tensor]:
    """Mask (n, patches) and shapes (n, 2) of images without padding, in the squarest grid that has as many patches."""
    images, patches, _ = pixel_values.shape
    height = next(rows for rows in range(math.isqrt(patches), 0, -1) if patches % rows == 0)
    return {
        "pixel_attention_mask": torch.ones(images, patches, dtype=torch.int32),
        "spatial_shapes": torch.tensor([[height, patches // height]] * images),
    }
