"""Which blocks of a model may merge tokens, and how many."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ..configuration_factored import MODEL_TYPE_PREFIX
from ..errors import ConfigError, UnsupportedModelError, did_you_mean, shown
from ..tokens_factored import can_weigh, config_of, prefix_tokens
from .inputs import height_and_width
from .running import attention_implementations
from .subject import Reading

_RELATIVE = "its attention adds a bias for the distance of two patches, and merged ones have no place of their own"
_WINDOWS = "its attention sees windows of the image, which need every patch in its place"
_EVERY_PATCH = "it answers for every patch, and merged patches would get one answer"
_TIMM = (
    "timm calls its blocks without weights of tokens (convert_from_timm gives many a form whose tokens can be merged)"
)

REASONS = {
    "beit": _RELATIVE,
    "data2vec-vision": _RELATIVE,
    "swin": _WINDOWS,
    "swinv2": _WINDOWS,
    "dinov3_vit": "its attention turns queries and keys by the place of each patch, and merged ones have no place",
    "siglip2": "its images are padded, and padding would be merged with patches",
    "siglip2_vision_model": "its images are padded, and padding would be merged with patches",
    "yolos": _EVERY_PATCH,
    "dpt": _EVERY_PATCH,
    "timm_vit": _TIMM,
    "timm_wrapper": _TIMM,
}
"""By model type of what has the blocks."""

DENSE_TASKS = (
    "Backbone",
    "ForDepthEstimation",
    "ForMaskedImageModeling",
    "ForObjectDetection",
    "ForPreTraining",
    "ForSemanticSegmentation",
)
"""In the names of classes that answer for every patch."""


def why_not_merge(model: PreTrainedModel, reading: Reading | None = None) -> str | None:
    """Why the tokens of a model cannot be merged, in one sentence; `None` where they can.

    Args:
        model: dense or compressed.
        reading: what a larger model reads of it.
    """
    reason = _reason(model, reading)
    return None if reason is None else f"The tokens of {type(model).__name__} cannot be merged: {reason}."


def _reason(model: PreTrainedModel, reading: Reading | None) -> str | None:
    if any(task in type(model).__name__ for task in DENSE_TASKS):
        return _EVERY_PATCH
    if reading is not None and reading.layers:
        return "the model around it reads hidden states between its blocks, where tokens are still merged"
    for part in model.modules():
        if isinstance(part, PreTrainedModel):
            model_type = part.config.model_type.removeprefix(MODEL_TYPE_PREFIX)
            if model_type in REASONS:
                return REASONS[model_type]
    if not _stacks(model):
        return "the blocks of its class are not known to take tokens of different weight"
    unable = [name for name in attention_implementations(model).values() if not can_weigh(name)]
    if unable:
        return f"attn_implementation={unable[0]!r} takes no weights of tokens; load it with 'sdpa'"
    return None


def merging_blocks(model: PreTrainedModel) -> list[str]:
    """Module names of the blocks that may merge tokens, in the model's order: all but the last of each stack."""
    if why_not_merge(model) is not None:
        return []
    return [name for stack in _stacks(model).values() for name in stack[:-1]]


def patches_of(model: PreTrainedModel, block: str) -> int | None:
    """Patch tokens that enter the stack of a block for an image of the size in the config, which may state none."""
    config: Any = config_of(model.get_submodule(block))
    return None if getattr(config, "image_size", None) is None else patches_in(config, config.image_size)


def patches_in(config: Any, image_size: Any) -> int:
    """Patch tokens of an image of that size, those that a model masks left out.

    Args:
        config: of the model that the blocks are part of.
        image_size: pixels, one number or height and width.
    """
    (height, width), (down, across) = height_and_width(image_size), height_and_width(config.patch_size)
    return int((height // down) * (width // across) * (1 - getattr(config, "mask_ratio", 0.0)))


def tokens_left(patches: int, counts: Iterable[int]) -> int:
    """Patch tokens after blocks that merge so many, in their order: each at most half of those that it has."""
    for count in counts:
        patches -= min(count, patches // 2)
    return patches


def check_tokens(model: PreTrainedModel, tokens: Mapping[str, Any], reading: Reading | None = None) -> None:
    """Refuse merged tokens that the model cannot have.

    Args:
        tokens: block → how many tokens it merges.

    Raises:
        UnsupportedModelError: its tokens cannot be merged.
        ConfigError: a block is unknown or the last one, a number is none, or more than half of the patch tokens that
            are left go at once.
    """
    if not tokens:
        return
    if (refusal := why_not_merge(model, reading)) is not None:
        raise UnsupportedModelError(f"{refusal} Leave tokens out of the plan.")
    known = merging_blocks(model)
    for name, count in tokens.items():
        if name not in known:
            raise ConfigError(
                f"The plan merges tokens in {shown(name)}, which is not a block of the model that others follow."
                f"{did_you_mean(name, known)}"
            )
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise ConfigError(
                f"The plan merges {shown(count)} tokens in {name!r}; it must be a whole number, 0 or more."
            )
    for stack in _stacks(model).values():
        if (patches := patches_of(model, stack[0])) is not None:
            _check_counts(stack, tokens, patches)


def _check_counts(stack: Sequence[str], tokens: Mapping[str, int], left: int) -> None:
    for name in stack:
        if (count := tokens.get(name, 0)) > left // 2:
            raise ConfigError(
                f"The plan merges {shown(count)} tokens in {name!r}, where {left} patch tokens are left. A block can "
                f"merge at most half of them, {left // 2}."
            )
        left -= count


def _stacks(model: PreTrainedModel) -> dict[str, list[str]]:
    """Names of the blocks whose tokens can be merged, by that of the list they are in."""
    return {
        name: [f"{name}.{place}" for place in range(len(blocks))]
        for name, blocks in model.named_modules()
        if isinstance(blocks, nn.ModuleList) and len(blocks) and prefix_tokens(blocks[0]) is not None
    }
