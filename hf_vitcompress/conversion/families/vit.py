"""ViT, DeiT with its distillation token, and I-JEPA."""

from functools import partial
from typing import Any

from transformers import (
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    DeiTModel,
    IJepaConfig,
    IJepaForImageClassification,
    IJepaModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from ..reading import Vit
from ..rule import Need, Rule
from ..state import Names, State, fold_layer_scales, place_prefix
from . import needs

BLOCK: Names = {
    "blocks.{i}.norm1": "{body}layers.{i}.layernorm_before",
    "blocks.{i}.attn.qkv": tuple(f"{{body}}layers.{{i}}.attention.{name}_proj" for name in "qkv"),
    "blocks.{i}.attn.proj": "{body}layers.{i}.attention.o_proj",
    "blocks.{i}.norm2": "{body}layers.{i}.layernorm_after",
    "blocks.{i}.mlp.fc1": "{body}layers.{i}.mlp.fc1",
    "blocks.{i}.mlp.fc2": "{body}layers.{i}.mlp.fc2",
}
EMBEDDING: Names = {
    "cls_token": "{body}embeddings.cls_token",
    "pos_embed": "{body}embeddings.position_embeddings",
    "patch_embed.proj": "{body}embeddings.patch_embeddings.projection",
}
PLAIN = (
    needs.NO_REGISTERS,
    needs.POSITIONS,
    needs.NO_NORM_BEFORE,
    needs.NORM_TOKENS,
    needs.PLAIN_MLP,
    needs.KNOWN_ACTIVATION,
)
DISTILLED: Need[Vit] = Need(lambda vit: vit.prefix == 2, "a class and a distillation token without positions")


def _with_class_position(state: State, vit: Vit) -> None:
    fold_layer_scales(state)
    place_prefix(state, vit.prefix, vit.registers)


def _without_tokens(state: State, vit: Vit) -> None:
    fold_layer_scales(state)


def _vit_config(vit: Vit, labels: dict[str, Any]) -> ViTConfig:
    return ViTConfig(**vit.common_config(), qkv_bias=vit.biased, **labels)


def _deit_config(vit: Vit, labels: dict[str, Any]) -> DeiTConfig:
    return DeiTConfig(**vit.common_config(), qkv_bias=vit.biased, **labels)


def _ijepa_config(vit: Vit, labels: dict[str, Any]) -> IJepaConfig:
    return IJepaConfig(**vit.common_config(), qkv_bias=vit.biased, **labels)


def _both_tokens(vit: Vit) -> list[str]:
    if vit.classes:
        return needs.other_sizes(vit)
    mean = "The feature that timm's model returns is last_hidden_state[:, :2].mean(1)."
    return [mean, *needs.other_sizes(vit)]


_VIT_BODY, _DEIT_BODY = partial(ViTModel, add_pooling_layer=False), partial(DeiTModel, add_pooling_layer=False)

VIT = Rule(
    title="ViT",
    needs=(needs.CLASS_TOKEN, *PLAIN, needs.classifies_by("token")),
    config=_vit_config,
    model=lambda vit: ViTForImageClassification if vit.classes else _VIT_BODY,
    names={**EMBEDDING, **BLOCK, "norm": "{body}layernorm", "head": "classifier"},
    prepare=_with_class_position,
    remarks=needs.remarks,
)

DEIT = Rule(
    title="DeiT with distillation token",
    needs=(DISTILLED, *PLAIN),
    config=_deit_config,
    model=lambda vit: DeiTForImageClassificationWithTeacher if vit.classes else _DEIT_BODY,
    names={
        **EMBEDDING,
        "dist_token": "{body}embeddings.distillation_token",
        **BLOCK,
        "norm": "{body}layernorm",
        "head": "cls_classifier",
        "head_dist": "distillation_classifier",
    },
    prepare=_without_tokens,
    remarks=_both_tokens,
)

IJEPA = Rule(
    title="I-JEPA",
    needs=(needs.NO_CLASS_TOKEN, *PLAIN, needs.classifies_by("avg")),
    config=_ijepa_config,
    model=lambda vit: IJepaForImageClassification if vit.classes else IJepaModel,
    names={
        "pos_embed": EMBEDDING["pos_embed"],
        "patch_embed.proj": EMBEDDING["patch_embed.proj"],
        **BLOCK,
        "norm": "{body}layernorm",
        "head": "classifier",
    },
    prepare=_without_tokens,
    remarks=needs.remarks,
)
