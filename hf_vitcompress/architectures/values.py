"""The values of attention: which of them may lose features, and what that saves."""

from collections.abc import Sequence

from transformers import PreTrainedModel

from .layers import LayerInfo, by_block, may_narrow_values


def value_pairs(model: PreTrainedModel, layers: Sequence[LayerInfo]) -> list[tuple[LayerInfo, LayerInfo]]:
    """(v, o) wherever the values of a head may have fewer features than its queries."""
    return [
        (roles["v"], roles["o"])
        for roles in by_block(layers).values()
        if {"v", "o"} <= set(roles) and may_narrow_values(model, roles["v"], roles["o"])
    ]


def pads_values(model: PreTrainedModel, attention: str) -> bool:
    """Whether that module computes its weighted sums at the full width, whatever the values have; so timm's do."""
    return getattr(model.get_submodule(attention), "shapes_itself", False)
