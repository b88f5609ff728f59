"""The config of a timm model whose fused layers are split; importing it does not import timm, which takes seconds.

This file needs transformers only. It is copied beside every saved checkpoint of a timm model, with `modeling_timm.py`.
"""

from typing import Any

from transformers import PreTrainedConfig
from transformers.configuration_utils import strict

from .configuration_factored import OWN_TYPES, OwnType, factored_config_class

MODEL_TYPE = "timm_vit"

ENTRY_POINT = "hf_vitcompress"
"""What timm knows compressed models by, once `hf_vitcompress.timm` is imported."""

ARCHITECTURE = (
    f"{ENTRY_POINT}.timm is not imported, and this model is compressed; run `pip install hf-vitcompress`, then "
    "`import hf_vitcompress.timm` before timm.create_model, or `python -m hf_vitcompress.timm SCRIPT`"
)
"""The `architecture` on disk. timm looks up what stands before the first dot; where it does not know it, its
error shows the whole. It holds no colon and no slash: to timm they are signs of a path."""

FILES = ("configuration_timm.py", "modeling_timm.py")


@strict
class TimmViTConfig(PreTrainedConfig):
    """Config of `modeling_timm.TimmViTModel` and of its classifier.

    Attributes:
        architecture: name of the model in timm.
        model_args: further arguments of `timm.create_model`.
        do_pooling: whether the headless model gives a `pooler_output`.
        initializer_range: of no use to timm; it carries the guard against dense classes.
        image_size: pixels, one number or height and width.
        patch_size: pixels of a token's side, one number or height and width.
        num_channels: of the images.
        pretrained_cfg: what timm says about the weights: mean, standard deviation, interpolation, crop.
        image_processor_type: what `AutoImageProcessor` makes of `pretrained_cfg`.
    """

    model_type = MODEL_TYPE

    architecture: str = "vit_base_patch16_224"
    model_args: dict[str, Any] | None = None
    do_pooling: bool = True
    initializer_range: float = 0.02
    image_size: int | list[int] | tuple[int, ...] = 224
    patch_size: int | list[int] | tuple[int, ...] = 16
    num_channels: int = 3
    pretrained_cfg: dict[str, Any] | None = None
    image_processor_type: str = "TimmWrapperImageProcessor"


HEADS: dict[str, tuple[str, ...]] = {
    "AutoModel": ("TimmViTModel",),
    "AutoModelForImageClassification": ("TimmViTForImageClassification",),
}

OWN_TYPES[MODEL_TYPE] = OwnType(TimmViTConfig, HEADS, FILES, {"architecture": ARCHITECTURE})


def __getattr__(name: str) -> type:
    """The factored config class by name, for `trust_remote_code`."""
    if name == f"Factored{TimmViTConfig.__name__}":
        return factored_config_class(MODEL_TYPE)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
