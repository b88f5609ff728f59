"""Layers of factored models: products of two linear layers, and attention whose queries and keys may share one of them.

This file needs torch and transformers only. It is copied beside every saved checkpoint, with
`modeling_factored.py`.
"""

import importlib
import pkgutil
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from torch.nn import functional
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_factored import FACTORED, PUBLIC, factored_name, made_class, path_of


class Attention(NamedTuple):
    """Attribute names of an attention class whose forward pass is that of `FactoredAttentionMixin`.

    Attributes:
        query: layer of the queries.
        key: layer of the keys.
        value: layer of the values.
        output: output projection; `None` if another module applies it.
        head_dim: size of a head.
        scaling: factor of the products of queries and keys.
        dropout: dropout rate of the attention probabilities.
    """

    query: str = "q_proj"
    key: str = "k_proj"
    value: str = "v_proj"
    output: str | None = "o_proj"
    head_dim: str = "head_dim"
    scaling: str = "scaling"
    dropout: str = "attention_dropout"


_OUT_PROJ = Attention(output="out_proj", scaling="scale", dropout="dropout")

_SELF_ATTENTION = Attention("query", "key", "value", None, "attention_head_size", "scaling", "dropout_prob")

_USUAL = (Attention(), _SELF_ATTENTION)

ATTENTIONS: dict[str, Attention] = {
    f"transformers.models.{path}": names
    for path, names in {
        "vit.modeling_vit.ViTAttention": Attention(),
        "deit.modeling_deit.DeiTAttention": Attention(),
        "dinov2.modeling_dinov2.Dinov2Attention": Attention(),
        "dinov2_with_registers.modeling_dinov2_with_registers.Dinov2WithRegistersAttention": Attention(),
        "dinov3_vit.modeling_dinov3_vit.DINOv3ViTAttention": Attention(dropout="dropout"),
        "beit.modeling_beit.BeitAttention": Attention(),
        "swin.modeling_swin.SwinAttention": Attention(),
        "vit_mae.modeling_vit_mae.ViTMAEAttention": Attention(),
        "vit_msn.modeling_vit_msn.ViTMSNAttention": Attention(),
        "ijepa.modeling_ijepa.IJepaAttention": Attention(),
        "yolos.modeling_yolos.YolosSelfAttention": _SELF_ATTENTION,
        "dpt.modeling_dpt.DPTSelfAttention": _SELF_ATTENTION,
        "clip.modeling_clip.CLIPAttention": _OUT_PROJ,
        "siglip.modeling_siglip.SiglipAttention": _OUT_PROJ,
        "siglip2.modeling_siglip2.Siglip2Attention": _OUT_PROJ,
    }.items()
}
"""By the path of the class: the attention whose queries and keys may share a `down`, and whose heads may be cut."""


class FactoredLinear(nn.Module):
    """`y = up(down(x))`, a linear layer of limited rank.

    Args:
        in_features: size of the last dimension of the input, `x (..., in_features)`.
        out_features: size of the last dimension of the output, `y (..., out_features)`.
        rank: rows of `down` and columns of `up`; at least 1.
        bias: whether `up` adds a bias.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(f"A factored layer needs a rank of at least 1, not {rank}.")
        self.down = nn.Linear(in_features, rank, bias=False, device=device, dtype=dtype)
        self.up = nn.Linear(rank, out_features, bias=bias, device=device, dtype=dtype)

    @property
    def in_features(self) -> int:
        return self.down.in_features

    @property
    def out_features(self) -> int:
        return self.up.out_features

    @property
    def rank(self) -> int:
        return self.down.out_features

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.up(self.down(hidden_states))

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"


class Removed(nn.Module):
    """Stands where a layer has no outputs any more: it passes its input through, for its shape alone.

    Args:
        in_features: size of the last dimension of the input.
        features: outputs of the dense layer.
    """

    out_features = 0

    def __init__(self, in_features: int, features: int) -> None:
        super().__init__()
        self.in_features, self.features = in_features, features

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features=0"


class Constant(nn.Module):
    """Stands where a layer has no inputs any more: its output is its bias, whatever the input `x (..., anything)` is.

    Args:
        out_features: size of the last dimension of the output.
    """

    in_features = 0

    def __init__(
        self, out_features: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.out_features = out_features
        self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.bias.expand(*hidden_states.shape[:-1], -1)

    def extra_repr(self) -> str:
        return f"in_features=0, out_features={self.out_features}"


class FactoredAttentionMixin:
    """Attention whose queries and keys may share a `down`, and whose values may have a head dimension of their own.

    `qk_down (rank, d)`, where there is one, reads the hidden states for queries and keys, each (·, rank) then. The
    number of heads is that of the queries; each takes an equal part of what the value projection gives.

    Where these layers are `Removed`, nothing of attention runs; each head then attends to nothing.
    """

    names: Attention
    eager_attention: Any
    rotate: Any

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        names, own = self.names, cast(Any, self)
        head_dim, shape = getattr(own, names.head_dim), hidden_states.shape[:-1]
        if isinstance(removed := getattr(own, names.query), Removed):
            output = hidden_states if names.output is None else getattr(own, names.output)(hidden_states)
            return output, self._no_weights(hidden_states, removed.features // head_dim)
        matched = own.qk_down(hidden_states) if hasattr(self, "qk_down") else hidden_states
        query = getattr(own, names.query)(matched).view(*shape, -1, head_dim).transpose(1, 2)
        key = getattr(own, names.key)(matched).view(*shape, -1, head_dim).transpose(1, 2)
        value = getattr(own, names.value)(hidden_states).view(*shape, query.shape[1], -1).transpose(1, 2)
        if position_embeddings is not None:
            query, key = type(self).rotate(query, key, *position_embeddings)
        value_dim, implementation = value.shape[-1], own.config._attn_implementation
        if implementation != "eager" and value_dim < head_dim:
            # Fused kernels want one head dimension for all; zeros in the values are zeros in the output.
            value = functional.pad(value, (0, head_dim - value_dim))
        output, weights = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, type(self).eager_attention)(
            self,
            query,
            key,
            value,
            self._with_position_bias(attention_mask, hidden_states.shape[0]),
            dropout=getattr(own, names.dropout) if own.training else 0.0,
            scaling=getattr(own, names.scaling),
            **kwargs,
        )
        output = output[..., :value_dim].reshape(*shape, -1)
        return output if names.output is None else getattr(own, names.output)(output), weights

    def _no_weights(self, hidden_states: torch.Tensor, heads: int) -> torch.Tensor | None:
        """Zeros (windows, heads, tokens, tokens) that take no memory, so that eager attention gives each block's."""
        if cast(Any, self).config._attn_implementation != "eager":
            return None
        windows, tokens, _ = hidden_states.shape
        return hidden_states.new_zeros(()).expand(windows, heads, tokens, tokens)

    def _with_position_bias(self, attention_mask: torch.Tensor | None, windows: int) -> torch.Tensor | None:
        """The mask (windows of one image, tokens, tokens) of windowed attention, with a bias for each head; as in Swin.

        Elsewhere the mask as it is.
        """
        if not hasattr(self, "relative_position_bias"):
            return attention_mask
        bias = self.relative_position_bias()
        if attention_mask is None:
            return bias
        return bias + attention_mask.unsqueeze(1).repeat(windows // attention_mask.shape[0], 1, 1, 1)


def resized(
    name: str,
    dense: nn.Linear,
    rank: int | None = None,
    in_features: int | None = None,
    out_features: int | None = None,
) -> nn.Module:
    """A layer of that shape in the place of `dense`, with its bias or without, its device and dtype.

    Without outputs it is `Removed`; without inputs a `Constant`, which has a bias whether `dense` has one or not.
    """
    inputs = dense.in_features if in_features is None else in_features
    outputs = dense.out_features if out_features is None else out_features
    if (in_features, out_features, rank) == (None, 0, None):
        return Removed(inputs, dense.out_features)
    if (in_features, out_features, rank) == (0, None, None):
        return Constant(outputs, dense.weight.device, dense.weight.dtype)
    if not (1 <= inputs <= dense.in_features and 1 <= outputs <= dense.out_features):
        raise ValueError(
            f"config.compression makes {name!r} {outputs} × {inputs}, empty or larger than the dense layer's "
            f"{dense.out_features} × {dense.in_features}."
        )
    bias, device, dtype = dense.bias is not None, dense.weight.device, dense.weight.dtype
    if rank is not None and rank > min(dense.in_features, dense.out_features):
        raise ValueError(
            f"config.compression gives {name!r} the rank {rank}, more than the dense layer of {dense.out_features} × "
            f"{dense.in_features} can have."
        )
    if rank is None:
        return nn.Linear(inputs, outputs, bias, device, dtype)
    return FactoredLinear(inputs, outputs, rank, bias, device, dtype)


def attention_names(module_class: type[nn.Module]) -> Attention | None:
    """The entry of an attention class, dense or factored, in `ATTENTIONS`; `None` for every other class."""
    for base in module_class.__mro__:
        if (names := ATTENTIONS.get(path_of(base))) is not None:
            return names
    return None


def projections(module: nn.Module) -> set[str]:
    """What its queries, keys and values are called, if it is attention."""
    known = attention_names(type(module))
    return {part for names in ([known] if known else _USUAL) for part in (names.query, names.key, names.value)}


def has_plain_queries(module: nn.Module) -> bool:
    """Whether it is an attention module whose queries and keys are not factored, each by itself."""
    names = attention_names(type(module)) or Attention()
    return all(isinstance(getattr(module, name, None), nn.Linear) for name in (names.query, names.key))


def share_down(attention: nn.Module, rank: int, layer: str) -> None:
    """Let queries and keys read the same `rank` projections of the hidden states."""
    names = attention_names(type(attention))
    if names is None:
        raise _unknown_attention(type(attention), layer)
    q: Any = getattr(attention, names.query)
    k: Any = getattr(attention, names.key)
    if rank > q.in_features:
        raise ValueError(
            f"config.compression gives {layer!r} the qk_rank {rank}, more than the {q.in_features} features it reads."
        )
    attention.qk_down = nn.Linear(q.in_features, rank, bias=False, device=q.weight.device, dtype=q.weight.dtype)
    for name, dense in ((names.query, q), (names.key, k)):
        narrow = nn.Linear(
            rank, dense.out_features, dense.bias is not None, device=dense.weight.device, dtype=dense.weight.dtype
        )
        setattr(attention, name, narrow)


def _unknown_attention(attention_class: type[nn.Module], layer: str) -> ValueError:
    return ValueError(
        f"config.compression gives {layer!r} a shape that {attention_class.__name__} cannot have: a qk_rank, other "
        "heads than all, or values of another head dimension than the queries. Its class is not in `ATTENTIONS`."
    )


def attention_class(dense_class: type[nn.Module], layer: str) -> type[nn.Module]:
    """The factored form of an attention class.

    Raises:
        ValueError: its forward pass is another one than that of `FactoredAttentionMixin`.
    """
    if issubclass(dense_class, FactoredAttentionMixin) or getattr(dense_class, "shapes_itself", False):
        return dense_class
    names = attention_names(dense_class)
    if names is None:
        raise _unknown_attention(dense_class, layer)
    if dense_class not in FACTORED:
        module: Any = importlib.import_module(dense_class.__module__)
        body = {
            "__doc__": f"`{dense_class.__name__}` with what `FactoredAttentionMixin` adds.",
            "names": names,
            "eager_attention": staticmethod(module.eager_attention_forward),
            "rotate": staticmethod(vars(module).get("apply_rotary_pos_emb", _no_rotation)),
        }
        return made_class(dense_class, FactoredAttentionMixin, factored_name(path_of(dense_class)), __name__, body)
    return FACTORED[dense_class]


def _no_rotation(*_: Any) -> Any:
    raise NotImplementedError("This attention has no rotary position embeddings.")


def __getattr__(name: str) -> type:
    """The factored attention classes by name, for pickle."""
    if name in PUBLIC:
        return FACTORED[PUBLIC[name]]
    for path in ATTENTIONS:
        if factored_name(path) == name:
            return attention_class(pkgutil.resolve_name(path), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
