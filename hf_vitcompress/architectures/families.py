"""What differs by architecture: where the blocks of a model are, and which role each linear layer in them plays.

Nothing else in the package names an architecture, except the tables of classes in `modeling_factored`.
"""

from dataclasses import dataclass
from typing import Literal, cast

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..configuration_factored import MODEL_TYPE_PREFIX, dense_config_class, inner_configs
from ..errors import ConfigError
from ..layers_factored import ATTENTIONS, Attention
from .registration import register

Role = Literal["q", "k", "v", "qkv", "qk", "kv", "o", "gate", "fc1", "fc2"]
"""`gate` is that of a gated feed-forward, `fc2(act(gate(x)) · fc1(x))`; `qkv` one layer for q, k and v, and so on."""


@dataclass(frozen=True)
class Family:
    """Where a transformer keeps its linear layers.

    Attributes:
        title: name for people.
        block: regular expression of a block's module name.
        layers: role of each linear layer, by its module name inside the block; a model may lack some of them.
        pooled: whether the headless model's `pooler_output` counts as an output, besides the hidden states.
        inputs: what the model takes besides images: `"noise"`, which decides the patches that it masks, or
            `"patches"`, the mask and the grid of images that are already cut into patches; `None`: nothing.
        apart: paths in `layers` of those that read a tensor of their own, where the layers of that role usually share
            one.
        attends: whether a model without attention, of which the table would find the feed-forwards alone, is refused.
    """

    title: str
    block: str
    layers: dict[str, Role]
    pooled: bool = False
    inputs: Literal["noise", "patches"] | None = None
    apart: frozenset[str] = frozenset()
    attends: bool = False


_PROJECTIONS: dict[str, Role] = {
    "attention.q_proj": "q",
    "attention.k_proj": "k",
    "attention.v_proj": "v",
    "attention.o_proj": "o",
}
_MLP: dict[str, Role] = {"mlp.fc1": "fc1", "mlp.fc2": "fc2"}
_GATED: dict[str, Role] = {"mlp.gate_proj": "gate", "mlp.up_proj": "fc1", "mlp.down_proj": "fc2"}
_SELF_ATTENTION: dict[str, Role] = {
    "attention.attention.query": "q",
    "attention.attention.key": "k",
    "attention.attention.value": "v",
    "attention.output.dense": "o",
    "intermediate.dense": "fc1",
    "output.dense": "fc2",
}
_TOWER: dict[str, Role] = {
    "self_attn.q_proj": "q",
    "self_attn.k_proj": "k",
    "self_attn.v_proj": "v",
    "self_attn.out_proj": "o",
    **_MLP,
}
_TIMM_ATTENTIONS = (
    "attn",
    "attn_downsample",
    "attn_out",
    "e_mhsa",
    "factoratt_crpe",
    "token_mixer",
    "xca",
)
"""What timm's blocks call their attention."""
_OWN_INPUTS: dict[str, Role] = {
    f"{attention}.{path}": role
    for attention in _TIMM_ATTENTIONS
    for path, role in cast(
        dict[str, Role], {"q": "q", "k": "k", "v": "v", "kv": "kv", "wq": "q", "wk": "k", "wv": "v"}
    ).items()
}
"""Queries of a class token or of pooled tokens, and what they look at."""
_TIMM: dict[str, Role] = {
    **{
        f"{attention}.{path}": role
        for attention in _TIMM_ATTENTIONS
        for path, role in cast(
            dict[str, Role],
            {
                "qkv.q": "q",
                "qkv.k": "k",
                "qkv.v": "v",
                "proj.o": "o",
                "qkv": "qkv",
                "qk.q": "q",
                "qk.k": "k",
                "q_proj": "q",
                "k_proj": "k",
                "v_proj": "v",
                "proj": "o",
                "qkv.linear": "qkv",
                "kv.linear": "kv",
                "q.ln.linear": "q",
                "proj.ln.linear": "o",
                "q_proj.linear": "q",
                "k_proj.linear": "k",
                "v_proj.linear": "v",
                "o_proj.linear": "o",
            },
        ).items()
    },
    **_OWN_INPUTS,
    **_MLP,
    "mlp.fc1.g": "gate",
    "mlp.fc1.x": "fc1",
    "mlp.fc1_g": "gate",
    "mlp.fc1_x": "fc1",
    "mlp.w0": "gate",
    "mlp.w1": "fc1",
    "mlp.w2": "fc2",
    "mlp.ln1.linear": "fc1",
    "mlp.ln2.linear": "fc2",
    "mlp.gate_proj.linear": "gate",
    "mlp.up_proj.linear": "fc1",
    "mlp.down_proj.linear": "fc2",
    "in_proj": "qkv",
    "attn_out_proj": "o",
    "out_proj": "o",
    "mlp_out_proj": "fc2",
}
_TIMM_BLOCK = r"timm_model\.(?!.*(?:attn_pool|rel_pos|multihead_attn))[\w.]+?"
"""Whatever has attention or a feed-forward, except pooling and decoders at the end and networks of position biases."""
_LAYERS = r"(?:\w+\.)?layers\.\d+"
_ENCODER_LAYER = r"(?:\w+\.)?encoder\.layer\.\d+"
_STAGES = r"(?:\w+\.)?encoder\.layers\.\d+\.blocks\.\d+"
_VISION = r"(?:vision_model\.)?encoder\.layers\.\d+"


FAMILIES: dict[str, Family] = {
    "vit": Family("ViT", _LAYERS, _PROJECTIONS | _MLP),
    "deit": Family("DeiT", _LAYERS, _PROJECTIONS | _MLP),
    "dinov2": Family("DINOv2", _ENCODER_LAYER, _PROJECTIONS | _MLP | _GATED),
    "dinov2_with_registers": Family("DINOv2 with registers", _ENCODER_LAYER, _PROJECTIONS | _MLP | _GATED),
    "dinov3_vit": Family("DINOv3", r"model\.layer\.\d+", _PROJECTIONS | _GATED),
    "beit": Family("BEiT", _LAYERS, _PROJECTIONS | _MLP),
    "data2vec-vision": Family("data2vec-vision", _ENCODER_LAYER, _SELF_ATTENTION),
    "swin": Family("Swin", _STAGES, _PROJECTIONS | _MLP),
    "swinv2": Family(
        "Swin V2",
        _STAGES,
        {path.replace("attention.attention", "attention.self"): r for path, r in _SELF_ATTENTION.items()},
    ),
    "vit_mae": Family("ViT-MAE", _LAYERS, _PROJECTIONS | _MLP, inputs="noise"),
    "vit_msn": Family("ViT-MSN", _LAYERS, _PROJECTIONS | _MLP),
    "ijepa": Family("I-JEPA", _LAYERS, _PROJECTIONS | _MLP),
    "yolos": Family("YOLOS", _ENCODER_LAYER, _SELF_ATTENTION),
    "clip": Family("CLIP", _VISION, _TOWER, pooled=True),
    "clip_vision_model": Family("CLIP vision", _VISION, _TOWER, pooled=True),
    "siglip": Family("SigLIP", _VISION, _TOWER, pooled=True),
    "siglip_vision_model": Family("SigLIP vision", _VISION, _TOWER, pooled=True),
    "siglip2": Family("SigLIP 2 NaFlex", _VISION, _TOWER, pooled=True, inputs="patches"),
    "siglip2_vision_model": Family("SigLIP 2 NaFlex vision", _VISION, _TOWER, pooled=True, inputs="patches"),
    "dpt": Family("DPT", _ENCODER_LAYER, _SELF_ATTENTION),
    "timm_vit": Family("timm", _TIMM_BLOCK, _TIMM, pooled=True, apart=frozenset(_OWN_INPUTS), attends=True),
}
"""By model type. A model of another type is compressed where it contains one of these, such as a backbone."""


def register_family(
    model_type: str, family: Family, attentions: dict[type[nn.Module], Attention] | None = None
) -> None:
    """Add an architecture: its models can be compressed, and the Auto classes load the compressed models.

    Args:
        model_type: model type of its config. The config and the model classes must be registered with the Auto classes.
        family: where its linear layers are.
        attentions: names of the parts, by attention class, of the classes whose forward pass is that of
            `layers_factored.FactoredAttentionMixin`. Without them, each layer of attention is factored by itself.

    Raises:
        ConfigError: transformers does not know the model type, or a class has the name of another.
    """
    try:
        dense_config_class(model_type)
    except KeyError:
        raise ConfigError(
            f"transformers knows no model type {model_type!r}. Call AutoConfig.register({model_type!r}, …), and "
            "AutoModelFor….register for the model classes, first."
        ) from None
    try:
        register(model_type)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    FAMILIES[model_type] = family
    for attention, names in (attentions or {}).items():
        ATTENTIONS[f"{attention.__module__}.{attention.__qualname__}"] = names


def supported_model_types() -> list[str]:
    """Model types that have a row, in alphabetical order."""
    return sorted(FAMILIES)


def row_of(model: PreTrainedModel) -> Family | None:
    """The table row of a dense or compressed model; `None` if its type has no row, even if a model inside has one."""
    return FAMILIES.get(model.config.model_type.removeprefix(MODEL_TYPE_PREFIX))


def supported(config: PreTrainedConfig | None = None) -> str:
    """The supported architectures, as sentences for errors.

    Args:
        config: of a model that is not supported, to say whether it could be registered.
    """
    types = f"Supported model types: {', '.join(supported_model_types())}, and models that contain one."
    if config is None:
        return types
    if not _sees_by_attention(config):
        return f"It is no vision transformer: its config has no attention heads, or no images. {types}"
    return f"{types} The blocks of another vision transformer are registered by hf_vitcompress.register_family."


def _sees_by_attention(config: PreTrainedConfig) -> bool:
    """Whether it is the config of a vision transformer, whatever its settings are called, or has one in it."""
    names = " ".join(config.to_dict())
    heads = any(name in names for name in ("attention_heads", "num_heads", "n_head"))
    images = any(name in names for name in ("image_size", "patch_size", "num_channels", "in_channels"))
    return (heads and images) or any(_sees_by_attention(inner) for inner in inner_configs(config).values())
