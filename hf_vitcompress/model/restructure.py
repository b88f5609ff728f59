"""A model changes its structure in place, so that whoever holds the object goes on with it: a Trainer, an optimizer.

The model takes over the modules that differ and keeps, as objects, those that do not, their parameters and whatever
was set on them. A parameter that stays the same object stands for the same thing as before, so that an optimizer's
state for it remains right; everything else is a new object.
"""

import copy
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from ..config.reading import read_json
from ..errors import UnsupportedModelError
from ..layers_factored import Attention, FactoredLinear, attention_names
from ..modeling_factored import CONFIG_FILE
from .assembly import Shapes, dense_class, empty_model, is_factored, tokens_in
from .shapes import (
    infer_layers,
    layout_of,
    linear_names,
    owner_of,
    removed_layers,
    shapes_of,
    take_current_names,
)
from .timm import is_wrapper, split_class
from .timm_forms import rows_by_role, split_in_place

if TYPE_CHECKING:
    from ..modeling_timm import Rows

Roles = dict[nn.Parameter, str]
"""Parameter → name of the parameter of the dense model that it stands for."""


def parameter_roles(model: nn.Module) -> Roles:
    """What each parameter of a model stands for: `fc1.down.weight` and `fc1.up.weight` both for `fc1.weight`."""
    linears = {name for name, module in model.named_modules() if isinstance(module, nn.Linear | FactoredLinear)}
    return {
        parameter: f"{owner_of(name, linears)}.{name.rpartition('.')[2]}".removeprefix(".")
        for name, parameter in model.named_parameters()
    }


@torch.no_grad()
def adopt(model: PreTrainedModel, source: PreTrainedModel) -> None:
    """Make `model` what `source` is: class, config, structure, values and companions.

    Parameters of layers that are the same in both stay the objects they are and take the values of `source`; so do the
    biases of layers that are newly factored. Factors are new objects even where their rank is the same, because they
    are in another basis. New parameters are frozen where those that they replace were.

    Args:
        model: dense or compressed; what was set on it, such as hooks or a wrapped `forward`, remains.
        source: dense or compressed, with the same dense class, on the same device. It is used up.

    Raises:
        UnsupportedModelError: the two are not forms of the same class.
    """
    values = {name: tensor.detach().clone() for name, tensor in source.state_dict().items()}
    _restructure(model, source, _new_bases(model, values))
    model.load_state_dict(values)


def carry_optimizer(optimizer: Any, before: Roles, model: PreTrainedModel) -> None:
    """Let an optimizer go on with a model that has changed its structure.

    Parameters that are the same objects keep their state. New ones join the group of the parameter that stands for
    the same, without any state; a part of a fused layer of timm keeps its share of that layer's. Inside each group the
    order is that of `model.named_parameters()`, as in an optimizer that a Trainer makes for this model, so that saved
    states fit. Groups stay, and with them learning rate schedules.

    Args:
        optimizer: a torch optimizer, or one that accelerate has wrapped.
        before: `parameter_roles` of the model before the change.
        model: after the change.
    """
    inner: Optimizer = getattr(optimizer, "optimizer", optimizer)
    names = {parameter: name for name, parameter in model.named_parameters()}
    group_of = {
        role: index
        for index, group in enumerate(inner.param_groups)
        for parameter in group["params"]
        if (role := before.get(parameter)) is not None
    }
    fused, held = rows_by_role(model), {role: parameter for parameter, role in before.items()}
    members: list[list[nn.Parameter]] = [[] for _ in inner.param_groups]
    for parameter, role in parameter_roles(model).items():
        index = group_of.get(role, group_of.get(fused[role].name) if role in fused else None)
        if index is not None and parameter.requires_grad:
            members[index].append(parameter)
        # Factors are in another basis; a bias is the same whether its layer is factored or not.
        if role in fused and parameter not in before and (names[parameter] == role or parameter.dim() == 1):
            _share_state(inner, held.get(fused[role].name), fused[role], parameter)
    for group, own in zip(inner.param_groups, members, strict=True):
        others = [parameter for parameter in group["params"] if parameter not in before]
        group["params"] = own + others
        if "param_names" in group:
            group["param_names"] = [names.get(parameter, "") for parameter in group["params"]]
    for parameter in before.keys() - names.keys():
        inner.state.pop(parameter, None)


def _share_state(optimizer: Optimizer, whole: nn.Parameter | None, rows: "Rows", part: nn.Parameter) -> None:
    """Give a parameter those rows of what an optimizer has noted of the one it was a part of, unless it was resized."""
    if whole is None or whole not in optimizer.state or part.shape != whole.chunk(rows.parts)[rows.part].shape:
        return
    optimizer.state[part] = {
        name: value.chunk(rows.parts)[rows.part].clone()
        if torch.is_tensor(value) and value.shape == whole.shape
        else copy.deepcopy(value)
        for name, value in optimizer.state[whole].items()
    }


# ---- structure


def _restructure(model: PreTrainedModel, source: PreTrainedModel, new_bases: set[str]) -> None:
    """Give `model` the structure of `source`; parameters that it keeps have their old values.

    Args:
        new_bases: modules to take over although their shapes are the same.
    """
    if is_wrapper(model) and dense_class(type(source)) is split_class(model):
        split_in_place(model)
    if dense_class(type(model)) is not dense_class(type(source)):
        raise UnsupportedModelError(f"A {type(model).__name__} cannot become a {type(source).__name__}.")
    before = parameter_roles(model)
    model.config = source.config
    _take_over(model, source, "", new_bases)
    _keep_biases(model, before, new_bases)
    frozen = {role for parameter, role in before.items() if not parameter.requires_grad}
    for parameter, role in parameter_roles(model).items():
        if role in frozen:
            parameter.requires_grad_(False)
    if is_factored(source):
        model.companions = source.companions
    else:
        vars(model).pop("companions", None)


def _take_over(own: nn.Module, source: nn.Module, path: str, new_bases: set[str]) -> None:
    """Recursively: modules of the same shape stay, others are those of `source`."""
    own.__class__ = source.__class__
    for name, value in vars(source).items():
        # Numbers of heads and the like; a runtime switch such as gradient checkpointing is no part of the structure.
        if name == "config" or (isinstance(value, int) and not isinstance(value, bool) and not name.startswith("_")):
            setattr(own, name, value)
    children = dict(own.named_children())
    for name, child in source.named_children():
        mine, child_path = children.get(name), f"{path}.{name}".removeprefix(".")
        if mine is not None and _own_shapes(mine) == _own_shapes(child) and child_path not in new_bases:
            _take_over(mine, child, child_path, new_bases)
        else:
            children[name] = child.train(own.training)
    for name in dict(own.named_children()):
        delattr(own, name)
    for name, _ in source.named_children():  # in this order, which is that of the parameters
        setattr(own, name, children[name])


def _own_shapes(module: nn.Module) -> dict[str, torch.Size]:
    tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return {name: tensor.shape for name, tensor in tensors}


def _keep_biases(model: nn.Module, before: Roles, new_bases: set[str]) -> None:
    """A bias is the same whether its layer is factored or not: the old parameter takes the place of the new one.

    But not where the layer's outputs are pruned, and may be others.
    """
    layers = (getattr(model.config, "compression", None) or {}).get("layers", {})
    pruned = {name for name, shape in layers.items() if "out_features" in shape}
    changed = {path for name in pruned for path in (name, f"{name}.up") if path in new_bases}
    old = {role: parameter for parameter, role in before.items() if parameter.dim() == 1}
    roles = parameter_roles(model)
    for path, module in model.named_modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if path in changed:
                continue
            mine = old.get(roles[parameter])
            if mine is not None and mine is not parameter and mine.shape == parameter.shape:
                setattr(module, name, mine)


def _new_bases(model: PreTrainedModel, values: Mapping[str, Tensor]) -> set[str]:
    """Modules on either side of a limited rank, as far as their values change."""
    paths = set()
    for name, module in model.named_modules():
        if isinstance(module, FactoredLinear):
            paths |= {f"{name}.down", f"{name}.up"}
        elif name.endswith(".qk_down"):
            attention = name.removesuffix(".qk_down")
            names = attention_names(type(model.get_submodule(attention))) or Attention()
            paths |= {name, f"{attention}.{names.query}", f"{attention}.{names.key}"}
    # As many neurons or values as before may be other ones.
    layers = (getattr(model.config, "compression", None) or {}).get("layers", {})
    paths |= {name for name, shape in layers.items() if {"in_features", "out_features"} & set(shape)}
    state = model.state_dict()
    return {
        path
        for path in paths
        if (key := f"{path}.weight") in values and key in state and not _equal(values[key], state[key])
    }


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


# ---- loading

_following: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()


def follow_layout(model: PreTrainedModel) -> None:
    """From now on, `model.load_state_dict` first takes the layout that the state dict has, compressed or dense.

    It also reads dense checkpoints whose tensors `save_pretrained` has written under the names of an older version of
    the architecture, which `load_state_dict` alone ignores where it is not strict. Layers that a state dict does not
    mention stay as they are. Calling this again changes nothing.
    """
    if model not in _following:
        _following.add(model)
        model.register_load_state_dict_pre_hook(_take_layout)


def _take_layout(model: PreTrainedModel, state: dict[str, Any], prefix: str, *_: Any) -> None:
    own = {name[len(prefix) :] for name in state if name.startswith(prefix)}
    if is_wrapper(model) and own <= model.state_dict().keys():
        return  # timm's own names: it stays one
    dense = empty_model(model, {})
    take_current_names(state, prefix, dense)
    incoming = shapes_of({name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)})
    linears = linear_names(dense)
    mentioned = {owner_of(name, linears) for name in incoming}
    mentioned |= {name for producers in removed_layers(incoming, dense).values() for name in producers}
    kept = {n: s for n, s in shapes_of(model.state_dict()).items() if owner_of(n, linears) not in mentioned}
    wanted = infer_layers({**kept, **incoming}, dense)
    if is_wrapper(model) or wanted != layout_of(model, dense):
        take_layout(model, wanted)


def take_tokens(model: PreTrainedModel, folder: Path) -> None:
    """Let `model` merge the tokens that the checkpoint in `folder` merges, once it has that one's tensors."""
    compression = read_json(folder / CONFIG_FILE, "config").get("compression") or {}
    tokens = compression.get("tokens", {})
    if tokens != tokens_in(model):
        companions = vars(model).get("companions")
        _restructure(model, empty_model(model, layout_of(model), tokens), set())
        if companions is not None and is_factored(model):
            cast(Any, model).companions = companions


def take_layout(model: PreTrainedModel, layers: Shapes) -> None:
    """Give `model` a layout; layers that differ from it are 0 until values are loaded into them.

    It merges the tokens that it merged before, which no tensor tells of.
    """
    _restructure(model, empty_model(model, layers, tokens_in(model)), set())
    device = next(parameter.device for parameter in model.parameters() if not parameter.is_meta)
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta:
                zeros = torch.zeros_like(parameter, device=device)
                setattr(module, name, nn.Parameter(zeros, requires_grad=parameter.requires_grad))
