"""A compressed model → the dense model that computes the same."""

import copy
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from ..architectures.layers import head_dim, linear_layer
from ..errors import UnsupportedModelError
from .assembly import empty_model
from .companions import beside_dense, companions_of, give_companions
from .loading import check_model
from .shapes import attentions_of, linear_names, removed_layers, shapes_of, value_head_dim
from .timm import is_wrapper
from .timm_forms import is_split, merged_form, take_split_names


@torch.no_grad()
def to_dense(model: PreTrainedModel) -> PreTrainedModel:
    """The dense model that computes the same: factors are multiplied out, pruned features are filled with zeros.

    Tokens are no longer merged, so that of a model which merges some it is the same one before that.

    Args:
        model: compressed or dense. Anything set on the object, such as hooks or a wrapped `forward`, is left behind.

    Returns:
        a model of the dense class that shares no memory with `model`, on its device, in its dtype and mode; of a model
        of timm, a `TimmWrapper` whose `timm_model` is timm's own module. It has the original number of parameters, and
        its outputs are equal up to rounding. `save_pretrained` writes image processor, tokenizer and licence beside it,
        as far as `model` has them.

    Raises:
        UnsupportedModelError: the model is quantized or has adapters, or a tensor does not fit into the dense model.
    """
    check_model(model)
    dense = empty_model(model, {})
    state = dict(model.state_dict())
    if is_wrapper(model):
        take_split_names(state, "", dense)
    dense.load_state_dict(dense_state_dict(state, dense), assign=True)
    dense = merged_form(dense) if is_split(dense) else dense
    if getattr(model, "generation_config", None) is not None:
        dense.generation_config = copy.deepcopy(model.generation_config)
    give_companions(dense, beside_dense(companions_of(model)))
    return cast(Any, dense).to(model.device).train(model.training)


def dense_state_dict(state: Mapping[str, Tensor], dense: PreTrainedModel) -> dict[str, Tensor]:
    """The dense form of a state dict of any layout (see `shapes`).

    Widths that were pruned come back as zeros: of a hidden layer, of whole heads (after those that are left), of each
    head's values, and of whole modules. They change nothing, because the rows of one layer and the columns that read
    them are both 0.

    Args:
        state: by in-memory name.
        dense: a model of the dense class, storage not needed.
    """
    result: dict[str, Tensor] = {}
    attentions = attentions_of(dense)
    roles = {layer.name: (role, own) for own in attentions.values() for role, layer in own.items()}
    state = {**state, **_zeros(state, dense)}
    shapes = shapes_of(state)
    for name in linear_names(dense):
        weight, bias = _product(state, name)
        role, own = roles.get(name, (None, {}))
        if role in ("q", "k") and (down := state.get(f"{own['q'].parent}.qk_down.weight")) is not None:
            weight = _times(weight, down)
        if role in ("v", "o"):
            size, dense_size = value_head_dim(shapes, dense, own), head_dim(dense, own["q"].parent)
            if role == "o":
                weight = _fill_heads(weight.T, size, dense_size).T
            else:
                weight = _fill_heads(weight, size, dense_size)
                bias = None if bias is None else _fill_heads(bias, size, dense_size)
        result[f"{name}.weight"] = weight
        if bias is not None:
            result[f"{name}.bias"] = bias
    for name, wanted in dense.state_dict().items():
        result[name] = _padded(result[name] if name in result else _found(state, name), wanted.shape, name)
    return result


def _zeros(state: Mapping[str, Tensor], dense: PreTrainedModel) -> dict[str, Tensor]:
    """The weights, and the biases of what makes features, of the modules that are removed; the last bias stays.

    Raises:
        UnsupportedModelError: the dense layer has no bias for the mean that is in it.
    """
    found: dict[str, Tensor] = {}
    for reader, producers in removed_layers(shapes_of(state), dense).items():
        bias = state[f"{reader}.bias"]
        if linear_layer(dense, reader).bias is None:
            raise UnsupportedModelError(
                f"{reader!r} is what is left of a removed module: a bias, which the dense layer does not have."
            )
        names = [f"{reader}.weight", *(f"{name}.{key}" for name in producers for key in ("weight", "bias"))]
        own = dense.state_dict()
        found |= {name: bias.new_zeros(own[name].shape) for name in names if name in own}
    return found


def _product(state: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor | None]:
    """Weight (out, in) and bias (out,) of a layer, factored or not."""
    if (up := state.get(f"{name}.up.weight")) is None:
        return _found(state, f"{name}.weight"), state.get(f"{name}.bias")
    return _times(up, _found(state, f"{name}.down.weight")), state.get(f"{name}.up.bias")


def _times(left: Tensor, right: Tensor) -> Tensor:
    return (left.float() @ right.float()).to(left.dtype)


def _fill_heads(rows: Tensor, size: int, head_dim: int) -> Tensor:
    """(heads · size, …) → (heads · head_dim, …), zeros after each head's rows."""
    heads = rows.unflatten(0, (-1, size))
    filled = heads.new_zeros(heads.shape[0], head_dim, *heads.shape[2:])
    filled[:, :size] = heads
    return filled.flatten(0, 1)


def _padded(tensor: Tensor, shape: torch.Size, name: str) -> Tensor:
    """A copy, with zeros after its last row and column."""
    missing = [wanted - now for wanted, now in zip(shape, tensor.shape, strict=False)]
    if tensor.dim() != len(shape) or min(missing, default=0) < 0:
        raise UnsupportedModelError(
            f"{name!r} has the shape {tuple(tensor.shape)}, which does not fit into the dense model's {tuple(shape)}. "
            "The model and its config do not belong together."
        )
    if not any(missing):
        return tensor.detach().clone()
    padding = [size for count in reversed(missing) for size in (0, count)]
    return functional.pad(tensor.detach(), padding).contiguous()


def _found(state: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in state:
        raise UnsupportedModelError(f"The state dict has no tensor {name!r}; it is incomplete or of another model.")
    return state[name]
