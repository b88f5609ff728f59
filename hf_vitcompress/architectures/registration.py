"""Registering the factored classes with the Auto classes of transformers."""

from transformers import AutoConfig
from transformers.models.auto import modeling_auto

from ..configuration_factored import factored_config_class, heads_of
from ..modeling_factored import factored_model_class

MODEL_TYPES = (
    "vit",
    "deit",
    "dinov2",
    "dinov2_with_registers",
    "dinov3_vit",
    "beit",
    "data2vec-vision",
    "swin",
    "swinv2",
    "vit_mae",
    "vit_msn",
    "ijepa",
    "yolos",
    "clip",
    "clip_vision_model",
    "siglip",
    "siglip_vision_model",
    "siglip2",
    "siglip2_vision_model",
    "dpt",
    "depth_anything",
    "upernet",
    "llava",
)
"""Model types that are registered with the Auto classes when the package is imported; others when first used."""


def register(*model_types: str) -> None:
    """Register the factored classes of model types with the Auto classes; calling it again changes nothing."""
    for model_type in model_types:
        config_class = factored_config_class(model_type)
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        for auto_name, dense_classes in heads_of(model_type).items():
            models = tuple(factored_model_class(dense) for dense in dense_classes)
            auto_class = getattr(modeling_auto, auto_name)
            # A tuple lets `config.architectures` choose, as transformers does for its own classes.
            auto_class._model_mapping.register(config_class, models if len(models) > 1 else models[0], exist_ok=True)
