"""What importing the package does to transformers: the Auto classes know the compressed models.

It imports no model, which takes seconds; see `architectures.registration`.
"""

from types import ModuleType

from . import configuration_factored, configuration_timm
from .architectures.registration import MODEL_TYPES, register_configs


def introduce() -> None:
    """Let the Auto classes load compressed models, with the methods that the package adds to them."""
    configuration_factored.package_mixin = _package_mixin
    configuration_factored.OWN_MODELS[configuration_timm.MODEL_TYPE] = _timm_models
    register_configs(*MODEL_TYPES, configuration_timm.MODEL_TYPE)


def _package_mixin() -> type:
    from .model_methods import PackageModelMixin

    return PackageModelMixin


def _timm_models() -> ModuleType:
    from . import modeling_timm

    return modeling_timm
