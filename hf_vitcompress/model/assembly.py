"""Models put together from shapes and tensors: factored ones, and empty ones of any form."""

import copy
from typing import Any, cast

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..architectures.constructors import constructor_options
from ..architectures.running import attention_implementations
from ..configuration_factored import MODEL_TYPE_PREFIX, FactoredConfigMixin, factored_config_class
from ..modeling_factored import FactoredModelMixin, factored_model_class
from .making import take_buffers, without_storage
from .timm import is_wrapper, split_class, split_config

Shapes = dict[str, dict[str, int]]
"""Module name → its shape, as in `config.compression["layers"]`."""

Tokens = dict[str, int]
"""Block's module name → how many tokens it merges, as in `config.compression["tokens"]`."""


def is_factored(model: nn.Module) -> bool:
    """Whether a model is one of the `Factored…` classes."""
    return isinstance(model, FactoredModelMixin)


def dense_class(model_class: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """`X` of `FactoredX`; a dense class itself."""
    if not issubclass(model_class, FactoredModelMixin):
        return model_class
    bases = (base for base in model_class.__mro__[1:] if not issubclass(base, FactoredModelMixin))
    return cast(type[PreTrainedModel], next(bases))


def dense_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """A copy of the config, without compression."""
    if not isinstance(config, FactoredConfigMixin):
        return copy.deepcopy(config)
    model_class = next(base for base in type(config).__mro__[1:] if not issubclass(base, FactoredConfigMixin))
    dropped = ("model_type", "compression", "auto_map")
    values = {name: value for name, value in config.to_dict().items() if name not in dropped}
    values["architectures"] = [name.removeprefix("Factored") for name in values.get("architectures") or []] or None
    dense = model_class.from_dict(values)  # type: ignore[attr-defined]
    dense.name_or_path = config.name_or_path
    return dense


def shapes_in(model: PreTrainedModel) -> Shapes:
    """The shapes that the config of a model holds; none of a dense one."""
    return (getattr(model.config, "compression", None) or {}).get("layers", {})


def tokens_in(model: PreTrainedModel) -> Tokens:
    """The merged tokens that the config of a model holds; none of a dense one."""
    return (getattr(model.config, "compression", None) or {}).get("tokens", {})


def empty_model(model: PreTrainedModel, layers: Shapes, tokens: Tokens | None = None) -> PreTrainedModel:
    """The model that `model` would be with this layout, or dense without any; of a `TimmWrapper`, its split form.

    Only the buffers that no checkpoint holds have values, those of `model`; other tensors have no storage.
    """
    config, model_class = dense_config(model.config), dense_class(type(model))
    if is_wrapper(model):
        config, model_class = split_config(model), split_class(model)
    if layers or tokens:
        values = {name: value for name, value in config.to_dict().items() if name != "model_type"}
        factored = factored_config_class(config.model_type.removeprefix(MODEL_TYPE_PREFIX))
        name = config.name_or_path
        config = factored.from_dict({**values, "compression": _compression(layers, tokens)})
        config.name_or_path, model_class = name, factored_model_class(model_class)
    return _built_like(model, model_class, config)


def assembled(
    model: PreTrainedModel,
    layers: Shapes,
    state: dict[str, Tensor],
    share_memory: bool = False,
    target: str | None = None,
    tokens: Tokens | None = None,
) -> PreTrainedModel:
    """A factored model of these shapes, merged tokens and tensors; the other tensors are those of `model`."""
    values = {name: value for name, value in model.config.to_dict().items() if name != "model_type"}
    values["compression"] = _compression(layers, tokens)
    if target is not None:
        values["compression"]["target"] = target
    config = factored_config_class(model.config.model_type.removeprefix(MODEL_TYPE_PREFIX)).from_dict(values)
    small = _built_like(model, factored_model_class(dense_class(type(model))), config)
    new = small.state_dict().keys() - state.keys()
    for name, tensor in model.state_dict().items():
        if name in new:
            state[name] = tensor.detach() if share_memory else tensor.detach().clone()
    small.load_state_dict(state, assign=True)
    small.tie_weights()
    if getattr(model, "generation_config", None) is not None:
        small.generation_config = model.generation_config
    return cast(Any, small).to(model.device).train(model.training)


def _compression(layers: Shapes, tokens: Tokens | None) -> dict[str, Any]:
    """A copy of the shapes, and of the merged tokens where there are any."""
    shapes: dict[str, Any] = {"layers": {name: dict(shape) for name, shape in layers.items()}}
    merged = {name: count for name, count in (tokens or {}).items() if count}
    return {**shapes, "tokens": merged} if merged else shapes


def _built_like(
    model: PreTrainedModel, model_class: type[PreTrainedModel], config: PreTrainedConfig
) -> PreTrainedModel:
    """A model of another form of the same class; only the buffers that no checkpoint holds have values, `model`'s."""
    attention, options = attention_implementations(model), constructor_options(model)
    built = without_storage(model_class, config, attention, model.dtype, **options)
    take_buffers(built, model)
    return built
