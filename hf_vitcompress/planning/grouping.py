"""Which layers of a model are compressed together, and as what."""

from collections.abc import Mapping, Sequence

from transformers import PreTrainedModel

from ..architectures.families import Role
from ..architectures.layers import (
    LayerInfo,
    by_block,
    feature_pairs,
    has_standard_attention,
    may_narrow_values,
    prunable_heads,
)
from ..config import CompressionConfig
from ..errors import ConfigError
from .groups.base import Given, LayerGroup
from .groups.heads import HeadsGroup
from .groups.layer import SingleLayerGroup
from .groups.pair import PairGroup
from .groups.query_key import QueryKeyGroup

Members = tuple[type[LayerGroup], Sequence[LayerInfo]]
"""Layers that are compressed together, and as what."""


def make_groups(layers: Sequence[LayerInfo], given: Given) -> list[LayerGroup]:
    """The groups of every block, as the config's `attention` and `mlp` want them, not yet solved.

    Layers whose partners are skipped are factored alone.

    Raises:
        ConfigError: nothing is left to compress, or attention that is to lose heads cannot.
    """
    model, config = given.model, given.config
    pairs = {pair[0].block: pair for pair in feature_pairs(layers, config)}
    groups: list[Members] = []
    for block, members in by_block(layers).items():
        groups += _attention_groups(model, members, config)
        if block in pairs:
            groups.append((PairGroup, pairs[block]))
        elif config.mlp in ("auto", "low_rank"):
            groups += _alone(members, ("gate", "fc1", "fc2"))
    if not groups:
        raise ConfigError(
            f"attention={config.attention!r} and mlp={config.mlp!r} leave nothing of the {len(layers)} layers to "
            "compress."
        )
    return [kind(together, given) for kind, together in groups]


def _attention_groups(
    model: PreTrainedModel, members: Mapping[Role, LayerInfo], config: CompressionConfig
) -> list[Members]:
    """Of a block's layers by role."""
    if config.attention == "none":
        return []
    if config.attention == "prune":
        heads = prunable_heads(model, members)
        return [(HeadsGroup, heads)] if heads else []
    left, groups = dict(members), []
    first = members.get("q") or members.get("v")
    if config.attention == "joint" and first is not None and has_standard_attention(model, first.parent):
        pairs: tuple[tuple[type[LayerGroup], tuple[Role, Role]], ...] = (
            (QueryKeyGroup, ("q", "k")),
            (PairGroup, ("v", "o")),
        )
        for kind, roles in pairs:
            if set(roles) <= set(left) and (kind is QueryKeyGroup or may_narrow_values(model, left["v"], left["o"])):
                groups.append((kind, [left.pop(role) for role in roles]))
    return groups + _alone(left, ("qkv", "qk", "kv", "q", "k", "v", "o"))


def _alone(members: Mapping[Role, LayerInfo], roles: Sequence[Role]) -> list[Members]:
    return [(SingleLayerGroup, [members[role]]) for role in roles if role in members]
