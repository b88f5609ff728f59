"""What a compression leaves behind: nothing on the model, and nothing in the compressor that changes later calls."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, PreTrainedModel

from hf_vitcompress import CompressionConfig, ViTCompressor
from hf_vitcompress.errors import CalibrationError
from support.students import lively

FAST = {"keep_ratio": 0.7, "rank_multiple": 1, "precision": "float32", "batch_size": 16}
TINY_CLIP = CLIPConfig(
    text_config={"hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 2},
    vision_config={
        "hidden_size": 32,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
    },
    projection_dim=8,
)


def traces(model: PreTrainedModel) -> dict[str, Any]:
    """Everything of every module that is no weight: attributes, hooks, mode; and which weights want gradients."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        own = vars(module)
        hooks = {key: len(value) for key, value in own.items() if key.endswith("_hooks")}
        found[name] = (type(module), sorted(own), hooks, module.training, sorted(vars(module)["_parameters"]))
    found["gradients"] = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    found["config"] = model.config.to_dict()
    return found


@pytest.mark.parametrize(
    "changes", [{}, {"compensation": "both", "compensation_duration": "1 epoch"}], ids=["plan", "both"]
)
def test_nothing_is_left_on_the_model(vit: PreTrainedModel, pixels: Tensor, changes: dict[str, Any]) -> None:
    before = traces(vit)
    ViTCompressor(CompressionConfig(**FAST, **changes), progress=False).compress(vit, pixels)
    assert traces(vit) == before


def test_nothing_is_left_on_a_model_of_which_a_part_is_compressed(pixels: Tensor) -> None:
    clip = lively(CLIPModel, TINY_CLIP)
    before = traces(clip)
    config = CompressionConfig(**FAST, target="vision_model")
    small = ViTCompressor(config, progress=False).compress(clip, pixels)
    assert traces(clip) == before
    assert small.config.compression["target"] == "vision_model"


def test_a_part_once_compressed_is_read_as_itself_afterwards(pixels: Tensor) -> None:
    """The tower alone has hidden states as its output; inside CLIP only the pooled output is read."""
    clip = lively(CLIPModel, TINY_CLIP)
    alone = copy.deepcopy(clip.vision_model)
    ViTCompressor(CompressionConfig(**FAST, target="vision_model"), progress=False).compress(clip, pixels)
    recipe = CompressionConfig(**FAST)
    after, fresh = ViTCompressor(recipe, progress=False), ViTCompressor(recipe, progress=False)
    after.compress(clip.vision_model, pixels)
    fresh.compress(alone, pixels)
    assert after.report is not None
    assert fresh.report is not None
    assert after.report.predicted_loss == fresh.report.predicted_loss


def test_statistics_of_weights_that_differ_anywhere_are_refused(vit: PreTrainedModel, pixels: Tensor) -> None:
    compressor = ViTCompressor(CompressionConfig(**FAST), progress=False)
    statistics = compressor.calibrate(vit, pixels)
    other = copy.deepcopy(vit)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.flatten()[8:].mul_(1.5)  # the first eight numbers of each tensor are the same
    with pytest.raises(CalibrationError, match="collected from another model"):
        compressor.compress(other, statistics=statistics)


def test_statistics_of_the_same_blocks_in_another_order_are_refused(vit: PreTrainedModel, pixels: Tensor) -> None:
    compressor = ViTCompressor(CompressionConfig(**FAST), progress=False)
    statistics = compressor.calibrate(vit, pixels)
    other = copy.deepcopy(vit)
    first, second = vit.vit.layers[0].state_dict(), vit.vit.layers[1].state_dict()
    other.vit.layers[0].load_state_dict(second)
    other.vit.layers[1].load_state_dict(first)
    with pytest.raises(CalibrationError, match="collected from another model"):
        compressor.compress(other, statistics=statistics)
