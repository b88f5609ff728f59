"""Layers put in the place of dense ones, and shapes that they cannot have."""

import json
import re

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageClassification, ViTModel

from hf_vitcompress import FactoredLinear, layers_factored
from support.factored import RANKS, factored, formed


@pytest.mark.parametrize("name", ["layers.2.mlp.fc1", "vit.layers.0.mlp.fc3", "nonsense"])
def test_a_layer_that_does_not_exist_is_refused_by_name(name):
    with pytest.raises(ValueError, match=name):
        factored(ranks={name: 4})


@pytest.mark.parametrize(("name", "kind"), [("layers.0.layernorm_before", "LayerNorm"), ("layers.0.mlp", "ViTMLP")])
def test_only_linear_layers_can_be_named(name, kind):
    with pytest.raises(ValueError, match=rf"{name}.*{kind}"):
        factored(ranks={name: 4})


def test_a_layer_cannot_be_named_twice():
    with pytest.raises(ValueError, match="FactoredLinear"):
        factored(ranks={"layers.0.mlp.fc1": 4, "vit.layers.0.mlp.fc1": 8})


def test_weights_of_another_rank_than_the_config_says_are_refused(tmp_path):
    factored().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["compression"]["layers"]["layers.0.mlp.fc1"]["rank"] = 7
    path.write_text(json.dumps(config))
    with pytest.raises(RuntimeError, match="mismatch"):
        AutoModelForImageClassification.from_pretrained(tmp_path)


@pytest.mark.parametrize("rank", [0, -1])
def test_a_rank_below_one_is_refused(rank):
    with pytest.raises(ValueError, match=f"rank of at least 1, not {rank}"):
        factored(ranks={"layers.0.mlp.fc1": rank})


FC1, ATTENTION = "layers.0.mlp.fc1", "layers.0.attention"


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({FC1: {}}, "the shape {}"),
        ({FC1: {"ranks": 4}}, "the shape {'ranks': 4}"),
        ({FC1: {"qk_rank": 4}}, "'layers.0.mlp.fc1', a Linear in FactoredViTModel, the shape {'qk_rank': 4}"),
        ({FC1: 4}, "'layers.0.mlp.fc1'"),
        ({ATTENTION: {"rank": 4}}, "'layers.0.attention', a ViTAttention"),
        ({ATTENTION: {"qk_rank": 4, "rank": 3}}, "'layers.0.attention'"),
        ({"layers.0.mlp": {"qk_rank": 4}}, "'layers.0.mlp', a ViTMLP"),
        ({FC1: {"out_features": 97}}, "'layers.0.mlp.fc1' 97 × 32"),
        ({FC1: {"in_features": 33}}, "'layers.0.mlp.fc1' 96 × 33"),
        ({FC1: {"out_features": -1}}, "'layers.0.mlp.fc1' -1 × 32"),
        ({FC1: {"out_features": 0}}, "removes 'layers.0.mlp.fc1', and not what reads it"),
        ({FC1: {"out_features": 0, "rank": 3}}, "'layers.0.mlp.fc1' 0 × 32"),
        ({FC1: {"in_features": 0, "out_features": 0}}, "'layers.0.mlp.fc1' 0 × 0"),
        ({ATTENTION: {"qk_rank": 0}}, "'layers.0.attention'"),
        ({ATTENTION: {"qk_rank": -3}}, "'layers.0.attention'"),
        ({f"{ATTENTION}.q_proj": {"rank": 4}, ATTENTION: {"qk_rank": 4}}, "'layers.0.attention"),
    ],
)
def test_shapes_that_cannot_be_are_refused_by_the_name_of_the_layer(layers, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        factored(ViTModel, layers=layers)


@pytest.mark.parametrize("form", ["shared down", "narrow values"])
def test_attention_that_is_not_the_known_one_is_refused(form, monkeypatch):
    monkeypatch.setattr(layers_factored, "ATTENTIONS", {})
    with pytest.raises(ValueError, match=r"'layers\.0\.attention.*ViTAttention cannot have"):
        formed(form, ViTModel)


def test_a_factored_layer_is_the_product_of_its_factors():
    layer = FactoredLinear(6, 4, 3)
    inputs = torch.randn(2, 5, 6)
    expected = inputs @ (layer.up.weight @ layer.down.weight).T + layer.up.bias
    torch.testing.assert_close(layer(inputs), expected)
    assert (layer.in_features, layer.out_features, layer.rank) == (6, 4, 3)
    assert "rank=3" in repr(layer)


def test_no_dense_layer_is_left_beside_its_factors():
    model = factored()
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    assert not any(name.endswith(tuple(RANKS)) for name in names)
    assert not any(name.endswith(("fc1.weight", "fc1.bias")) and "layers.0" in name for name in model.state_dict())
