"""Which layers of a state dict are compressed, and to what: read off its names and shapes.

A layout is what `config.compression["layers"]` holds, module name → shapes. An `nn.Linear` has `rank`, and
`in_features` and `out_features` where these are smaller than the dense layer's, 0 where the module is removed; an
attention module, the parent of its query, key and value projections, has `qk_rank`.
"""

import copy
from collections.abc import Container, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming

from ..architectures.families import Role
from ..architectures.layers import (
    LayerInfo,
    by_block,
    find_layers,
    has_standard_attention,
    head_dim,
)
from ..errors import UnsupportedModelError
from ..layers_factored import ATTENTIONS
from .assembly import Shapes, empty_model
from .timm_forms import is_split, take_split_names

TensorShapes = Mapping[str, Sequence[int]]
"""Tensor name → its shape."""


READERS: dict[Role, tuple[Role, ...]] = {"fc2": ("gate", "fc1"), "o": ("q", "k", "v")}
"""What reads features, and what makes them: removed together."""


def linear_names(model: nn.Module) -> set[str]:
    """Module names of a dense model's linear layers."""
    return {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def owner_of(tensor: str, linears: Container[str]) -> str:
    """The dense layer a tensor of any layout stands for: `fc1` for `fc1.up.weight`, the query's for `qk_down.weight`.

    Args:
        linears: names of the layers that may be factored.
    """
    module = tensor.rpartition(".")[0]
    parent, _, last = module.rpartition(".")
    if last == "qk_down":
        queries = {f"{parent}.{names.query}" for names in ATTENTIONS.values()}
        return next(name for name in queries if name in linears)
    return parent if last in ("up", "down") and parent in linears else module


def layout_of(model: PreTrainedModel, dense: PreTrainedModel | None = None) -> Shapes:
    """The layout that a model has.

    Args:
        dense: `empty_model(model, {})`, where it is at hand.
    """
    return infer_layers(shapes_of(model.state_dict()), dense or empty_model(model, {}))


def shapes_of(state: Mapping[str, Any]) -> dict[str, torch.Size]:
    """The shapes of a state dict's tensors; other entries are left out."""
    return {name: tensor.shape for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}


def take_current_names(state: dict[str, Any], prefix: str, dense: PreTrainedModel, beside: str | None = None) -> None:
    """Give tensors that `state` has under the names of an older version of the architecture the current ones, in place.

    Tensors that are now split, or put together, are so; names that lead to no tensor of `dense` stay.

    Args:
        prefix: of all names of this model in `state`.
        dense: a dense model of the class, storage not needed.
        beside: name of a parameter that a layer may have without having it in `dense`.

    Raises:
        UnsupportedModelError: a tensor cannot be converted, for instance because others are missing.
    """
    if is_split(dense):
        take_split_names(state, prefix, dense, beside)
    known = set(dense.state_dict())
    if beside is not None:
        known |= {f"{name.removesuffix('weight')}{beside}" for name in known if name.endswith(".weight")}
    mapping = conversion_mapping.get_model_conversion_mapping(dense, add_legacy=False)
    pending: dict[str, tuple[WeightConverter, list[str]]] = {}
    for name in [name for name in state if name.startswith(prefix) and name[len(prefix) :] not in known]:
        current = _renamed(name[len(prefix) :], mapping)
        if (found := _converter_of(current, mapping, known)) is not None:
            first, pattern, converter = found
            own, sources = pending.setdefault(first, (copy.deepcopy(converter), []))
            own.add_tensor(first, name, pattern, state[name])
            sources.append(name)
        elif current in known and prefix + current not in state:
            state[prefix + current] = state.pop(name)
    for first, (converter, sources) in pending.items():
        for name, tensor in _converted(converter, first, sources, dense).items():
            state.setdefault(prefix + name, tensor)
        for name in sources:
            del state[name]


def _renamed(name: str, mapping: Sequence[Any]) -> str:
    for renaming in mapping:
        if isinstance(renaming, WeightRenaming):
            name = renaming.rename_source_key(name)[0]
    return name


def _converter_of(name: str, mapping: Sequence[Any], known: Container[str]) -> tuple[str, str, WeightConverter] | None:
    """What converts the tensor of that name: the first of the tensors it may become, the pattern it fits, and how."""
    for converter in mapping:
        first, pattern = converter.rename_source_key(name)
        if isinstance(converter, WeightConverter) and pattern is not None and first.replace("*", "0") in known:
            return first, pattern, converter
    return None


def _converted(converter: WeightConverter, first: str, sources: list[str], dense: PreTrainedModel) -> dict[str, Any]:
    """Current name → tensor, of all that an operation of transformers makes of the tensors it was given."""
    try:
        made = converter.convert(first, model=dense, config=dense.config)
    except Exception as error:  # transformers wraps what its operations raise, and those raise anything
        raise UnsupportedModelError(
            f"{', '.join(sources)} of the state dict, an older layout of {type(dense).__name__}, cannot be converted: "
            f"{error}. Load the checkpoint with from_pretrained instead."
        ) from error
    return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


def infer_layers(shapes: TensorShapes, dense: PreTrainedModel) -> Shapes:
    """The layout of a state dict; layers that it does not mention count as dense.

    Args:
        shapes: by in-memory tensor name.
        dense: a dense model of the class, storage not needed.

    Raises:
        UnsupportedModelError: the shapes are those of no compressed form of `dense`.
    """
    linears: dict[str, nn.Linear] = {n: m for n, m in dense.named_modules() if isinstance(m, nn.Linear)}
    layers = {name: _linear_entry(shapes, name, linear) for name, linear in linears.items()}
    for name, roles in attentions_of(dense).items():
        value_head_dim(shapes, dense, roles)  # a whole number
        if (down := shapes.get(f"{name}.qk_down.weight")) is not None:
            layers[name] = {"qk_rank": down[0]}
            for role in ("q", "k"):
                layers[roles[role].name].pop("in_features", None)
    for reader, producers in removed_layers(shapes, dense).items():
        layers[reader] = {"in_features": 0}
        layers.update((name, {"out_features": 0}) for name in producers)
    return {name: entry for name, entry in layers.items() if entry}


def removed_layers(shapes: TensorShapes, dense: PreTrainedModel) -> dict[str, list[str]]:
    """Layers that read what is not there, of which the bias alone is left, and those that are gone with it.

    Biases without the weights of any other layer are no model: nothing is removed then.
    """
    linears = linear_names(dense)
    owners = {owner_of(name, linears) for name in shapes if name.endswith(".weight")}
    biased = {name.removesuffix(".bias") for name in shapes if name.endswith(".bias")}
    if not owners & linears:
        return {}
    found = {}
    for roles in by_block(find_layers(dense)).values():
        for reader, producers in READERS.items():
            names = [roles[role].name for role in producers if role in roles]
            name = roles[reader].name if reader in roles else ""
            if name in biased - owners and names and not {*names} & (owners | biased):
                found[name] = names
    return found


def _linear_entry(shapes: TensorShapes, name: str, linear: nn.Linear) -> dict[str, int]:
    entry: dict[str, int] = {}
    if (size := linear_shape(shapes, name)) is None:
        return entry
    if (down := shapes.get(f"{name}.down.weight")) is not None:
        entry["rank"] = down[0]
    for key, now, dense in zip(
        ("out_features", "in_features"), size, (linear.out_features, linear.in_features), strict=True
    ):
        if now > dense:
            raise UnsupportedModelError(f"{name!r} has {key}={now} in the state dict and only {dense} in the model.")
        if now != dense:
            entry[key] = now
    return entry


def linear_shape(shapes: TensorShapes, name: str) -> tuple[int, int] | None:
    """(rows, columns) of a layer's weight or of the product of its factors; `None` where neither is there."""
    weight, up, down = (shapes.get(f"{name}.{key}weight") for key in ("", "up.", "down."))
    if weight is not None:
        return weight[0], weight[1]
    if up is None and down is None:
        return None
    if up is None or down is None or up[1] != down[0]:
        raise UnsupportedModelError(
            f"The factors of {name!r} do not fit: up has the shape {up and tuple(up)}, down {down and tuple(down)}. "
            "The state dict is incomplete or damaged."
        )
    return up[0], down[1]


def attentions_of(dense: PreTrainedModel) -> dict[str, dict[Role, LayerInfo]]:
    """Of each attention module whose heads may change, its layers by role."""
    blocks = by_block(find_layers(dense)).values()
    known = [roles for roles in blocks if {"q", "k", "v", "o"} <= set(roles)]
    return {roles["q"].parent: roles for roles in known if has_standard_attention(dense, roles["q"].parent)}


def value_head_dim(shapes: TensorShapes, dense: PreTrainedModel, roles: Mapping[Role, LayerInfo]) -> int:
    """Value features of each head of an attention module; as many heads are left as it has query rows for."""
    attention = roles["q"].parent
    size = head_dim(dense, attention)
    query, value = (linear_shape(shapes, roles[role].name) for role in ("q", "v"))
    if query is None or value is None or query[0] == value[0]:
        return size
    heads, rest = divmod(query[0], size)
    if rest or heads == 0 or value[0] % heads:
        raise UnsupportedModelError(
            f"{attention!r} has {query[0]} query rows and {value[0]} value rows, which is no whole number of heads "
            f"of size {size}."
        )
    return value[0] // heads
