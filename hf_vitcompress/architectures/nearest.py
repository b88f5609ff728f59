"""What to take instead where timm does not allow something: a setting, or a model of its kind and about as large."""

from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedModel

from ..configuration_factored import path_of


class _Kind(NamedTuple):
    """What a model is made of instead of attention by linear layers, and those that come nearest, by rising size."""

    what: str
    instead: dict[str, float]


_KINDS = {
    "mixer": _Kind(
        "it mixes tokens by feed-forwards",
        {
            "vit_tiny_patch16_224": 6,
            "vit_small_patch16_224": 22,
            "vit_base_patch16_224": 87,
            "vit_large_patch16_224": 304,
        },
    ),
    "convolutional attention": _Kind(
        "its attention is made of convolutions",
        {
            "tiny_vit_5m_224": 12,
            "coatnet_nano_rw_224": 15,
            "maxvit_tiny_rw_224": 29,
            "maxvit_small_tf_224": 69,
            "maxvit_base_tf_224": 120,
            "maxvit_large_tf_224": 212,
        },
    ),
    "convolutions": _Kind(
        "it is made of convolutions",
        {
            "tiny_vit_5m_224": 12,
            "tiny_vit_11m_224": 20,
            "swin_tiny_patch4_window7_224": 28,
            "swin_small_patch4_window7_224": 50,
            "swin_base_patch4_window7_224": 88,
            "swin_large_patch4_window7_224": 197,
        },
    ),
}
"""Names of timm, and millions of parameters."""


def no_attention(model: PreTrainedModel) -> str:
    """What to say of a model of timm in which the table finds no attention."""
    kind = _KINDS[_kind_of(model)]
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    nearest = min(kind.instead, key=lambda name: abs(kind.instead[name] - size))
    name: Any = getattr(model.config, "architecture", type(model).__name__)
    return (
        f"{name!r} of timm has no blocks of attention and feed-forward whose linear layers are known: {kind.what}. The "
        f"nearest model that can be compressed is {nearest!r}; the families are in the documentation (models)."
    )


def no_fewer_heads(model: PreTrainedModel, name: str) -> str | None:
    """What to say where heads are to be removed from attention of timm; `None` where it is not timm's.

    Args:
        name: of the attention, or of a module inside it.
    """
    while name and not path_of(type(model.get_submodule(name))).startswith("timm."):
        name = name.rpartition(".")[0]
    if not name:
        return None
    return (
        f'attention="prune" removes whole heads, and attention of timm has a fixed number: '
        f"{name.removeprefix('timm_model.')!r} is {path_of(type(model.get_submodule(name)))}. Use "
        'attention="joint" or attention="low_rank", in a preset, too: '
        'CompressionConfig.preset("vtp", attention="joint").'
    )


def _kind_of(model: nn.Module) -> str:
    classes = {type(module).__name__.lower() for module in model.modules()}
    if any("mixer" in name or name in ("resmlp", "spatialgatingblock") for name in classes):
        return "mixer"
    if any("attention" in name or "mhsa" in name or "attn" in name for name in classes):
        return "convolutional attention"
    return "convolutions"
