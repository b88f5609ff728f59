"""Merged tokens in a plan: the file, the model, its costs, and what is said of them."""

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
)

from hf_vitcompress import CompressionPlan, CompressionReport, to_dense
from hf_vitcompress.errors import ConfigError, UnsupportedModelError
from hf_vitcompress.evaluation.costs import count_macs, patch_tokens
from hf_vitcompress.model.towers import compressed_part
from hf_vitcompress.planning.building import merged_model
from hf_vitcompress.publish.cards.citations import citations
from hf_vitcompress.statistics.statistics import Statistics
from support.models import seeded
from support.students import random_images
from support.tables import compressor
from support.zoo import HEADS, TEXT, VISION

TOKENS = {"vit.layers.0": 3}
FC1 = "vit.layers.1.mlp.fc1"
WIDTH, HIDDEN, PATCHES = 32, 96, 16


def test_tokens_survive_the_file(tmp_path: Path) -> None:
    plan = CompressionPlan({FC1: {"rank": 4}}, tokens=TOKENS)
    plan.save(tmp_path / "plan.json")
    assert CompressionPlan.load(tmp_path / "plan.json") == plan
    (tmp_path / "earlier.json").write_text('{"layers": {}}')
    assert CompressionPlan.load(tmp_path / "earlier.json").tokens == {}
    (tmp_path / "wrong.json").write_text('{"layers": {}, "tokens": [3]}')
    with pytest.raises(ConfigError, match=re.escape("must be a mapping of blocks to numbers of tokens, not [3]")):
        CompressionPlan.load(tmp_path / "wrong.json")


def macs(*tokens: int) -> int:
    """By hand, of two blocks with so many tokens each, and the similarities where the first merges some."""
    blocks = sum(count * (4 * WIDTH**2 + 2 * WIDTH * HIDDEN) + 2 * count**2 * WIDTH for count in tokens)
    similarities = (PATCHES // 2) ** 2 * WIDTH if tokens[1] < tokens[0] else 0
    return PATCHES * 48 * WIDTH + blocks + similarities + 5 * WIDTH


def test_fewer_tokens_are_counted_in_the_blocks_after_them(vit: PreTrainedModel) -> None:
    assert count_macs(vit) == macs(17, 17)
    assert count_macs(merged_model(vit, TOKENS)) == macs(17, 14)


@pytest.mark.parametrize("layers", [{}, {FC1: {"rank": 4}}], ids=["tokens alone", "with a rank"])
@torch.no_grad()
def test_a_plan_with_tokens_is_built_saved_loaded_and_named(
    vit: PreTrainedModel, statistics: Statistics, tmp_path: Path, layers: dict[str, dict[str, int]]
) -> None:
    worker, images = compressor(keep_ratio=0.5, mlp="low_rank"), random_images(4)
    small = worker.compress(vit, statistics=statistics, plan=CompressionPlan(layers, tokens=TOKENS))
    assert small.config.compression == {"layers": layers, "tokens": TOKENS}
    assert not torch.equal(small(images).logits, vit(images).logits)
    without = worker.compress(vit, statistics=statistics, plan=CompressionPlan(layers))
    assert torch.equal(merged_model(without, TOKENS)(images).logits, small(images).logits)
    assert torch.equal(merged_model(small, {})(images).logits, without(images).logits)
    torch.testing.assert_close(to_dense(small)(images).logits, without(images).logits)
    small.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert torch.equal(loaded(images).logits, small(images).logits)
    assert json.loads((tmp_path / "compression_plan.json").read_text())["tokens"] == TOKENS
    report = CompressionReport.load(tmp_path)
    assert ("patch tokens in the last block", "16", "13", "81.2% kept") in report.rows()
    assert "\n\nTokens merged at the end of blocks of `vit.layers`: 3 in 0.\n" in report.to_markdown()
    assert patch_tokens(loaded, (3, 16, 16)) == report.patch_tokens
    assert patch_tokens(without, (3, 16, 16)) is None
    assert report.predicted_loss is None  # of merged tokens nothing is predicted
    assert "similar tokens are merged" in (tmp_path / "README.md").read_text()
    assert "2210.09461" in (tmp_path / "README.md").read_text()


def test_plans_without_tokens_say_nothing_of_them(vit: PreTrainedModel, statistics: Statistics) -> None:
    worker = compressor(keep_ratio=0.5)
    small = worker.compress(vit, statistics=statistics)
    assert "tokens" not in small.config.compression
    assert not any("tokens" in name for name, *_ in worker.report.rows())
    assert not any("2210.09461" in entry for entry in citations(worker.report.settings))


@pytest.mark.parametrize("tokens", [{"vit.layers.1": 1}, {"vit.layers.0": 9}, {"vit.layers.0": "3"}, {"x": 1}])
def test_tokens_that_the_model_cannot_merge_are_refused_first(
    vit: PreTrainedModel, statistics: Statistics, tokens: dict
) -> None:
    plan = CompressionPlan({}, tokens=tokens)
    with pytest.raises(ConfigError, match="The plan merges"):
        compressor().compress(vit, statistics=statistics, plan=plan)
    with pytest.raises(ConfigError, match="The plan merges"):
        compressor().build(vit, statistics, plan)
    with pytest.raises(ConfigError, match="The plan merges"):
        merged_model(vit, tokens)


def test_models_that_cannot_merge_tokens_say_why() -> None:
    swin = next(head for head in HEADS if head.name == "SwinForImageClassification").dense()
    with pytest.raises(UnsupportedModelError, match="windows"):
        compressor().compress(swin, random_images(4), plan=CompressionPlan({}, tokens=TOKENS))


@torch.no_grad()
def test_a_tower_merges_tokens_inside_the_whole_model(tmp_path: Path) -> None:
    config = CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=16)
    clip, images = seeded(CLIPModel, config), random_images(4)
    plan = CompressionPlan({}, tokens={"encoder.layers.0": 4})
    small = compressor(target="vision_model", num_images=4).compress(clip, random_images(24), plan=plan)
    assert small.config.compression["tokens"] == {"vision_model.encoder.layers.0": 4}
    small.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    tower = compressed_part(clip, small)
    part = compressed_part(small, small).model
    features = [model.vision_model(images).pooler_output for model in (loaded, small)]
    assert torch.equal(*features)
    assert torch.equal(part(images).pooler_output, features[1])
    assert not torch.equal(tower.model(images).pooler_output, features[1])


def test_a_tower_whose_hidden_states_are_read_is_refused() -> None:
    vision = CLIPVisionConfig(**VISION)
    text = LlamaConfig(**{**TEXT, "num_key_value_heads": 2})
    model = seeded(
        LlavaForConditionalGeneration, LlavaConfig(vision_config=vision, text_config=text, image_token_index=39)
    )
    with pytest.raises(UnsupportedModelError, match="between its blocks, where tokens are still merged"):
        compressor(target="vision_tower").compress(
            model, random_images(4), plan=CompressionPlan({}, tokens={"encoder.layers.0": 1})
        )
