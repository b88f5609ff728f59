"""timm models in which queries, keys and values have a layer each, as ordinary `transformers` models.

timm keeps a block's queries, keys and values in one layer, `qkv`, and some feed-forwards keep gate and features in one,
too. `split_layers` puts a module in its place that holds the parts, ordinary linear layers, and gives what the layer
gave. timm's own forward passes stay: norms of queries and keys, rotary embeddings, position biases, windows.

This file needs torch, transformers and timm. It is copied beside every saved checkpoint of a timm model.
"""

import copy
import os
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import TimmBackbone
from transformers.models.timm_wrapper.modeling_timm_wrapper import (
    TimmWrapperForImageClassification,
    TimmWrapperModel,
    TimmWrapperPreTrainedModel,
)

from .configuration_factored import OWN_MODELS, path_of
from .configuration_timm import MODEL_TYPE, TimmViTConfig, merged_backbone_config, merged_config
from .layers_factored import ATTENTIONS, Attention
from .modeling_factored import factored_model_class
from .modeling_timm_backbone import FusedTimmBackbone, check_holds

FUSED: dict[str, bool] = {
    "layers.attention.Attention": True,
    "layers.attention.AttentionRope": True,
    "layers.diff_attention.DiffAttention": False,
    "models.beit.Attention": True,
    "models.cait.TalkingHeadAttn": True,
    "models.coat.FactorAttnConvRelPosEnc": False,
    "models.convit.MHSA": True,
    "models.davit.ChannelAttention": False,
    "models.davit.ChannelAttentionV2": False,
    "models.davit.WindowAttention": True,
    "models.edgenext.CrossCovarianceAttn": False,
    "models.eva.EvaAttention": True,
    "models.fastvit.Attention": True,
    "models.gcvit.WindowAttentionGlobal": True,
    "models.hiera.MaskUnitAttention": True,
    "models.hieradet_sam2.MultiScaleAttention": True,
    "models.maxxvit.AttentionCl": True,
    "models.metaformer.Attention": True,
    "models.mvitv2.MultiScaleAttention": False,
    "models.nest.Attention": False,
    "models.swin_transformer.WindowAttention": True,
    "models.swin_transformer_v2.WindowAttention": True,
    "models.swin_transformer_v2_cr.WindowMultiHeadAttention": True,
    "models.twins.LocallyGroupedAttn": True,
    "models.vision_transformer_relpos.RelPosAttention": True,
    "models.vision_transformer_sam.Attention": True,
    "models.volo.Attention": True,
    "models.xcit.XCA": False,
}
"""By the path of the class in timm: attention whose `qkv` gives queries, keys and values one after the other; and
whether the values only pass through weighted sums over tokens, head by head, so that they may have fewer features."""

QUERIES_AND_KEYS = ("models.convit.GPSA", "models.tnt.Attention")
"""Attention whose `qk` gives queries and keys one after the other, beside a layer of the values."""

GATED = "layers.mlp.GluMlp"
"""The class of feed-forwards whose `fc1` gives gate and features one after the other."""


class InPlaceOfLinear(nn.Module):
    """Stands where timm has one linear layer."""

    __jit_unused_properties__ = ("weight",)

    @property
    def weight(self) -> Tensor:
        """Any of its weights: some of timm's modules ask that of the layer for its device and type."""
        return next(self.parameters())


class SplitProjection(InPlaceOfLinear):
    """Queries, keys and values, each by a layer of its own, in one tensor as the fused layer gives them.

    Queries and keys may share a `qk_down (rank, d)`. Values may have fewer features a head than queries have; zeros
    stand in their place, which attention keeps.

    Args:
        q: layer of the queries.
        k: layer of the keys.
        v: layer of the values; `None` where timm keeps them in another one.
        heads: number of heads.
        fused: whether timm has one layer for them.
    """

    shapes_itself = True

    def __init__(self, q: nn.Linear, k: nn.Linear, v: nn.Linear | None, heads: int, fused: bool = True) -> None:
        super().__init__()
        self.q, self.k, self.v = q, k, v
        self.qk_down: nn.Module = nn.Identity()
        self.head_dim = q.out_features // heads
        self.fused = fused

    def forward(self, hidden_states: Tensor) -> Tensor:
        matched = self.qk_down(hidden_states)
        query, key = self.q(matched), self.k(matched)
        if self.v is None:
            return torch.cat((query, key), -1)
        value = self.v(hidden_states)
        # Widths of layers, not of tensors: torch.fx and TorchScript follow them.
        if self.v.out_features < self.q.out_features:
            heads = self.q.out_features // self.head_dim
            missing = (self.q.out_features - self.v.out_features) // heads
            value = functional.pad(value.unflatten(-1, [heads, -1]), [0, missing]).flatten(-2)
        return torch.cat((query, key, value), -1)


class HeadOutput(InPlaceOfLinear):
    """The output projection of attention; of each head it reads as many features as the values have.

    Args:
        o: the projection.
        heads: number of heads.
    """

    def __init__(self, o: nn.Linear, heads: int) -> None:
        super().__init__()
        self.o, self.heads = o, heads
        self.width = o.in_features

    def forward(self, values: Tensor) -> Tensor:
        if self.o.in_features < self.width:
            values = values.unflatten(-1, [self.heads, -1])[..., : self.o.in_features // self.heads].flatten(-2)
        output: Tensor = self.o(values)
        return output


class SplitGate(InPlaceOfLinear):
    """Gate and features of a feed-forward, each by a layer of its own, in one tensor as the fused layer gives them.

    Args:
        g: layer of the gate, which is activated.
        x: layer of the features.
        gate_last: whether the gate comes after the features.
    """

    def __init__(self, g: nn.Linear, x: nn.Linear, gate_last: bool) -> None:
        super().__init__()
        self.g, self.x, self.gate_last = g, x, gate_last

    def forward(self, hidden_states: Tensor) -> Tensor:
        gate, features = self.g(hidden_states), self.x(hidden_states)
        return torch.cat((features, gate) if self.gate_last else (gate, features), -1)


ATTENTIONS[path_of(SplitProjection)] = Attention("q", "k", "v", None, "head_dim", "", "")


def split_layers(model: nn.Module) -> None:
    """Put `SplitProjection`, `HeadOutput` and `SplitGate` in the place of the fused layers of a timm model."""
    for module in list(model.modules()):
        path = path_of(type(module)).removeprefix("timm.")
        if path in FUSED:
            _split_attention(module, FUSED[path])
        elif path in QUERIES_AND_KEYS:
            q, k = _parts(cast(nn.Linear, module.qk), 2)
            module.qk = SplitProjection(q, k, None, cast(int, module.num_heads))
        elif path == GATED and isinstance(module.fc1, nn.Linear):
            first, second = _parts(module.fc1, 2)
            module.fc1 = SplitGate(second, first, True) if module.gate_last else SplitGate(first, second, False)


def _split_attention(attention: Any, narrows: bool) -> None:
    heads = getattr(attention, "num_heads", None) or attention.heads
    fused = isinstance(attention.qkv, nn.Linear)
    if not isinstance(attention.proj, nn.Linear) or getattr(attention, "head_first", False):
        return
    if fused and attention.qkv.out_features == 3 * attention.proj.in_features:
        parts = _thirds(attention)
    elif attention.qkv is None and getattr(attention, "num_kv_groups", 1) == 1:
        parts = (attention.q_proj, attention.k_proj, attention.v_proj)
        attention.q_proj = attention.k_proj = attention.v_proj = None
    else:
        return
    attention.qkv = SplitProjection(*parts, heads, fused)
    plain = isinstance(getattr(attention, "norm", None) or nn.Identity(), nn.Identity)
    if narrows and plain and getattr(attention, "gate", None) is None:
        attention.proj = HeadOutput(attention.proj, heads)


def _thirds(attention: Any) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
    """The parts of `qkv`; biases that stand beside it, of queries and values alone, go into them."""
    q, k, v = _parts(attention.qkv, 3)
    if getattr(attention, "q_bias", None) is not None:
        q.bias, v.bias = attention.q_bias, attention.v_bias
        attention.q_bias = attention.v_bias = None  # k_bias is a buffer of zeros, which nothing reads now
    return q, k, v


def _parts(linear: nn.Linear, count: int) -> list[nn.Linear]:
    """Layers of so many equal parts of the rows of another, with values of their own."""
    size = linear.out_features // count
    parts = [nn.Linear(linear.in_features, size, linear.bias is not None, device="meta") for _ in range(count)]
    for name, parameter in linear.named_parameters():
        for part, rows in zip(parts, parameter.detach().chunk(count), strict=True):
            setattr(part, name, nn.Parameter(rows.clone(), requires_grad=parameter.requires_grad))
    return parts


class Rows(NamedTuple):
    """Some rows of a tensor of timm's model.

    Attributes:
        name: of the tensor.
        part: which of its parts.
        parts: into how many equal ones it is cut.
    """

    name: str
    part: int = 0
    parts: int = 1


def rows_in_timm(model: nn.Module) -> dict[str, Rows]:
    """Where each parameter of the split layers of `model` stands in timm's model, by its name in `model`.

    Args:
        model: dense, with its fused layers split. Other parameters have the names that they have in timm.
    """
    return {name: rows for path, module in model.named_modules() for name, rows in _rows_of(path, module)}


def _rows_of(path: str, module: nn.Module) -> Iterator[tuple[str, Rows]]:
    parent = path.rpartition(".")[0]
    if isinstance(module, HeadOutput):
        yield from ((f"{path}.o.{name}", Rows(f"{path}.{name}")) for name, _ in module.o.named_parameters())
    elif isinstance(module, SplitGate):
        for child, place in (("g", int(module.gate_last)), ("x", int(not module.gate_last))):
            names = module.get_submodule(child).named_parameters()
            yield from ((f"{path}.{child}.{name}", Rows(f"{path}.{name}", place, 2)) for name, _ in names)
    elif isinstance(module, SplitProjection):
        beside = module.k.bias is None and module.q.bias is not None
        children = "qk" if module.v is None else "qkv"
        for place, child in enumerate(children):
            for name, _ in module.get_submodule(child).named_parameters():
                own = f"{path}.{child}.{name}"
                if not module.fused:
                    yield own, Rows(f"{parent}.{child}_proj.{name}")
                elif name == "bias" and beside:
                    yield own, Rows(f"{parent}.{child}_bias")
                else:
                    yield own, Rows(f"{path}.{name}", place, len(children))


def merged_state(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a dense model whose fused layers are split, by the names that they have in timm."""
    rows = rows_in_timm(model)
    merged = {name: tensor for name, tensor in state.items() if name not in rows}
    parts: dict[str, dict[int, Tensor]] = defaultdict(dict)
    for name in state.keys() & rows.keys():
        parts[rows[name].name][rows[name].part] = state[name]
    for name, own in parts.items():
        merged[name] = torch.cat([own[place] for place in sorted(own)]) if len(own) > 1 else next(iter(own.values()))
    return merged


class SplitMixin:
    """What `TimmViTModel`, its classifier and its backbone add to the wrappers of timm's models.

    timm asks a switch of each attention whether to use a fused kernel; here `attn_implementation="eager"` sets it.
    """

    merged_config = staticmethod(merged_config)
    merged_prefix = "timm_model."

    def __init__(self, config: TimmViTConfig) -> None:
        check_holds(self, config)
        super().__init__(config)  # type: ignore[call-arg]
        self.split()

    def split(self) -> None:
        """Split the fused layers, and note which modules of timm have a switch."""
        own = cast(Any, self)
        split_layers(own.timm_model)
        self._may_fuse = [name for name, module in own.named_modules() if getattr(module, "fused_attn", False)]
        self._switch_attention()

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """As in transformers; a dense model is written as the wrapper that it was made of, with timm's own names."""
        own = cast(Any, self)
        if own.config.model_type != TimmViTConfig.model_type or getattr(own, "_hf_peft_config_loaded", False):
            super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]
            return
        merged = merged_state(kwargs.pop("state_dict", None) or own.state_dict(), own)
        kwargs["state_dict"] = {own.merged_prefix + name.removeprefix("timm_model."): merged[name] for name in merged}
        whole = copy.copy(own)  # it lends its name and its config alone
        whole.__class__, whole.config = own.merged_class, own.merged_config(own.config)
        type(whole).save_pretrained(whole, save_directory, *args, **kwargs)

    def post_init(self) -> None:
        """As in transformers, without the warning that eager attention does not reach timm's modules: here it does."""
        own = cast(Any, self)
        own.supports_gradient_checkpointing = own._timm_model_supports_gradient_checkpointing()
        super(cast(Any, TimmWrapperPreTrainedModel), own).post_init()  # type: ignore[misc]

    def set_attn_implementation(self, *args: Any, **kwargs: Any) -> None:
        """As in transformers, and in timm's modules."""
        super().set_attn_implementation(*args, **kwargs)  # type: ignore[misc]
        self._switch_attention()

    def _switch_attention(self) -> None:
        own = cast(Any, self)
        for name in self._may_fuse:
            own.get_submodule(name).fused_attn = own.config._attn_implementation != "eager"


class TimmViTModel(SplitMixin, TimmWrapperModel):
    """`TimmWrapperModel` with the fused layers of its timm model split."""

    config_class = TimmViTConfig
    merged_class = TimmWrapperModel


class TimmViTForImageClassification(SplitMixin, TimmWrapperForImageClassification):
    """`TimmWrapperForImageClassification` with the fused layers of its timm model split."""

    config_class = TimmViTConfig
    merged_class = TimmWrapperForImageClassification


class TimmViTBackbone(SplitMixin, FusedTimmBackbone):
    """A backbone: feature maps of a timm model whose fused layers are split, those that `TimmBackbone` gives."""

    merged_class = TimmBackbone
    merged_config = staticmethod(merged_backbone_config)
    merged_prefix = "_backbone.model."


OWN_MODELS[MODEL_TYPE] = lambda: sys.modules[__name__]


def __getattr__(name: str) -> type:
    """The factored classes by name, for `trust_remote_code`."""
    dense = globals().get(name.removeprefix("Factored")) if name.startswith("FactoredTimmViT") else None
    if dense is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return factored_model_class(dense)
