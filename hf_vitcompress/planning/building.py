"""A dense model, its groups of layers and a plan → a factored model."""

from collections.abc import Iterable

from accelerate import Accelerator
from transformers import PreTrainedModel

from ..architectures.layers import linear_layer
from ..architectures.merging import check_tokens
from ..model.assembly import assembled, shapes_in
from ..runtime.distributed import from_owner
from .groups.base import LayerGroup
from .plan import CompressionPlan


def build_model(
    model: PreTrainedModel,
    plan: CompressionPlan,
    groups: Iterable[LayerGroup],
    accelerator: Accelerator | None = None,
    share_memory: bool = False,
) -> PreTrainedModel:
    """The `Factored…` counterpart of `model` with the plan's shapes.

    It has the device, mode and attention implementation of `model`, and of each layer the dtype.

    Args:
        groups: solved, those of the plan among them.
        accelerator: several processes get the main one's tensors.
        share_memory: whether what stays dense is the same memory as in `model`, for a model that is only looked at, or
            a copy of it.
    """
    state = {}
    for group in groups:
        dtype = linear_layer(model, group.layers[0].name).weight.dtype
        for name, tensor in group.tensors(plan.shapes_of(group)).items():
            own = tensor.detach().to(device=model.device, dtype=dtype, copy=True).contiguous()
            state[name] = own if accelerator is None else from_owner(accelerator, own, 0)
    return assembled(model, plan.layers, state, share_memory, tokens=plan.tokens)


def merged_model(model: PreTrainedModel, tokens: dict[str, int]) -> PreTrainedModel:
    """`model` with merged tokens: another model on the same memory, to be looked at.

    Args:
        model: dense or factored; tokens that it merges already are merged as `tokens` says instead.
        tokens: block → how many tokens it merges, as in `CompressionPlan.tokens`.

    Raises:
        UnsupportedModelError, ConfigError: see `merging.check_tokens`.
    """
    check_tokens(model, tokens)
    return assembled(model, shapes_in(model), {}, share_memory=True, tokens=tokens)
