"""Whole modules of timm's models: feed-forwards may go, attention stays."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

pytest.importorskip("timm", reason="timm is not installed here; `make test-torchvision` runs this part")

from hf_vitcompress import CompressionConfig, CompressionPlan, ViTCompressor, to_dense
from hf_vitcompress.configuration_factored import factored_config_class
from hf_vitcompress.errors import ConfigError
from hf_vitcompress.model.loading import load_model
from hf_vitcompress.model.timm import split_form
from hf_vitcompress.modeling_factored import factored_model_class
from hf_vitcompress.planning.planner import Planner
from support.timm_models import ARGUMENTS, VIT, images, logits, wrapper


def prepared(name: str) -> tuple[PreTrainedModel, ViTCompressor, Planner]:
    model = wrapper(name)
    compressor = ViTCompressor(
        CompressionConfig(metric="weight", rank_multiple=1, precision="float32", measuring_images=0), progress=False
    )
    return model, compressor, compressor.planner(model, compressor.calibrate(model, images(model)))


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_feed_forward_goes_and_comes_back_as_zeros(name: str, tmp_path: Path) -> None:
    model, compressor, ready = prepared(name)
    group = next(group for group in ready.groups if group.role == "mlp")
    assert group.removal is not None
    small = compressor.build(model, ready.statistics, CompressionPlan(group.removal))
    pixels = images(model, 3, seed=5)
    expected = logits(small, pixels)
    full, left = group.choice({}), group.choice(group.removal)
    assert model.num_parameters() - small.num_parameters() == full.parameters - left.parameters
    assert torch.equal(logits(to_dense(small), pixels), expected)
    small.companions = []
    small.save_pretrained(tmp_path)
    assert torch.equal(logits(load_model(tmp_path, Accelerator(cpu=True)), pixels), expected)


def test_attention_stays() -> None:
    model, compressor, ready = prepared(VIT)
    values = next(group for group in ready.groups if group.role == "vo")
    v, o = values.layers
    plan = CompressionPlan({v.name: {"out_features": 0}, o.name: {"in_features": 0}})
    with pytest.raises(ConfigError, match="attention of timm runs its own forward pass"):
        compressor.build(model, ready.statistics, plan)
    names = {layer.role: layer.name for layer in ready.layers if layer.block == 0}
    layers = {**{names[role]: {"out_features": 0} for role in "qkv"}, names["o"]: {"in_features": 0}}
    split = split_form(model)
    config = {**split.config.to_dict(), "compression": {"layers": layers}}
    config.pop("model_type")
    with pytest.raises(ValueError, match=r"blocks\.0\.attn\.qkv', a SplitProjection, which cannot go"):
        factored_model_class(type(split))(factored_config_class("timm_vit").from_dict(config))
