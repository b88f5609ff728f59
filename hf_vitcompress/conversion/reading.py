"""What a vision transformer of timm is made of, read off its modules."""

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

ACTIVATIONS = {
    "GELUTanh": "gelu_pytorch_tanh",
    "QuickGELU": "quick_gelu",
    "SiLU": "silu",
    "ReLU": "relu",
}
"""By timm's or torch's class, the name in transformers; `GELU` has an argument that decides."""

BLOCKS = {"Block": ("Attention",), "EvaBlock": ("EvaAttention",)}
"""Classes of blocks and of the attention in them that a rule may hold for."""


@dataclass(frozen=True)
class Vit:
    """A vision transformer whose blocks are all alike.

    Attributes:
        width: features of a token.
        hidden: features inside the feed-forward.
        activation: as transformers names it.
        gated: whether the feed-forward is gated: `fc2(act(gate(x)) · fc1(x))`.
        image: height and width in pixels.
        patch: the same of a patch.
        classes: 0 without a head.
        head_bias: whether the bias of the head is there and not 0.
        class_token: whether there is one.
        registers: number of tokens beside it.
        prefix: rows of the position embedding that are not of patches.
        absolute: whether there is a position embedding.
        relative: whose bias the relative positions give.
        rope: base of the rotary position embedding, 0 without one; another kind than DINOv3's is among the `oddities`.
        before: whether the tokens are normalized before the first block.
        norm: whether the tokens or the pooled feature are normalized after the last one.
        pool: timm's `global_pool`.
        scales: whether there are layer scales.
        biased: whether queries and values have biases.
        dynamic: whether other sizes of images are taken.
        oddities: what no rule holds for, as nouns.
    """

    width: int
    depth: int
    heads: int
    hidden: int
    eps: float
    activation: str
    gated: bool
    channels: int
    image: tuple[int, int]
    patch: tuple[int, int]
    classes: int
    head_bias: bool
    class_token: bool
    registers: int
    prefix: int
    absolute: bool
    relative: Literal["none", "block", "model"]
    rope: float
    before: bool
    norm: Literal["tokens", "pooled", "both", "none"]
    pool: str
    scales: bool
    biased: bool
    dynamic: bool
    oddities: tuple[str, ...]

    def common_config(self) -> dict[str, Any]:
        """Settings that most configs of transformers call the same."""
        return {
            "hidden_size": self.width,
            "num_hidden_layers": self.depth,
            "num_attention_heads": self.heads,
            "intermediate_size": self.hidden,
            "hidden_act": self.activation,
            "layer_norm_eps": self.eps,
            "image_size": one_number(self.image),
            "patch_size": one_number(self.patch),
            "num_channels": self.channels,
        }


def one_number(size: tuple[int, int]) -> int | list[int]:
    """Of a square, its side; otherwise height and width."""
    return size[0] if size[0] == size[1] else list(size)


def timm_class(module: nn.Module) -> str:
    """The class of timm that a module is of, or that its class is derived from; empty for others."""
    classes = [kind for kind in type(module).__mro__ if kind.__module__.startswith("timm.models.")]
    return classes[0].__name__ if classes else ""


def read_vit(module: Any) -> Vit:
    """Of a `VisionTransformer`, `VisionTransformerDistilled`, `Beit` or `Eva` of timm."""
    blocks = list(module.blocks) or [None]
    block, patches = blocks[0], module.patch_embed
    attention: Any = getattr(block, "attn", None)
    mlp: Any = getattr(block, "mlp", None)
    registers = _count(getattr(module, "reg_token", None))
    distilled = hasattr(module, "dist_token")
    positions = module.pos_embed
    head_bias = getattr(module.head, "bias", None)
    return Vit(
        width=module.embed_dim,
        depth=len(blocks),
        heads=getattr(attention, "num_heads", 0),
        hidden=mlp.fc2.in_features if hasattr(mlp, "fc2") else 0,
        eps=getattr(getattr(block, "norm1", None), "eps", 0.0) or 0.0,
        activation=_activation(getattr(mlp, "act", None)),
        gated=type(mlp).__name__ in ("SwiGLU", "GluMlp"),
        channels=patches.proj.in_channels if hasattr(patches, "proj") else 0,
        image=_pair(getattr(patches, "img_size", None)),
        patch=_pair(getattr(patches, "patch_size", None)),
        classes=module.head.out_features if isinstance(module.head, nn.Linear) else 0,
        head_bias=head_bias is not None and not head_bias.is_meta and bool(head_bias.detach().any()),
        class_token=module.cls_token is not None,
        registers=registers,
        prefix=0 if positions is None else positions.shape[1] - patches.num_patches,
        absolute=positions is not None,
        relative=_relative(module, attention),
        rope=float(getattr(getattr(module, "rope", None), "temperature", 0.0) or 0.0),
        before=not isinstance(getattr(module, "norm_pre", None), nn.Identity | None),
        norm=_norm(module),
        pool="token" if distilled else module.global_pool,
        scales=_parameter(block, "ls1.gamma", "gamma_1"),
        biased=_parameter(attention, "qkv.bias", "q_bias", "q_proj.bias"),
        dynamic=bool(getattr(module, "dynamic_img_size", False)),
        oddities=tuple(dict.fromkeys(_oddities(module))),
    )


def _oddities(module: Any) -> list[str]:
    found = [] if len(module.blocks) else ["no blocks"]
    if type(module.patch_embed).__name__ != "PatchEmbed":
        found.append(f"a patch embedding like {type(module.patch_embed).__name__}")
    elif not isinstance(module.patch_embed.norm, nn.Identity):
        found.append("a normalization in the patch embedding")
    for block in module.blocks:
        kinds = BLOCKS.get(type(block).__name__)
        if kinds is None or type(block.attn).__name__ not in kinds:
            attention = getattr(block, "attn", None)
            inner = "" if attention is None else f" with {type(attention).__name__}"
            found.append(f"blocks like {type(block).__name__}{inner}")
            continue
        found += _odd_attention(block.attn) + _odd_mlp(block.mlp)
    if len({_shape(block) for block in module.blocks}) > 1:
        found.append("blocks of several shapes")
    if not isinstance(module.head, nn.Linear | nn.Identity):
        found.append(f"a head like {type(module.head).__name__}")
    if (rope := getattr(module, "rope", None)) is not None and not _is_dinov3(module, rope):
        found.append(f"rotary positions like {type(rope).__name__}")
    if getattr(module, "pool_include_prefix", False):
        found.append("a pooling that includes the class token")
    norms = [part for part in module.modules() if "Norm" in type(part).__name__ and not any(part.children())]
    found += [type(part).__name__ for part in norms if not isinstance(part, nn.LayerNorm)]
    if len({part.eps for part in norms if isinstance(part, nn.LayerNorm)}) > 1:
        found.append("norms with several eps")
    return found


def _odd_attention(attention: Any) -> list[str]:
    found = []
    if not isinstance(attention.__dict__["_modules"].get("q_norm", nn.Identity()), nn.Identity):
        found.append("a normalization of queries and keys (qk_norm)")
    if not isinstance(getattr(attention, "norm", nn.Identity()), nn.Identity):
        found.append("a normalization before the output projection of the attention")
    if getattr(attention, "gate", None) is not None:
        found.append("gates of the attention")
    if attention.proj.bias is None:
        found.append("an output projection without bias")
    if attention.proj.in_features != attention.proj.out_features:
        found.append("heads that are wider or narrower than the model")
    return found


def _odd_mlp(mlp: Any) -> list[str]:
    if type(mlp).__name__ not in ("Mlp", "SwiGLU", "GluMlp"):
        return [f"a feed-forward like {type(mlp).__name__}"]
    return [] if isinstance(mlp.norm, nn.Identity) else ["a normalization inside the feed-forward"]


def _is_dinov3(module: Any, rope: nn.Module) -> bool:
    rotates_half = all(getattr(getattr(block, "attn", None), "rotate_half", False) for block in module.blocks)
    return type(rope).__name__ == "RotaryEmbeddingDinoV3" and rotates_half


def _shape(block: nn.Module) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((name, tuple(parameter.shape)) for name, parameter in block.named_parameters())


def _relative(module: nn.Module, attention: Any) -> Literal["none", "block", "model"]:
    if getattr(module, "rel_pos_bias", None) is not None:
        return "model"
    return "none" if getattr(attention, "relative_position_bias_table", None) is None else "block"


def _norm(module: Any) -> Literal["tokens", "pooled", "both", "none"]:
    tokens, pooled = (isinstance(part, nn.LayerNorm) for part in (module.norm, getattr(module, "fc_norm", None)))
    return "both" if tokens and pooled else "tokens" if tokens else "pooled" if pooled else "none"


def _activation(activation: Any) -> str:
    name = type(activation).__name__
    if name == "GELU":
        return "gelu_pytorch_tanh" if getattr(activation, "approximate", "none") == "tanh" else "gelu"
    return ACTIVATIONS.get(name, name)


def _parameter(module: nn.Module | None, *names: str) -> bool:
    return module is not None and any(name in names for name, _ in module.named_parameters())


def _count(tokens: Any) -> int:
    return 0 if tokens is None else int(tokens.shape[1])


def _pair(size: Any) -> tuple[int, int]:
    return (0, 0) if size is None else (int(size[0]), int(size[1]))
