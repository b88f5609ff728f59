"""The config of a timm model whose fused layers are split; importing it does not import timm, which takes seconds.

This file needs transformers only. It is copied beside every saved checkpoint of a timm model, with `modeling_timm.py`.
"""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

MODEL_TYPE, FILES = "timm_vit", ("configuration_timm.py", "modeling_timm.py")


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
