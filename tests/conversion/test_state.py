"""Tensors under the names of the other library."""

import pytest
import torch
from torch import nn

from hf_vitcompress.conversion.state import (
    drop_key_biases,
    fold_layer_scales,
    place_prefix,
    to_timm,
    to_transformers,
)
from hf_vitcompress.errors import UnsupportedModelError

NAMES = {
    "cls_token": "{body}cls",
    "blocks.{i}.qkv": ("{body}layers.{i}.q", "{body}layers.{i}.k", "{body}layers.{i}.v"),
    "blocks.{i}.down.{j}.norm": "{body}layers.{i}.down.{j}.norm",
    "head": "classifier",
}


def test_one_layer_becomes_three_and_one_again() -> None:
    state = {
        "cls_token": torch.randn(1, 1, 2),
        "blocks.10.qkv.weight": torch.randn(6, 2),
        "blocks.10.qkv.bias": torch.randn(6),
        "blocks.1.down.0.norm.weight": torch.randn(2),
        "head.weight": torch.randn(3, 2),
    }
    renamed = to_transformers(state, NAMES, "vit.")
    assert set(renamed) == {
        "vit.cls",
        *(f"vit.layers.10.{part}.{kind}" for part in "qkv" for kind in ("weight", "bias")),
        "vit.layers.1.down.0.norm.weight",
        "classifier.weight",
    }
    assert torch.equal(renamed["vit.layers.10.k.weight"], state["blocks.10.qkv.weight"][2:4])
    back = to_timm(renamed, NAMES, "vit.")
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


@pytest.mark.parametrize("convert", [to_transformers, to_timm])
def test_a_weight_without_counterpart_is_named(convert: object) -> None:
    with pytest.raises(UnsupportedModelError, match=r"weight blocks\.0\.attn\.q_norm\.weight has no counterpart"):
        convert({"blocks.0.attn.q_norm.weight": torch.ones(2)}, NAMES, "")  # type: ignore[operator]


def test_layer_scales_are_folded_into_the_layers_before_them() -> None:
    layer, scale, x = nn.Linear(3, 4), torch.randn(4), torch.randn(5, 3)
    state = {f"blocks.0.mlp.fc2.{name}": tensor.detach() for name, tensor in layer.named_parameters()}
    state["blocks.0.ls2.gamma"] = scale
    fold_layer_scales(state)
    assert set(state) == {"blocks.0.mlp.fc2.weight", "blocks.0.mlp.fc2.bias"}
    folded = nn.functional.linear(x, state["blocks.0.mlp.fc2.weight"], state["blocks.0.mlp.fc2.bias"])
    torch.testing.assert_close(folded, layer(x) * scale)


def test_positions_get_a_row_for_the_class_token_and_none_for_registers() -> None:
    patches = torch.randn(1, 4, 2)
    state = {"pos_embed": patches}
    place_prefix(state, prefix=0, registers=0)
    assert torch.equal(state["pos_embed"], torch.cat([torch.zeros(1, 1, 2), patches], dim=1))

    positions, registers = torch.randn(1, 7, 2), torch.randn(1, 2, 2)
    state = {"pos_embed": positions, "reg_token": registers}
    place_prefix(state, prefix=3, registers=2)
    assert torch.equal(state["pos_embed"], positions[:, [0, 3, 4, 5, 6]])
    assert torch.equal(state["reg_token"], registers + positions[:, 1:3])


def test_biases_of_keys_are_left_out() -> None:
    bias = torch.arange(6.0)
    state = {"blocks.0.attn.qkv.bias": bias, "blocks.0.attn.qkv.weight": torch.ones(6, 2)}
    drop_key_biases(state)
    assert set(state) == {"blocks.0.attn.q_bias", "blocks.0.attn.v_bias", "blocks.0.attn.qkv.weight"}
    assert torch.equal(state["blocks.0.attn.v_bias"], bias[4:])
