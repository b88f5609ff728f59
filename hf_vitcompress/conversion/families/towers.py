"""The image towers of CLIP and SigLIP."""

from typing import Any

import torch
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from ..reading import Vit
from ..rule import Need, Rule
from ..state import Names, State, fold_layer_scales, place_prefix
from . import needs

ENCODER: Names = {
    "blocks.{i}.norm1": "{body}encoder.layers.{i}.layer_norm1",
    "blocks.{i}.attn.qkv": tuple(f"{{body}}encoder.layers.{{i}}.self_attn.{name}_proj" for name in "qkv"),
    "blocks.{i}.attn.proj": "{body}encoder.layers.{i}.self_attn.out_proj",
    "blocks.{i}.norm2": "{body}encoder.layers.{i}.layer_norm2",
    "blocks.{i}.mlp.fc1": "{body}encoder.layers.{i}.mlp.fc1",
    "blocks.{i}.mlp.fc2": "{body}encoder.layers.{i}.mlp.fc2",
    "norm": "{body}post_layernorm",
}
BIASED: Need[Vit] = Need(lambda vit: vit.biased, "queries, keys and values without biases")
SHARED = (
    needs.NO_REGISTERS,
    needs.POSITIONS,
    needs.NORM_TOKENS,
    needs.PLAIN_MLP,
    needs.KNOWN_ACTIVATION,
    needs.SQUARE,
    BIASED,
)


def _clip_config(vit: Vit, labels: dict[str, Any]) -> CLIPVisionConfig:
    return CLIPVisionConfig(**vit.common_config(), projection_dim=vit.classes or 512)


def _prepare_clip(state: State, vit: Vit) -> None:
    fold_layer_scales(state)
    place_prefix(state, vit.prefix, vit.registers)
    state["cls_token"], state["pos_embed"] = state["cls_token"].flatten(), state["pos_embed"][0]
    state.pop("head.bias", None)  # all 0: see the rule's needs


def _projection(vit: Vit) -> list[str]:
    head = (
        f"timm's head of {vit.classes} outputs, which has no bias other than 0, is the projection: image_embeds of the "
        "converted model are timm's output."
    )
    return [*([head] if vit.classes else []), *needs.other_sizes(vit)]


CLIP = Rule(
    title="CLIP's image tower",
    needs=(
        needs.CLASS_TOKEN,
        Need(lambda vit: vit.before, "the lack of a normalization before the first block (pre_norm)"),
        Need(lambda vit: vit.pool == "token", "a feature other than the class token"),
        Need(lambda vit: not vit.head_bias, "a classifier with biases"),
        *SHARED,
    ),
    config=_clip_config,
    model=lambda vit: CLIPVisionModelWithProjection if vit.classes else CLIPVisionModel,
    names={
        "cls_token": "{body}embeddings.class_embedding",
        "pos_embed": "{body}embeddings.position_embedding.weight",
        "patch_embed.proj": "{body}embeddings.patch_embedding",
        "norm_pre": "{body}pre_layrnorm",
        **ENCODER,
        "head": "visual_projection",
    },
    prepare=_prepare_clip,
    same_tokens=False,
    same_pooled=True,
    remarks=_projection,
)


def _siglip_config(vit: Vit, labels: dict[str, Any]) -> SiglipVisionConfig:
    return SiglipVisionConfig(**vit.common_config())


def _prepare_siglip(state: State, vit: Vit) -> None:
    fold_layer_scales(state)
    state["pos_embed"] = state["pos_embed"][0]
    for kind in ("weight", "bias"):
        parts = [state.pop(f"attn_pool.{layer}.{kind}") for layer in ("q", "kv")]
        state[f"attn_pool.in_proj_{kind}"] = torch.cat(parts)


SIGLIP = Rule(
    title="SigLIP's image tower",
    needs=(
        needs.NO_CLASS_TOKEN,
        Need(lambda vit: vit.pool == "map", "a feature other than that of attention pooling"),
        needs.NO_NORM_BEFORE,
        needs.HEADLESS,
        *SHARED,
    ),
    config=_siglip_config,
    model=lambda vit: SiglipVisionModel,
    names={
        "pos_embed": "{body}embeddings.position_embedding.weight",
        "patch_embed.proj": "{body}embeddings.patch_embedding",
        **ENCODER,
        "attn_pool.latent": "{body}head.probe",
        "attn_pool.in_proj_weight": "{body}head.attention.in_proj_weight",
        "attn_pool.in_proj_bias": "{body}head.attention.in_proj_bias",
        "attn_pool.proj": "{body}head.attention.out_proj",
        "attn_pool.norm": "{body}head.layernorm",
        "attn_pool.mlp.fc1": "{body}head.mlp.fc1",
        "attn_pool.mlp.fc2": "{body}head.mlp.fc2",
    },
    prepare=_prepare_siglip,
    same_pooled=True,
    remarks=needs.other_sizes,
)
