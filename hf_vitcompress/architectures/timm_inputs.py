"""The images that a model of timm takes, which its config says in other words than those of transformers, or not."""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

WRAPPER = "timm_wrapper"
"""Model type of what transformers makes of a checkpoint of timm."""


@dataclass(frozen=True)
class TimmImages:
    """Images in the words of a config of transformers.

    Attributes:
        image_size: pixels, one number or height and width.
        patch_size: pixels of a token's side, one number or height and width.
        num_channels: of the images.
    """

    image_size: int | list[int]
    patch_size: int | list[int]
    num_channels: int


def timm_images(wrapper: PreTrainedModel) -> TimmImages:
    """For what images a `TimmWrapper` is: as its module was built, or else as timm prepares them for its weights."""
    module: Any = wrapper.timm_model
    arguments = getattr(wrapper.config, "model_args", None) or {}
    channels, *size = (getattr(wrapper.config, "pretrained_cfg", None) or {}).get("input_size", (3, 224, 224))
    patches = getattr(module, "patch_embed", None)
    built = getattr(patches, "img_size", None) or getattr(module, "img_size", None)
    return TimmImages(
        image_size=_compact(arguments.get("img_size") or built or size),
        patch_size=_compact(getattr(patches, "patch_size", None) or 16),
        num_channels=arguments.get("in_chans", channels),
    )


def _compact(size: Any) -> int | list[int]:
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    return int(height) if height == width else [int(height), int(width)]
