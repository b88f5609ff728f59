"""Plans in files, edited by hand, and refused."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from hf_vitcompress.errors import ConfigError
from hf_vitcompress.evaluation.costs import count_costs
from hf_vitcompress.planning.plan import CompressionPlan, SearchReport
from hf_vitcompress.statistics.statistics import Statistics
from support.students import LOW_RANK, METHODS
from support.tables import compressor


def test_plan_survives_the_file(vit: PreTrainedModel, statistics: Statistics, tmp_path: Path) -> None:
    plan = compressor(keep_ratio=0.5).plan(vit, statistics)
    plan.save(tmp_path / "folder" / "plan.json")
    assert CompressionPlan.load(tmp_path / "folder" / "plan.json") == plan
    assert json.loads(plan.to_json())["layers"] == plan.layers
    assert plan.budget == {"keep_ratio": 0.5}


def test_an_edited_plan_has_no_drop_that_a_search_found(tmp_path: Path) -> None:
    plan = CompressionPlan({})
    plan.search = SearchReport(0.01, 150, True)
    plan.save(tmp_path / "plan.json")
    assert CompressionPlan.load(tmp_path / "plan.json").search is None
    assert dataclasses.replace(plan, layers={"fc1": {"rank": 2}}).search is None


def test_plan_edited_by_hand_is_what_the_model_gets(
    vit: PreTrainedModel, statistics: Statistics, tmp_path: Path
) -> None:
    path = tmp_path / "plan.json"
    compressor(keep_ratio=0.5).plan(vit, statistics).save(path)
    ranks = {"vit.layers.0.mlp.fc1": 3, "vit.layers.1.attention.q_proj": 32}
    layers = {name: {"rank": rank} for name, rank in ranks.items()}
    path.write_text(json.dumps({**json.loads(path.read_text()), "layers": layers}))
    worker = compressor(keep_ratio=0.5, **LOW_RANK)
    small = worker.compress(vit, statistics=statistics, plan=CompressionPlan.load(path))
    assert small.get_submodule("vit.layers.0.mlp.fc1").down.weight.shape == (3, 32)
    assert small.get_submodule("vit.layers.1.attention.q_proj").up.weight.shape == (32, 32)
    assert small.get_submodule("vit.layers.1.mlp.fc1").weight.shape == (96, 32)
    edited = {name: shape for report in worker.report.parts for name, shape in report.shapes.items()}
    assert edited == layers
    expected = count_costs(vit).parameters - 32 * 96 + 3 * 128 - 32 * 32 + 32 * 64
    assert count_costs(small).parameters == expected


EDITED = {
    "vit.layers.0.attention": {"qk_rank": 5},
    "vit.layers.1.attention.v_proj": {"out_features": 12},
    "vit.layers.1.attention.o_proj": {"in_features": 12, "rank": 7},
    "vit.layers.0.mlp.fc1": {"out_features": 41},
    "vit.layers.0.mlp.fc2": {"in_features": 41},
    "vit.layers.1.mlp.fc2": {"rank": 9},
}


def test_plan_of_widths_edited_by_hand_is_what_the_model_gets(
    vit: PreTrainedModel, statistics: Statistics, tmp_path: Path
) -> None:
    (tmp_path / "plan.json").write_text(json.dumps({"layers": EDITED}))
    worker = compressor()
    plan = CompressionPlan.load(tmp_path / "plan.json")
    small = worker.compress(vit, statistics=statistics, plan=plan)
    assert small.config.compression == {"layers": EDITED}
    assert small.get_submodule("vit.layers.0.attention.qk_down").weight.shape == (5, 32)
    assert small.get_submodule("vit.layers.1.attention.v_proj").weight.shape == (12, 32)
    assert small.get_submodule("vit.layers.1.attention.o_proj").down.weight.shape == (7, 12)
    assert small.get_submodule("vit.layers.0.mlp.fc1").weight.shape == (41, 32)
    assert small.get_submodule("vit.layers.1.mlp.fc1").weight.shape == (96, 32)
    assert worker.report is not None
    assert {n: s for report in worker.report.parts for n, s in report.shapes.items()} == EDITED
    assert worker.report.compressed == count_costs(small)


def test_plan_needs_only_its_layers(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text('{"layers": {"a": {"rank": 8}}}')
    assert CompressionPlan.load(tmp_path / "plan.json") == CompressionPlan({"a": {"rank": 8}})


FC1, FC2 = "vit.layers.0.mlp.fc1", "vit.layers.0.mlp.fc2"
ATTENTION = "vit.layers.0.attention"


GONE_VALUES = {f"{ATTENTION}.v_proj": {"out_features": 0}, f"{ATTENTION}.o_proj": {"in_features": 0}}
GONE_QUERIES = {f"{ATTENTION}.{letter}_proj": {"out_features": 0} for letter in "qk"}


@pytest.mark.parametrize(
    ("method", "layers", "named"),
    [
        ("low rank", {"vit.layers.7.mlp.fc1": {"rank": 4}}, "vit.layers.7.mlp.fc1"),
        ("low rank", {"classifier": {"rank": 4}}, "classifier"),
        ("low rank", {FC1: {"rank": 33}}, "1 … 32"),
        ("low rank", {FC1: {"rank": 0}}, "1 … 32"),
        ("low rank", {FC1: {"rank": -4}}, "-4"),
        ("low rank", {FC1: {"rank": 4.0}}, "4.0"),
        ("low rank", {FC1: {"rank": "4"}}, "'4'"),
        ("low rank", {FC1: {"rank": True}}, "True"),
        ("low rank", {FC1: {"rank": None}}, "None"),
        ("low rank", {FC1: {}}, "'vit.layers.0.mlp.fc1' the shape {}"),
        ("low rank", {FC1: 4}, "'vit.layers.0.mlp.fc1' the shape 4"),
        ("low rank", {FC1: None}, "'vit.layers.0.mlp.fc1' the shape None"),
        ("low rank", {FC1: {"ranks": 4}}, "'vit.layers.0.mlp.fc1' the unknown shape 'ranks'"),
        ("low rank", {FC1: {"out_features": 4}}, "unknown shape 'out_features'"),
        ("low rank", {ATTENTION: {"qk_rank": 4}}, "'vit.layers.0.attention'"),
        ("default", {f"{ATTENTION}.q_proj": {"rank": 4}}, "give 'vit.layers.0.attention' a qk_rank instead"),
        ("default", {ATTENTION: {"rank": 4}}, "unknown shape 'rank'"),
        ("default", {ATTENTION: {"qk_rank": 33}}, "the qk_rank 33; it must be a whole number in 1 … 32"),
        ("default", {FC1: {"out_features": 97}, FC2: {"in_features": 97}}, "1 … 96"),
        ("default", {FC1: {"out_features": 0}, FC2: {"in_features": False}}, "removes a part of 'vit.layers.0.mlp'"),
        ("default", {FC1: {"out_features": 0}}, "removes a part of 'vit.layers.0.mlp'"),
        ("default", {FC1: {"out_features": 0, "rank": 4}, FC2: {"in_features": 0}}, "and nothing else"),
        ("default", {FC1: {"out_features": False}, FC2: {"in_features": False}}, "1 … 96"),
        ("default", GONE_VALUES, "the values of 'vit.layers.0' and not its queries and keys"),
        ("default", GONE_QUERIES, "the queries and keys of 'vit.layers.0' and not its values"),
        ("default", {f"{ATTENTION}.q_proj": {"out_features": 0}}, f"removes a part of '{ATTENTION}'"),
        ("low rank", {**GONE_QUERIES, **GONE_VALUES}, "unknown shape 'out_features'"),
        ("pruned", GONE_VALUES, f"removes a part of '{ATTENTION}'"),
        ("default", {FC1: {"out_features": 40}}, "40 out_features and 'vit.layers.0.mlp.fc2' 96 in_features"),
        ("default", {FC1: {"out_features": 40}, FC2: {"in_features": 41}}, "they must be the same."),
        ("default", {FC1: {"in_features": 16}}, "unknown shape 'in_features'"),
        ("default", {FC2: {"out_features": 16}}, "unknown shape 'out_features'"),
        ("default", {f"{ATTENTION}.v_proj": {"out_features": 16}}, "'vit.layers.0.attention.o_proj' 32 in_features"),
        (
            "default",
            {f"{ATTENTION}.v_proj": {"out_features": 18}, f"{ATTENTION}.o_proj": {"in_features": 18}},
            "they must be the same, a multiple of the 4 heads",
        ),
        ("pruned", {f"{ATTENTION}.q_proj": {"out_features": 16}}, "prunes 'vit.layers.0.attention' unevenly"),
        ("pruned", {f"{ATTENTION}.q_proj": {"rank": 16}}, "unknown shape 'rank'"),
        (
            "pruned",
            {
                **{f"{ATTENTION}.{letter}_proj": {"out_features": 12} for letter in "qkv"},
                f"{ATTENTION}.o_proj": {"in_features": 12},
            },
            "the same multiple of the head dimension 8",
        ),
    ],
)
def test_plan_that_the_model_cannot_have_is_refused(
    vit: PreTrainedModel, statistics: Statistics, method: str, layers: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(named)):
        compressor(**METHODS[method]).compress(vit, statistics=statistics, plan=CompressionPlan(layers))


def test_plan_for_a_skipped_layer_is_refused(vit: PreTrainedModel, statistics: Statistics) -> None:
    plan = CompressionPlan({FC1: {"rank": 4}})
    planner = compressor().planner(vit, statistics)
    plan.check(planner.groups, planner.subject)
    with pytest.raises(ConfigError, match="skipped"):
        compressor(skip_modules=["fc1"]).compress(vit, statistics=statistics, plan=plan)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"layers: 8",
        b'{"layers": {"a": {"rank": 8}}',
        b"[1, 2]",
        b'"layers"',
        b"null",
        b"{}",
        b'{"layer": {"a": {"rank": 8}}}',
        b'{"ranks": {"a": 8}}',
        b'{"layers": {"a": {"rank": 8}}, "surprise": 1}',
        b'{"layers": ["a"]}',
        b'{"layers": null}',
        b'{"layers": 8}',
        b'{"layers": {"a": 8}}',
        b'{"layers": {"a": null}}',
        b"\xff\xfe\x00",
    ],
)
def test_file_that_is_no_plan_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "plan.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"plan\.json"):
        CompressionPlan.load(tmp_path / "plan.json")


def test_missing_plan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no plan"):
        CompressionPlan.load(tmp_path / "none.json")
