"""A dense model, its parts and a plan → a factored model."""

from collections.abc import Iterable, Mapping

from accelerate import Accelerator, init_empty_weights
from torch import Tensor
from transformers import PreTrainedModel

from .distribution import from_owner
from .layers import constructor_options
from .modeling_factored import factored_config_class, factored_model_class
from .modes import attention_implementations
from .parts import Part, Shapes
from .planning import CompressionPlan


def build_model(
    model: PreTrainedModel,
    plan: CompressionPlan,
    parts: Iterable[Part],
    accelerator: Accelerator | None = None,
    share_memory: bool = False,
) -> PreTrainedModel:
    """The `Factored…` counterpart of `model` with the plan's shapes.

    It has the device, dtype, mode and attention implementation of `model`.

    Args:
        parts: solved, those of the plan among them.
        accelerator: several processes get the main one's tensors.
        share_memory: whether what stays dense is the same memory as in `model`, for a model that is only looked at, or
            a copy of it.
    """
    state = {}
    for part in parts:
        for name, tensor in part.tensors(plan.shapes_of(part)).items():
            own = tensor.detach().to(device=model.device, dtype=model.dtype, copy=True).contiguous()
            state[name] = own if accelerator is None else from_owner(accelerator, own, 0)
    return assembled(model, plan.layers, state, share_memory)


def assembled(
    model: PreTrainedModel,
    layers: Mapping[str, dict[str, int]] | Shapes,
    state: dict[str, Tensor],
    share_memory: bool = False,
    target: str | None = None,
) -> PreTrainedModel:
    """A factored model of these shapes and tensors; the others are those of `model`."""
    values = {name: value for name, value in model.config.to_dict().items() if name != "model_type"}
    values["compression"] = {"layers": {name: dict(shape) for name, shape in layers.items()}}
    if target is not None:
        values["compression"]["target"] = target
    config = factored_config_class(model.config.model_type).from_dict(values)
    with init_empty_weights(include_buffers=False):
        small = factored_model_class(type(model))._from_config(
            config,
            attn_implementation=attention_implementations(model),
            dtype=model.dtype,
            **constructor_options(model),
        )
    new = small.state_dict().keys() - state.keys()
    for name, tensor in model.state_dict().items():
        if name in new:
            state[name] = tensor.detach() if share_memory else tensor.detach().clone()
    small.load_state_dict(state, assign=True)
    small.tie_weights()
    if hasattr(model, "reading"):
        small.reading = model.reading  # how `outputs` reads it, as part of a larger model
    if getattr(model, "generation_config", None) is not None:
        small.generation_config = model.generation_config
    return small.to(model.device).train(model.training)
