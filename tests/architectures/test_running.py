"""Which attention a model is calibrated and trained with, and that it is as it was afterwards."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, SwinConfig, SwinModel, ViTModel, YolosConfig, YolosModel

from hf_vitcompress.architectures.running import EAGER_TOKENS, attention_implementations, evaluation_mode
from support.models import TINY, seeded, tiny_config
from support.zoo import HEADS, STAGES

SIDE = int(EAGER_TOKENS**0.5)
"""Patches along the side of the largest square image that eager attention is for."""


def used(model: PreTrainedModel) -> set[str]:
    with evaluation_mode(model):
        return set(attention_implementations(model).values())


@pytest.mark.parametrize(("patches", "attention"), [(4, "eager"), (SIDE, "eager"), (SIDE + 1, "sdpa"), (50, "sdpa")])
def test_attention_that_stores_its_scores_is_for_few_tokens(patches: int, attention: str) -> None:
    model = seeded(ViTModel, tiny_config(image_size=4 * patches))
    before = attention_implementations(model)
    assert used(model) == {attention}
    assert attention_implementations(model) == before == {"": "sdpa"}


@pytest.mark.parametrize(
    ("size", "patch", "attention"),
    [
        ([16, 32], 4, "eager"),
        ([800, 1333], 16, "sdpa"),
        ({"height": 16, "width": 16}, (4, 2), "eager"),
        ({"height": 128, "width": 128}, (8, 2), "sdpa"),
        (None, 4, "sdpa"),
        (16, None, "sdpa"),
    ],
)
def test_sizes_are_read_in_every_form_and_unknown_ones_may_be_large(size: Any, patch: Any, attention: str) -> None:
    model = seeded(ViTModel, tiny_config())
    model.config.__dict__ |= {"image_size": size, "patch_size": patch}
    assert used(model) == {attention}


def test_windows_have_few_scores_however_large_the_image() -> None:
    model = seeded(SwinModel, SwinConfig(**STAGES))
    model.config.image_size = 4 * 2 * SIDE
    assert used(model) == {"eager"}
    model.config.window_size = 4 * SIDE
    assert used(model) == {"sdpa"}


@pytest.mark.parametrize(("size", "attention"), [(16, "eager"), (518, "sdpa")])
def test_a_backbone_decides_for_its_model(size: int, attention: str) -> None:
    head = next(head for head in HEADS if head.name == "DepthAnythingForDepthEstimation")
    model = replace(head, settings=copy.deepcopy(head.settings)).dense()
    model.config.backbone_config.image_size = size
    assert attention_implementations(model)["backbone_config"] == "sdpa"
    with evaluation_mode(model):
        assert attention_implementations(model)["backbone_config"] == attention


def test_a_detector_of_large_images_runs_as_before() -> None:
    config = YolosConfig(**{**TINY, "image_size": [16 * 50, 16 * 83], "patch_size": 16, "num_detection_tokens": 5})
    model = seeded(YolosModel, config)
    pixels = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), evaluation_mode(model):
        assert set(attention_implementations(model).values()) == {"sdpa"}
        assert model(pixel_values=pixels).last_hidden_state.isfinite().all()
