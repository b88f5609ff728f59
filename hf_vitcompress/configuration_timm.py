"""The config of a timm model whose fused layers are split; importing it does not import timm, which takes seconds.

This file needs transformers only. It is copied beside every saved checkpoint of a timm model, with `modeling_timm.py`.
"""

import copy
from typing import Any

from transformers import PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin
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

FILES = ("configuration_timm.py", "modeling_timm_backbone.py", "modeling_timm.py")


@strict
class TimmViTConfig(BackboneConfigMixin, PreTrainedConfig):
    """Config of `modeling_timm.TimmViTModel`, of its classifier, and of its backbone.

    A backbone has `out_indices`, and `out_features`, names of the same stages: timm's names, as in `"blocks.2"`. Any
    folder of a compressed model can be opened as one; it needs one of the two, or gives its last stage.

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
        last_stage: the last one that a backbone has; its folder holds no weights of those after it.
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
    last_stage: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.set_output_features_output_indices(kwargs.pop("out_features", None), kwargs.pop("out_indices", None))
        super().__post_init__(**kwargs)
        if self.architectures is None:  # over which AutoModel stumbles where it has several classes for a config
            self.architectures = []

    def set_output_features_output_indices(self, out_features: Any, out_indices: Any) -> None:
        """As in transformers, once the model has named its stages; until then what is given stays as it is.

        Raises:
            ValueError: a stage is chosen that there is none of, or that the backbone does not have.
        """
        if (names := getattr(self, "stage_names", None)) is None:
            self._out_features = out_features
            self._out_indices = list(out_indices) if isinstance(out_indices, tuple) else out_indices
            return
        super().set_output_features_output_indices(out_features, out_indices)
        chosen = max(index % len(names) for index in self._out_indices or [0])
        if self.last_stage is not None and chosen > self.last_stage:
            raise ValueError(
                f"This backbone ends with the stage {self.last_stage} ({names[self.last_stage]}), and {chosen} "
                f"({names[chosen]}) is asked for. Take it from the whole model."
            )


def merged_config(config: TimmViTConfig) -> PreTrainedConfig:
    """The config of the `TimmWrapper` in which the layers are fused again."""
    from transformers import TimmWrapperConfig

    left_out = ["model_type", "architectures", "image_size", "patch_size", "num_channels", "stage_names", "last_stage"]
    if config.image_processor_type == TimmViTConfig.image_processor_type:  # which is understood
        left_out.append("image_processor_type")
    known = {name: value for name, value in vars(config).items() if not name.startswith("_") and name not in left_out}
    merged = TimmWrapperConfig(**copy.deepcopy(known))
    merged.name_or_path = config.name_or_path
    return merged


def merged_backbone_config(config: TimmViTConfig) -> PreTrainedConfig:
    """The config of the `TimmBackbone`; it has no place for `model_args`, which that takes beside it."""
    from transformers import TimmBackboneConfig

    merged = TimmBackboneConfig(backbone=config.architecture, num_channels=config.num_channels)
    merged.out_indices = list(config.out_indices)
    merged.name_or_path = config.name_or_path
    return merged


HEADS: dict[str, tuple[str, ...]] = {
    "AutoBackbone": ("TimmViTBackbone",),
    "AutoModel": ("TimmViTModel", "TimmViTBackbone"),  # AutoBackbone opens no local folder
    "AutoModelForImageClassification": ("TimmViTForImageClassification",),
}

OWN_TYPES[MODEL_TYPE] = OwnType(TimmViTConfig, HEADS, FILES, {"architecture": ARCHITECTURE})


def __getattr__(name: str) -> type:
    """The factored config class by name, for `trust_remote_code`."""
    if name == f"Factored{TimmViTConfig.__name__}":
        return factored_config_class(MODEL_TYPE)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
