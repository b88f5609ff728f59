"""Registering the factored classes with the Auto classes of transformers.

Models take seconds to import, so importing the package registers configs alone: whoever loads a model makes its config
first, and the first config of a type registers the models of that type.
"""

from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto import modeling_auto

from .. import configuration_factored
from ..configuration_factored import FactoredConfigMixin, factored_config_class, heads_of

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

_with_models: set[type[PreTrainedConfig]] = set()
"""Config classes whose models are registered."""


class RegisteringConfigMixin(FactoredConfigMixin):
    """A factored config that lets the Auto classes know its models."""

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)  # type: ignore[misc]
        config_class: Any = type(self)
        if config_class not in _with_models:
            _register_models(config_class)


def register(*model_types: str) -> None:
    """Register the factored classes of model types with the Auto classes; calling it again changes nothing."""
    register_configs(*model_types)
    for model_type in model_types:
        _register_models(factored_config_class(model_type))


def register_configs(*model_types: str) -> None:
    """Register the factored configs of model types, and with the first config of each its models."""
    configuration_factored.config_mixin = RegisteringConfigMixin
    for model_type in model_types:
        config_class = factored_config_class(model_type)
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)


def _register_models(config_class: Any) -> None:
    from ..modeling_factored import factored_model_class

    for auto_name, dense_classes in heads_of(config_class.model_type).items():
        models = tuple(factored_model_class(dense) for dense in dense_classes)
        auto_class = getattr(modeling_auto, auto_name)
        # A tuple lets `config.architectures` choose, as transformers does for its own classes.
        auto_class._model_mapping.register(config_class, models if len(models) > 1 else models[0], exist_ok=True)
    _with_models.add(config_class)
