"""What a card says of the ways in which a model was compressed: those of its plan, and no others."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import Dinov2Backbone, Dinov2Config, PreTrainedModel

from hf_vitcompress import CompressionConfig, CompressionPlan, ViTCompressor
from hf_vitcompress.planning.plan import GroupReport
from support.cards import card_with
from support.models import TINY, seeded
from support.published import Made
from support.students import random_images

RANK, WIDE, NARROW, GONE = {"rank": 2}, {"out_features": 8}, {"in_features": 8}, {"in_features": 0}
COMPRESSED = "parameters (49.9%): "
RANK_METHODS = ("rank", "its factors", "pruned", "Singular", "Kronecker", "queries and keys")


def part(role: str, block: int = 0, **shapes: dict[str, int]) -> GroupReport:
    return GroupReport(f"layers.{block}.{role}", role, block, [], "", shapes, 8, 16, None)


MLP_GONE = {"fc1": {"out_features": 0}, "fc2": GONE}
WAYS: dict[str, tuple[list[GroupReport], str]] = {
    "joint": (
        [part("qk", attention={"qk_rank": 3}), part("vo", v=WIDE, o=NARROW)],
        "queries and keys share a projection, values lose directions",
    ),
    "queries and keys alone": ([part("qk", attention={"qk_rank": 3})], "queries and keys share a projection"),
    "heads": ([part("heads", q=WIDE, k=WIDE, v=WIDE, o=NARROW)], "heads are pruned"),
    "ranks": (
        [part("q", q=RANK), part("fc1", fc1=RANK)],
        "projections of attention are low-rank; feed-forward layers are low-rank",
    ),
    "pruned": ([part("mlp", fc1=WIDE, fc2=NARROW)], "neurons of feed-forward layers are pruned"),
    "both": ([part("mlp", fc1={**WIDE, **RANK}, fc2=NARROW)], "feed-forward layers are pruned, low-rank, or both"),
    "a feed-forward removed": ([part("qk"), part("mlp", **MLP_GONE)], "1 feed-forward is removed"),
    "attention removed": (
        [
            part("qk", q={"out_features": 0}, k=GONE),
            part("vo", v={"out_features": 0}, o=GONE),
            part("heads", 1, q={"out_features": 0}, o=GONE),
            part("mlp", **MLP_GONE),
            part("vo", 2, v=WIDE, o=NARROW),
        ],
        "values lose directions; 2 attentions and 1 feed-forward are removed",
    ),
    "nothing": ([part("qk"), part("mlp")], "nothing was changed"),
}


@pytest.mark.parametrize("case", WAYS)
def test_a_card_names_the_ways_of_its_plan(case: str, made: Made) -> None:
    parts, words = WAYS[case]
    assert f"{COMPRESSED}{words}.\n" in card_with(made, parts=parts).text


def test_a_card_says_what_stands_for_removed_modules(made: Made) -> None:
    parts = WAYS["attention removed"][0]
    text = card_with(made, parts=parts).text
    assert "2 attentions and 1 feed-forward are removed: in the place of each the mean of its output is left" in text
    one = card_with(made, parts=WAYS["a feed-forward removed"][0]).text
    assert "1 feed-forward is removed: in its place the mean of its output is left" in one
    plain = {**made.report.settings, "correct_bias": False}
    assert "in the place of each its bias is left" in card_with(made, parts=parts, settings=plain).text
    assert "removed" not in card_with(made).text


def merging(made: Made, **changes: Any) -> str:
    return card_with(
        made, **{"patch_tokens": (64, 26), "tokens": {"vit.layers.0": 30, "vit.layers.1": 8}, **changes}
    ).text


def test_a_card_says_which_blocks_merge_tokens_and_what_that_rules_out(made: Made) -> None:
    text = merging(made)
    assert "similar tokens are merged." in text
    assert "| patch tokens in the last block | 64 | 26 | 40.6% kept |" in text
    assert "64 enter the first block and 26 the last one, which gives every patch its place again." in text
    assert "hidden states between the blocks have fewer tokens" in text
    assert "Tokens merged at the end of blocks of `vit.layers`: 30 in 0, 8 in 1." in text
    assert "`flash_attention_2`, is refused" in text
    assert '`gradient_checkpointing_kwargs={"use_reentrant": False}`' in text
    assert "multiplies its factors out" in text
    assert "The dense form merges no tokens, so that the figures above are not those of it." in text
    assert not [word for word in ("tokens", "flash", "reentrant") if word in card_with(made).text.split("## How")[0]]
    quantized = merging(made, quantization="int8_dynamic")
    assert "`flash_attention_2`, is refused" in quantized


def test_of_tokens_alone_a_card_names_no_method_for_layers(made: Made) -> None:
    dense = [replace(part, shapes={}) for part in made.report.parts]
    text = merging(made, parts=dense)
    assert f"{COMPRESSED}similar tokens are merged.\n" in text
    assert f"All {len(dense)} parts of the blocks are as they were." in text
    assert "`model.to_dense()` gives a model of the dense class" in text
    told = text.split("<details>")[0] + text.split("</details>")[1]
    assert not [word for word in RANK_METHODS if word in told]
    assert "bolya2022token" in text


@pytest.fixture(scope="module")
def backbone() -> PreTrainedModel:
    settings = {name: value for name, value in TINY.items() if name != "num_labels"}
    model = seeded(Dinov2Backbone, Dinov2Config(**{**settings, "mlp_ratio": 3, "out_indices": [1, 2]}))
    config = CompressionConfig(rank_multiple=1, measuring_images=0, precision="float32")
    small: PreTrainedModel = ViTCompressor(config, progress=False).compress(
        model, random_images(24), plan=CompressionPlan({"encoder.layer.0.mlp.fc1": {"rank": 4}})
    )
    return small


def test_a_card_does_not_open_the_folder_of_a_backbone_as_the_auto_class_cannot(
    backbone: PreTrainedModel, tmp_path: Path
) -> None:
    from hf_vitcompress.modeling_factored import FactoredDinov2Backbone

    backbone.save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert 'AutoBackbone.from_pretrained("hub-id")' in text
    assert "`AutoBackbone` takes a Hub id and no folder; a folder is opened by `FactoredDinov2Backbone.from_pre" in text
    assert "path/or" not in text
    assert isinstance(FactoredDinov2Backbone.from_pretrained(tmp_path), type(backbone))
