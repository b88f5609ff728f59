"""BEiT, which also expresses a ViT whose classifier reads the normalized mean of the patches."""

from typing import Any

from transformers import BeitConfig, BeitForImageClassification, BeitModel

from ..reading import Vit
from ..rule import Need, Rule
from ..state import Names, State, drop_key_biases, place_prefix
from . import needs

NAMES: Names = {
    "cls_token": "{body}embeddings.cls_token",
    "pos_embed": "{body}embeddings.position_embeddings",
    "patch_embed.proj": "{body}embeddings.patch_embeddings.projection",
    "rel_pos_bias.relative_position_bias_table": "{body}shared_position_bias.relative_position_bias_table",
    "blocks.{i}.norm1": "{body}layers.{i}.layernorm_before",
    "blocks.{i}.attn.qkv": tuple(f"{{body}}layers.{{i}}.attention.{name}_proj" for name in "qkv"),
    **{f"blocks.{{i}}.attn.{name}_proj": f"{{body}}layers.{{i}}.attention.{name}_proj" for name in "qkv"},
    "blocks.{i}.attn.q_bias": "{body}layers.{i}.attention.q_proj.bias",
    "blocks.{i}.attn.v_bias": "{body}layers.{i}.attention.v_proj.bias",
    "blocks.{i}.attn.relative_position_bias_table": (
        "{body}layers.{i}.relative_position_bias.relative_position_bias_table"
    ),
    "blocks.{i}.attn.proj": "{body}layers.{i}.attention.o_proj",
    "blocks.{i}.gamma_1": "{body}layers.{i}.lambda_1",
    "blocks.{i}.ls1.gamma": "{body}layers.{i}.lambda_1",
    "blocks.{i}.norm2": "{body}layers.{i}.layernorm_after",
    "blocks.{i}.mlp.fc1": "{body}layers.{i}.mlp.fc1",
    "blocks.{i}.mlp.fc2": "{body}layers.{i}.mlp.fc2",
    "blocks.{i}.gamma_2": "{body}layers.{i}.lambda_2",
    "blocks.{i}.ls2.gamma": "{body}layers.{i}.lambda_2",
    "norm": "{body}layernorm",
    "fc_norm": "{body}pooler.layernorm",
    "head": "classifier",
}


def _config(vit: Vit, labels: dict[str, Any]) -> BeitConfig:
    return BeitConfig(
        **vit.common_config(),
        use_absolute_position_embeddings=vit.absolute,
        use_relative_position_bias=vit.relative == "block",
        use_shared_relative_position_bias=vit.relative == "model",
        layer_scale_init_value=0.1 if vit.scales else 0.0,
        use_mean_pooling=vit.norm == "pooled",
        drop_path_rate=0.0,
        **labels,
    )


def _prepare(state: State, vit: Vit) -> None:
    drop_key_biases(state)
    if vit.absolute:
        place_prefix(state, vit.prefix, vit.registers)


BEIT = Rule(
    title="BEiT",
    needs=(
        needs.CLASS_TOKEN,
        needs.NO_REGISTERS,
        Need(lambda vit: not vit.rope, "rotary positions"),
        needs.NO_NORM_BEFORE,
        Need(
            lambda vit: (vit.norm, vit.pool) in (("pooled", "avg"), ("tokens", "token")),
            "a feature other than the normalized mean of the patches or the class token",
        ),
        needs.PLAIN_MLP,
        needs.KNOWN_ACTIVATION,
        Need(lambda vit: vit.biased, "queries and values without biases"),
        needs.SQUARE,
    ),
    config=_config,
    model=lambda vit: BeitForImageClassification if vit.classes else BeitModel,
    names=NAMES,
    prepare=_prepare,
    same_pooled=True,
    remarks=needs.other_sizes,
)
