"""DINOv2, with and without register tokens, and DINOv3."""

from typing import Any

import torch
from transformers import (
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
)

from ..reading import Vit
from ..rule import Need, Rule
from ..state import Names, State, blocks_of, place_prefix
from . import needs

BLOCK: Names = {
    "blocks.{i}.norm1": "{body}encoder.layer.{i}.norm1",
    "blocks.{i}.attn.qkv": tuple(f"{{body}}encoder.layer.{{i}}.attention.{name}_proj" for name in "qkv"),
    "blocks.{i}.attn.proj": "{body}encoder.layer.{i}.attention.o_proj",
    "blocks.{i}.ls1.gamma": "{body}encoder.layer.{i}.layer_scale1.lambda1",
    "blocks.{i}.norm2": "{body}encoder.layer.{i}.norm2",
    "blocks.{i}.mlp.fc1": "{body}encoder.layer.{i}.mlp.fc1",
    "blocks.{i}.mlp.fc2": "{body}encoder.layer.{i}.mlp.fc2",
    "blocks.{i}.mlp.gate_and_up": ("{body}encoder.layer.{i}.mlp.gate_proj", "{body}encoder.layer.{i}.mlp.up_proj"),
    "blocks.{i}.mlp.down": "{body}encoder.layer.{i}.mlp.down_proj",
    "blocks.{i}.ls2.gamma": "{body}encoder.layer.{i}.layer_scale2.lambda1",
}
NAMES: Names = {
    "cls_token": "{body}embeddings.cls_token",
    "mask_token": "{body}embeddings.mask_token",
    "pos_embed": "{body}embeddings.position_embeddings",
    "patch_embed.proj": "{body}embeddings.patch_embeddings.projection",
    **BLOCK,
    "norm": "{body}layernorm",
    "head": "classifier",
}

RATIO: Need[Vit] = Need(
    lambda vit: _ratio(vit) * vit.width == (_swiglu_hidden(vit) if vit.gated else vit.hidden),
    "a feed-forward whose width is not a whole multiple of the model's",
)
ACTIVATION: Need[Vit] = Need(
    lambda vit: vit.activation == "silu" if vit.gated else vit.activation in needs.ACTIVATION,
    "an activation like {traits.activation}",
)
IS_DINOV2: Need[Vit] = Need(
    lambda vit: vit.scales or vit.gated or (vit.classes > 0 and vit.pool == "avg"), "the lack of layer scales"
)
NOT_VIT: Need[Vit] = Need(
    lambda vit: vit.classes == 0 or vit.pool != "token" or vit.gated, "a classifier that reads the class token alone"
)
REGISTERS: Need[Vit] = Need(lambda vit: vit.registers > 0, "the lack of register tokens")
SHARED = (
    needs.CLASS_TOKEN,
    needs.POSITIONS,
    needs.NO_NORM_BEFORE,
    needs.NORM_TOKENS,
    needs.classifies_by("token", "avg"),
    RATIO,
    ACTIVATION,
)


def _ratio(vit: Vit) -> int:
    """`mlp_ratio` of the config; that of a gated feed-forward counts both of its halves as two thirds of it."""
    return 4 if vit.gated else vit.hidden // vit.width


def _swiglu_hidden(vit: Vit) -> int:
    """4 × width where the gated feed-forward has the width that transformers gives it; otherwise 0."""
    wanted = (int(4 * vit.width * 2 / 3) + 7) // 8 * 8
    return 4 * vit.width if vit.hidden == wanted else 0


def _config(vit: Vit, labels: dict[str, Any]) -> dict[str, Any]:
    common = vit.common_config()
    del common["intermediate_size"]
    return {**common, "mlp_ratio": _ratio(vit), "use_swiglu_ffn": vit.gated, "qkv_bias": vit.biased, **labels}


def _prepare(state: State, vit: Vit) -> None:
    place_prefix(state, vit.prefix, vit.registers)
    state["mask_token"] = torch.zeros_like(state["cls_token"][0])
    for block in list(blocks_of(state)):
        for scale in ("ls1.gamma", "ls2.gamma"):
            state.setdefault(f"{block}.{scale}", torch.ones_like(state[f"{block}.norm1.weight"]))
    if vit.gated:
        for name in [name for name in state if ".mlp." in name]:
            state[name.replace(".fc1.", ".gate_and_up.").replace(".fc2.", ".down.")] = state.pop(name)
    if vit.classes:  # this classifier reads the class token and the mean of the patches, one behind the other
        weight, unread = state["head.weight"], torch.zeros_like(state["head.weight"])
        state["head.weight"] = torch.cat([weight, unread] if vit.pool == "token" else [unread, weight], dim=1)


def _remarks(vit: Vit) -> list[str]:
    read = {"token": "mean of the patches", "avg": "class token"}.get(vit.pool)
    half = f"The classifier of this class also reads the {read}, with weights of 0."
    return [*([half] if vit.classes else []), *needs.remarks(vit)]


DINOV2 = Rule(
    title="DINOv2",
    needs=(*SHARED, needs.NO_REGISTERS, IS_DINOV2, NOT_VIT),
    config=lambda vit, labels: Dinov2Config(**_config(vit, labels)),
    model=lambda vit: Dinov2ForImageClassification if vit.classes else Dinov2Model,
    names=NAMES,
    prepare=_prepare,
    remarks=_remarks,
)


DINOV2_WITH_REGISTERS = Rule(
    title="DINOv2 with registers",
    needs=(*SHARED, REGISTERS),
    config=lambda vit, labels: Dinov2WithRegistersConfig(**_config(vit, labels), num_register_tokens=vit.registers),
    model=lambda vit: Dinov2WithRegistersForImageClassification if vit.classes else Dinov2WithRegistersModel,
    names={**NAMES, "reg_token": "{body}embeddings.register_tokens"},
    prepare=_prepare,
    remarks=_remarks,
)


# ---- DINOv3

DINOV3_NAMES: Names = {
    "cls_token": "embeddings.cls_token",
    "reg_token": "embeddings.register_tokens",
    "mask_token": "embeddings.mask_token",
    "patch_embed.proj": "embeddings.patch_embeddings",
    "blocks.{i}.norm1": "model.layer.{i}.norm1",
    "blocks.{i}.attn.qkv": tuple(f"model.layer.{{i}}.attention.{name}_proj" for name in "qkv"),
    "blocks.{i}.attn.q_bias": "model.layer.{i}.attention.q_proj.bias",
    "blocks.{i}.attn.v_bias": "model.layer.{i}.attention.v_proj.bias",
    "blocks.{i}.attn.proj": "model.layer.{i}.attention.o_proj",
    "blocks.{i}.gamma_1": "model.layer.{i}.layer_scale1.lambda1",
    "blocks.{i}.norm2": "model.layer.{i}.norm2",
    "blocks.{i}.mlp.fc1": "model.layer.{i}.mlp.up_proj",
    "blocks.{i}.mlp.fc1_g": "model.layer.{i}.mlp.gate_proj",
    "blocks.{i}.mlp.fc1_x": "model.layer.{i}.mlp.up_proj",
    "blocks.{i}.mlp.fc2": "model.layer.{i}.mlp.down_proj",
    "blocks.{i}.gamma_2": "model.layer.{i}.layer_scale2.lambda1",
    "norm": "norm",
}


def _dinov3_config(vit: Vit, labels: dict[str, Any]) -> DINOv3ViTConfig:
    biases: dict[str, Any] = {"query_bias": vit.biased, "key_bias": False, "value_bias": vit.biased}
    return DINOv3ViTConfig(
        **vit.common_config(),
        **biases,
        num_register_tokens=vit.registers,
        rope_theta=vit.rope,
        use_gated_mlp=vit.gated,
        **labels,
    )


def _prepare_dinov3(state: State, vit: Vit) -> None:
    state["mask_token"] = torch.zeros_like(state["cls_token"])
    if vit.registers == 0:
        state["reg_token"] = state["cls_token"][:, :0]


DINOV3 = Rule(
    title="DINOv3",
    needs=(
        needs.CLASS_TOKEN,
        Need(lambda vit: vit.rope > 0, "the lack of rotary positions"),
        Need(lambda vit: not vit.absolute, "absolute positions beside the rotary ones"),
        Need(lambda vit: vit.scales, "the lack of layer scales"),
        needs.NO_NORM_BEFORE,
        needs.NORM_TOKENS,
        needs.KNOWN_ACTIVATION,
        needs.HEADLESS,
    ),
    config=_dinov3_config,
    model=lambda vit: DINOv3ViTModel,
    names=DINOV3_NAMES,
    prepare=_prepare_dinov3,
    remarks=needs.pooling_is_left,
)
