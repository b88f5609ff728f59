"""A timm model changes its form: its layers fused, as in timm, or split; see `modeling_timm`."""

from typing import TYPE_CHECKING, Any, cast

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..configuration_factored import MODEL_TYPE_PREFIX
from ..configuration_timm import MODEL_TYPE, TimmViTConfig
from .assembly import empty_model
from .making import take_buffers, without_storage
from .timm import split_class, split_config
from .timm_features import BACKBONE, extractor_in

if TYPE_CHECKING:
    from ..modeling_timm import Rows


def is_split(model: PreTrainedModel) -> bool:
    """Whether it is a dense model of timm whose fused layers are split."""
    return model.config.model_type == MODEL_TYPE


def split_in_place(wrapper: PreTrainedModel) -> None:
    """Split the fused layers of a `TimmWrapper`, which gets another class and config; other parameters stay objects.

    It computes what it did, and `save_pretrained` writes what it wrote.
    """
    kind, config = split_class(wrapper), split_config(wrapper)
    model: Any = wrapper
    model.__class__, model.config = kind, config
    model.split()


def rows_by_role(model: PreTrainedModel) -> "dict[str, Rows]":
    """Where each parameter of the dense form of a timm model stands in timm's; of any other model, nowhere."""
    if model.config.model_type.removeprefix(MODEL_TYPE_PREFIX) != MODEL_TYPE:
        return {}
    from ..modeling_timm import rows_in_timm

    return rows_in_timm(empty_model(model, {}))


def merged_form(split: PreTrainedModel) -> PreTrainedModel:
    """The `TimmWrapper` that computes what a dense split model does; it shares the memory of what is not fused."""
    from ..modeling_timm import merged_state

    own: Any = split
    config = own.merged_config(own.config)
    beside: dict[str, Any] = (own.config.model_args or {}) if config.model_type == BACKBONE else {}
    whole = without_storage(own.merged_class, config, {"": "sdpa"}, split.dtype, **beside)
    module: Any = whole.get_submodule(own.merged_prefix.rstrip("."))
    take_buffers(module, own.timm_model)
    module.load_state_dict(merged_state(own.timm_model.state_dict(), own.timm_model), assign=True)
    _describe(extractor_in(whole) or module, own.config.pretrained_cfg or {}, module.num_classes)
    return cast(Any, whole).to(split.device).train(split.training)


def _describe(module: Any, known: dict[str, Any], classes: int) -> None:
    """Let timm's module say of its weights what the config says of them, as timm reads them off it."""
    module.pretrained_cfg = {**module.pretrained_cfg, **known, "num_classes": classes}


def public_form(config: PreTrainedConfig, model_class: type[PreTrainedModel]) -> tuple[PreTrainedConfig, str]:
    """The config and the name of the class by which others know a dense model: the wrapper's for a split one."""
    if not isinstance(config, TimmViTConfig):
        return config, model_class.__name__
    kind: Any = model_class
    return kind.merged_config(config), kind.merged_class.__name__


def take_split_names(state: dict[str, Any], prefix: str, split: nn.Module, beside: str | None = None) -> None:
    """Cut tensors that `state` has under timm's names into those of the split form, in place.

    Args:
        prefix: of all names of this model in `state`.
        split: a model of the split form, storage not needed.
        beside: name of a parameter that a layer may have without having it in `split`.
    """
    from ..modeling_timm import Rows, rows_in_timm

    rows = rows_in_timm(split)
    if beside is not None:
        for name, own in list(rows.items()):
            if name.endswith(".weight") and own.parts == 1:
                rows[f"{name.removesuffix('weight')}{beside}"] = Rows(f"{own.name.removesuffix('weight')}{beside}")
    found = {own.name for own in rows.values() if prefix + own.name in state}
    for name, own in rows.items():
        if own.name in found:
            state[prefix + name] = state[prefix + own.name].chunk(own.parts)[own.part]
    for name in found - rows.keys():
        del state[prefix + name]
