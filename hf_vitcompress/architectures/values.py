"""The parts of attention that are compressed together: values that may lose features, queries and keys."""

from collections.abc import Sequence

from transformers import PreTrainedModel

from .layers import LayerInfo, by_block, has_standard_attention, may_narrow_values


def value_pairs(model: PreTrainedModel, layers: Sequence[LayerInfo]) -> list[tuple[LayerInfo, LayerInfo]]:
    """(v, o) wherever the values of a head may have fewer features than its queries."""
    return [
        (roles["v"], roles["o"])
        for roles in by_block(layers).values()
        if {"v", "o"} <= set(roles) and may_narrow_values(model, roles["v"], roles["o"])
    ]


def joint_pairs(model: PreTrainedModel, layers: Sequence[LayerInfo]) -> list[tuple[LayerInfo, LayerInfo]]:
    """(q, k) wherever they may share a `down`."""
    return [
        (roles["q"], roles["k"])
        for roles in by_block(layers).values()
        if {"q", "k"} <= set(roles) and has_standard_attention(model, roles["q"].parent)
    ]


def pads_values(model: PreTrainedModel, attention: str) -> bool:
    """Whether that module computes its weighted sums at the full width, whatever the values have; so timm's do."""
    return getattr(model.get_submodule(attention), "shapes_itself", False)
