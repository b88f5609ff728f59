"""What importing the package does to transformers: the Auto classes know the compressed models.

It imports no model, which takes seconds; see `architectures.registration`.
"""

from . import configuration_factored, configuration_timm
from .architectures.registration import MODEL_TYPES, register_configs
from .configuration_factored import OWN_TYPES, OwnType
from .configuration_timm import TimmViTConfig


def introduce() -> None:
    """Let the Auto classes load compressed models, with the methods that the package adds to them."""
    configuration_factored.package_mixin = _package_mixin
    OWN_TYPES[configuration_timm.MODEL_TYPE] = OwnType(TimmViTConfig, _timm_heads, configuration_timm.FILES)
    register_configs(*MODEL_TYPES, *OWN_TYPES)


def _timm_heads() -> dict[str, tuple[type, ...]]:
    from .modeling_timm import HEADS

    return HEADS


def _package_mixin() -> type:
    from .model_methods import PackageModelMixin

    return PackageModelMixin
