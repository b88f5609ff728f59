"""Blocks of factored models that merge tokens, so that the blocks after them have fewer to compute.

A block merges at its end, by bipartite soft matching (Bolya et al., arXiv 2210.09461): of its patch tokens every other
one looks for the one between that is most like it, by the cosine of their hidden states, and the closest pairs become
their mean, in which each token counts as many times as it stands for tokens of the embeddings. In the attention of
the blocks after it a token weighs as many times, too, so that merging equal tokens changes nothing. The class token and
others that are not patches stay as they are. The last block of the stack gives every token of the embeddings the hidden
state of the token that it is in, in its old place, so that nothing around the blocks has to know.

Which token each of these is in travels on the hidden states themselves, as an attribute of the tensor: nothing is kept
in the model, so that threads, checkpointed blocks and exported programs compute the same.

This file needs torch and transformers only. It is copied beside every saved checkpoint, with `modeling_factored.py`.
"""

import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from .configuration_factored import FACTORED, PUBLIC, factored_name, made_class, path_of

MERGING: dict[str, int] = {
    f"transformers.models.{path}": prefix
    for path, prefix in {
        "vit.modeling_vit.ViTLayer": 1,
        "deit.modeling_deit.DeiTLayer": 2,
        "dinov2.modeling_dinov2.Dinov2Layer": 1,
        "dinov2_with_registers.modeling_dinov2_with_registers.Dinov2WithRegistersLayer": 1,
        "vit_mae.modeling_vit_mae.ViTMAELayer": 1,
        "vit_msn.modeling_vit_msn.ViTMSNLayer": 1,
        "ijepa.modeling_ijepa.IJepaLayer": 0,
        "clip.modeling_clip.CLIPEncoderLayer": 1,
        "siglip.modeling_siglip.SiglipEncoderLayer": 0,
    }.items()
}
"""By the path of the class: blocks that take hidden states and an attention mask and whose tokens have no positions but
those in their embeddings, with the number of tokens before the patches, registers not counted."""

ORIGIN = "token_origin"
"""Attribute of hidden states (n, tokens, d): the token that each token of the embeddings is in, (n, tokens there)."""

WITHOUT_NUMBERS = ("flash", "flex", "paged", "/")
"""In the names of attention implementations that take no mask of numbers, the last in those of kernels on the Hub."""


class MergedTokensMixin:
    """A block that merges tokens, or that follows one which does.

    Attributes:
        prefix_tokens: tokens before the patches, which are not merged.
        merged_tokens: patch tokens that are merged into others at its end: at most half of those that there are.
        merged_before: the same of all blocks before it; 0 in the first that merges.
        blocks_after: blocks of the stack after it; the last one gives all tokens their places again.
    """

    prefix_tokens: int
    merged_tokens: int
    merged_before: int
    blocks_after: int

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        origin = self._origin(hidden_states)
        if self.merged_before:
            check_attention(self._attention(), type(self).__name__)
            attention_mask = proportional_mask(hidden_states, origin, attention_mask)
        hidden_states = super().forward(hidden_states, attention_mask, **kwargs)  # type: ignore[misc]
        if self.merged_tokens:
            hidden_states, origin = merged(hidden_states, origin, self.merged_tokens, self.prefix_tokens)
        if not self.blocks_after:
            return restored(hidden_states, origin)
        setattr(hidden_states, ORIGIN, origin)
        return hidden_states

    def _origin(self, hidden_states: Tensor) -> Tensor:
        images, tokens = hidden_states.shape[:2]
        if not self.merged_before:
            return torch.arange(tokens, device=hidden_states.device).expand(images, -1)
        origin = getattr(hidden_states, ORIGIN, None)
        if origin is None:
            raise RuntimeError(
                f"A {type(self).__name__} got hidden states that do not say which tokens earlier blocks merged: "
                "something between the blocks made a new tensor of them. Run the blocks one after the other, on one "
                "device, and checkpoint them with gradient_checkpointing_kwargs={'use_reentrant': False}."
            )
        return origin

    def _attention(self) -> str | None:
        return config_of(cast(nn.Module, self))._attn_implementation  # which may change after the block was made


def can_weigh(implementation: str | None) -> bool:
    """Whether an attention implementation takes a mask of numbers."""
    return not any(part in (implementation or "") for part in WITHOUT_NUMBERS)


def check_attention(implementation: str | None, name: str) -> None:
    """Refuse attention that cannot weigh tokens."""
    if not can_weigh(implementation):
        raise ValueError(
            f"{name} weighs merged tokens by a mask of numbers, which attn_implementation={implementation!r} does not "
            'take. Load the model with attn_implementation="sdpa".'
        )


def merged(hidden_states: Tensor, origin: Tensor, count: int, prefix: int) -> tuple[Tensor, Tensor]:
    """Merge the `count` patch tokens that are most like another one into that.

    Args:
        hidden_states: (n, tokens, d).
        origin: (n, tokens of the embeddings), which of `tokens` each is in.
        count: at most half of the patch tokens are merged, whatever it is.
        prefix: the first tokens, which stay.

    Returns:
        hidden states (n, tokens − count, d), in their order, and their origin.
    """
    images, tokens, _ = hidden_states.shape
    if (count := min(count, (tokens - prefix) // 2)) <= 0:
        return hidden_states, origin
    gone, partner = closest(hidden_states, count, prefix)
    places = torch.arange(tokens, device=gone.device).expand(images, -1)
    is_gone = torch.zeros_like(places).scatter(1, gone, 1)
    kept = (places + tokens * is_gone).sort(1).values[:, : tokens - count]
    place = (1 - is_gone).cumsum(1) - 1
    into = place.gather(1, partner)
    place = place.scatter(1, gone, into)
    size = sizes(origin, tokens).to(hidden_states.dtype)
    share = size.gather(1, gone) / size.scatter_add(1, partner, size.gather(1, gone)).gather(1, partner)
    # The mean of all that come together, as what each of them adds to the one that stays.
    change = (rows(hidden_states, gone) - rows(hidden_states, partner)) * share[..., None]
    result = rows(hidden_states, kept)
    result.flatten(0, 1).index_add_(0, _flat(into, tokens - count), change.flatten(0, 1))
    return result, place.gather(1, origin)


def rows(of: Tensor, places: Tensor) -> Tensor:
    """The vectors (n, k, d) at `places` (n, k) of each image in `of` (n, tokens, d)."""
    # Whole rows at once: `gather` would look up every number by itself.
    return of.flatten(0, 1).index_select(0, _flat(places, of.shape[1])).unflatten(0, places.shape)


def _flat(places: Tensor, tokens: int) -> Tensor:
    """The same places (n · k,) in the tokens of all images, one image after the other."""
    return (places + tokens * torch.arange(places.shape[0], device=places.device)[:, None]).flatten()


def closest(hidden_states: Tensor, count: int, prefix: int) -> tuple[Tensor, Tensor]:
    """The places (n, count) of the tokens that are merged, and those of the tokens that they are merged into."""
    patches = hidden_states[:, prefix:].detach()
    # Half precision has too few digits to tell which of two neighbours is closer.
    patches = patches if patches.dtype == torch.float64 else patches.float()
    lengths = torch.linalg.vector_norm(patches, dim=-1).clamp_min(torch.finfo(patches.dtype).tiny)
    products = patches[:, ::2] @ patches[:, 1::2].transpose(1, 2)
    likeness, partner = (products / lengths[:, None, 1::2]).max(-1)
    chosen = (likeness / lengths[:, ::2]).topk(count, dim=-1).indices
    return prefix + 2 * chosen, prefix + 2 * partner.gather(1, chosen) + 1


def sizes(origin: Tensor, tokens: int) -> Tensor:
    """How many tokens of the embeddings each of `tokens` stands for, (n, tokens) int64."""
    return origin.new_zeros(origin.shape[0], tokens).scatter_add(1, origin, torch.ones_like(origin))


def proportional_mask(hidden_states: Tensor, origin: Tensor, mask: Tensor | None) -> Tensor:
    """What the attention to merged tokens adds to the scores, (n, 1, 1, tokens): the logarithm of their sizes.

    Args:
        mask: (n, 1, 1 or queries, tokens of the embeddings) that is given as well, of truth values or of numbers that
            are added to the scores. A token then counts as the tokens in it do.
    """
    tokens, dtype = hidden_states.shape[1], hidden_states.dtype
    if mask is None:
        return sizes(origin, tokens).to(dtype).log()[:, None, None]
    # Numbers cannot be asked for while a program is exported.
    if mask.dim() != 4 or not (torch.compiler.is_compiling() or torch.equal(mask, mask[:, :1, :1].expand_as(mask))):
        raise ValueError(
            f"Merged tokens need one attention mask (images, 1, 1, tokens) for all heads and queries, not {mask.shape}."
        )
    weights = mask[:, 0, 0].to(dtype) if mask.dtype == torch.bool else mask[:, 0, 0].to(dtype).exp()
    counted = weights.new_zeros(*hidden_states.shape[:2]).scatter_add(1, origin, weights.expand_as(origin))
    return counted.log().clamp_min(torch.finfo(dtype).min)[:, None, None]


def restored(hidden_states: Tensor, origin: Tensor) -> Tensor:
    """The hidden state (n, tokens of the embeddings, d) of the token that each is in."""
    return rows(hidden_states, origin)


def of_every_token(values: Tensor, hidden_states: Tensor) -> Tensor:
    """`values` (n, tokens, …) of the tokens of `hidden_states`, for every token of the embeddings."""
    origin = getattr(hidden_states, ORIGIN, None)
    return values if origin is None else restored(values, origin)


def config_of(block: nn.Module) -> Any:
    """The config of the model that a block is part of, as its attention has it."""
    return next(child.config for child in block.children() if hasattr(child, "config"))


def prefix_tokens(block: nn.Module) -> int | None:
    """Tokens before the patches in what a block reads; `None` of a block whose tokens cannot be merged."""
    for base in type(block).__mro__:
        if (prefix := MERGING.get(path_of(base))) is not None and hasattr(config_of(block), "patch_size"):
            return prefix + getattr(config_of(block), "num_register_tokens", 0)
    return None


def merge_tokens(find: Callable[[str], tuple[str, nn.Module]], model: nn.Module, tokens: Mapping[str, int]) -> None:
    """Let blocks of `model` merge tokens, in place; blocks that do so already and are not named do so no longer.

    Args:
        find: gives a module's name in `model`, and the module, for a name in `tokens`.
        tokens: block → how many tokens it merges, as in `config.compression["tokens"]`.

    Raises:
        ValueError: a block cannot do so, or a number is none.
    """
    stacks: dict[str, dict[str, int]] = {}
    for name, count in tokens.items():
        path, block = find(name)
        stack, _, place = path.rpartition(".")
        blocks = model.get_submodule(stack)
        if type(count) is not int or count < 0 or not isinstance(blocks, nn.ModuleList) or prefix_tokens(block) is None:
            raise ValueError(
                f"config.compression lets {name!r}, a {type(block).__name__} in {type(model).__name__}, merge "
                f"{count!r} tokens. A whole number of tokens is merged at the end of a block such as ViTLayer."
            )
        if count and int(place) == len(blocks) - 1:
            raise ValueError(f"config.compression lets {name!r}, the last block, merge tokens; none follows to gain.")
        stacks.setdefault(stack, {})[place] = count
    for stack, counts in stacks.items():
        _merge_in(cast(nn.ModuleList, model.get_submodule(stack)), counts)


def _merge_in(blocks: nn.ModuleList, counts: Mapping[str, int]) -> None:
    before = 0
    for place, block in enumerate(blocks):
        own, count = cast(Any, block), counts.get(str(place), 0)
        if not (before or count):
            own.__class__ = unmerged_class(type(block))
            continue
        own.prefix_tokens, own.merged_tokens, own.merged_before = prefix_tokens(block), count, before
        own.blocks_after = len(blocks) - 1 - place
        own.__class__ = merged_class(type(block))
        before += count


def merged_names(model: Any) -> set[str]:
    """Names of the classes of blocks with merged tokens, which devices hold as a whole, as they do the dense ones."""
    return {type(module).__name__ for module in model.modules() if isinstance(module, MergedTokensMixin)}


def merged_class(block_class: type[nn.Module]) -> type[nn.Module]:
    """The form of a block's class that merges tokens."""
    if issubclass(block_class, MergedTokensMixin):
        return block_class
    if block_class not in FACTORED:
        body = {"__doc__": f"`{block_class.__name__}` with what `MergedTokensMixin` adds."}
        return made_class(block_class, MergedTokensMixin, factored_name(path_of(block_class)), __name__, body)
    return FACTORED[block_class]


def unmerged_class(block_class: type[nn.Module]) -> type[nn.Module]:
    """The class that `merged_class` made this one of; a class that it did not make itself."""
    if not issubclass(block_class, MergedTokensMixin):
        return block_class
    return block_class.__mro__[block_class.__mro__.index(MergedTokensMixin) + 1]


def __getattr__(name: str) -> type:
    """The factored classes of blocks by name, for pickle."""
    if name in PUBLIC:
        return FACTORED[PUBLIC[name]]
    for path in MERGING:
        if factored_name(path) == name:
            return merged_class(pkgutil.resolve_name(path))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
