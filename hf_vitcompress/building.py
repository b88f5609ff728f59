"""A dense model, its factorizations and a plan → a factored model."""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from accelerate import init_empty_weights
from transformers import PreTrainedModel

from .factorization import Factorization
from .families import constructor_options, linear_layer
from .modeling_factored import factored_config_class, factored_model_class
from .planning import CompressionPlan


def build_model(
    model: PreTrainedModel, plan: CompressionPlan, factorizations: Mapping[str, Factorization]
) -> PreTrainedModel:
    """The `Factored…` counterpart of `model` with the plan's layers factored.

    It shares no memory with `model` and has its device, dtype, mode and attention implementation. Only the parts that
    stay dense are copied.
    """
    values = {name: value for name, value in model.config.to_dict().items() if name != "model_type"}
    values["compression"] = {"layers": {name: {"rank": rank} for name, rank in plan.ranks.items()}}
    config = factored_config_class(model.config.model_type).from_dict(values)
    with init_empty_weights(include_buffers=False):
        small = factored_model_class(type(model))._from_config(
            config,
            attn_implementation=model.config._attn_implementation,
            dtype=model.dtype,
            **constructor_options(model),
        )
    state = {
        name: tensor.detach().clone()
        for name, tensor in model.state_dict().items()
        if name.rpartition(".")[0] not in plan.ranks
    }
    for name, rank in plan.ranks.items():
        linear = linear_layer(model, name)
        up, down = factorizations[name].factors(rank)
        bias = factorizations[name].corrected_bias(linear.weight.detach(), linear.bias, rank)
        tensors = {"up.weight": up, "down.weight": down, "up.bias": bias}
        state |= {
            f"{name}.{key}": tensor.detach().to(linear.weight.dtype, copy=True).contiguous()
            for key, tensor in tensors.items()
            if tensor is not None
        }
    small.load_state_dict(state, assign=True)
    return small.to(model.device).train(model.training)


@contextlib.contextmanager
def approximated(
    model: PreTrainedModel, ranks: Mapping[str, int], factorizations: Mapping[str, Factorization]
) -> Iterator[None]:
    """Within the block, the layers named by `ranks` compute with their low-rank weight; undone afterwards.

    Costs the memory of those layers' dense weights, and no time in the forward pass compared with the dense model.
    """
    saved = {}
    try:
        with torch.no_grad():
            for name, rank in ranks.items():
                linear = linear_layer(model, name)
                saved[name] = (linear.weight.data, None if linear.bias is None else linear.bias.data)
                up, down = factorizations[name].factors(rank)
                bias = factorizations[name].corrected_bias(linear.weight.data, saved[name][1], rank)
                linear.weight.data = (up @ down).to(linear.weight.dtype)
                if bias is not None:
                    linear.bias.data = bias.to(linear.weight.dtype)
        yield
    finally:
        for name, (weight, bias) in saved.items():
            linear = linear_layer(model, name)
            linear.weight.data = weight
            if bias is not None:
                linear.bias.data = bias
