"""What is said before calibration: plans that do not fit, budgets out of reach, arguments of another kind."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, ViTConfig, ViTForImageClassification, ViTModel

import hf_vitcompress.compressor
from hf_vitcompress import CompressionConfig, CompressionPlan, Statistics, ViTCompressor
from hf_vitcompress.errors import BudgetError, ConfigError, DataError, OutputError, UnsupportedModelError
from hf_vitcompress.planning.foresight import check_reach, within_reach
from support.digits import small_recipe
from support.models import TINY

FC1 = "vit.layers.0.mlp.fc1"
FC2 = "vit.layers.0.mlp.fc2"


@pytest.fixture(autouse=True)
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever begins to calibrate or to solve has noticed too late."""
    monkeypatch.setattr(hf_vitcompress.compressor, "calibrate", lambda *_: pytest.fail("calibrated first"))
    monkeypatch.setattr(hf_vitcompress.compressor, "make_planner", lambda *_: pytest.fail("planned first"))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"nowhere": {"rank": 3}}, "'nowhere'"),
        ({f"{FC1}x": {"rank": 3}}, f"Did you mean '{FC1}'"),
        ({"classifier": {"rank": 3}}, "'classifier'"),
        ({FC1: {}}, "the shape {}"),
        ({FC1: {"rang": 3}}, "unknown shape 'rang'"),
        ({FC1: {"rank": 33}}, r"rank 33; it must be a whole number in 1 … 32"),
        ({FC1: {"rank": 0}}, "rank 0"),
        ({FC1: {"rank": -1}}, "rank -1"),
        ({FC1: {"rank": 2.0}}, r"rank 2\.0"),
        ({FC1: {"rank": True}}, "rank True"),
        ({FC1: {"rank": float("nan")}}, "rank nan"),
        ({FC1: {"rank": "2"}}, "rank '2'"),
        ({FC1: {"rank": None}}, "rank None"),
        ({FC1: {"rank": torch.tensor(2)}}, r"rank tensor\(2\)"),
        ({FC1: {"rank": 10**30}}, "rank 1000"),
        ({FC1: {"out_features": 8}}, "must be the same"),
        ({FC1: {"out_features": 8}, FC2: {"in_features": 4}}, "must be the same"),
        ({"vit.layers.0.attention": {"qk_rank": 33}}, "qk_rank 33"),
        ({"vit.layers.0.attention": {"rank": 3}}, "unknown shape 'rank'"),
        ([1], "must be a mapping of module names"),
        (None, "must be a mapping of module names"),
    ],
    ids=str,
)
def test_a_plan_that_does_not_fit_is_refused_before_the_work(
    layers: Any, message: str, vit: PreTrainedModel, pixels: Tensor
) -> None:
    with pytest.raises(ConfigError, match=message):
        small_recipe().compress(vit, pixels, plan=CompressionPlan(layers))


@pytest.mark.parametrize(
    "budget", [{"keep_ratio": 0.01}, {"max_params": 9}, {"keep_ratio": 0.5, "skip_modules": ["fc1", "fc2"]}]
)
def test_a_budget_out_of_reach_is_refused_before_the_work(
    budget: dict[str, Any], vit: PreTrainedModel, pixels: Tensor
) -> None:
    with pytest.raises(BudgetError, match="out of reach: the smallest model"):
        small_recipe(**{"keep_ratio": None, **budget}).compress(vit, pixels)


@pytest.mark.parametrize(
    ("config", "arguments", "error", "message"),
    [
        ({"compensation": "residual"}, {"statistics": Statistics()}, DataError, "give some"),
        ({"keep_ratio": None, "max_accuracy_drop": 0.1}, {"statistics": Statistics()}, BudgetError, "validation"),
        ({"keep_ratio": None, "max_accuracy_drop": 0.1}, {"validation": "./nowhere"}, DataError, "nowhere"),
        ({}, {"statistics": "file.safetensors"}, ConfigError, "statistics must be Statistics, not 'file"),
        ({}, {"statistics": {}}, ConfigError, "statistics must be Statistics"),
        ({}, {"plan": {"layers": {}}}, ConfigError, "plan must be CompressionPlan"),
        ({}, {"plan": "plan.json"}, ConfigError, r"CompressionPlan\.load reads a file"),
        ({}, {"checkpoint": 3}, ConfigError, "checkpoint must be str"),
        ({}, {"checkpoint": "/dev/null/file"}, OutputError, "Not a directory"),
        ({}, {"checkpoint": "/"}, OutputError, "is a folder"),
    ],
    ids=str,
)
def test_arguments_that_cannot_work_are_refused_before_the_work(
    config: dict[str, Any], arguments: dict[str, Any], error: type[Exception], message: str, vit: PreTrainedModel
) -> None:
    images = None if "statistics" in arguments else torch.randn(8, 3, 16, 16)
    with pytest.raises(error, match=message):
        small_recipe(**config).compress(vit, images, **arguments)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({}, "needs learned scores"),
        ({"vit.layers.0.mlp.fc2": "high"}, "must be Tensor, not 'high'"),
        ({"vit.layers.0.mlp.fc2": torch.ones(3)}, "3,"),
        ({f"vit.layers.{i}.mlp.fc2": torch.full((96,), float("nan")) for i in range(2)}, "NaN"),
    ],
)
def test_scores_that_cannot_select_are_refused_before_the_work(
    scores: dict[str, Any], message: str, vit: PreTrainedModel, pixels: Tensor
) -> None:
    config = CompressionConfig(keep_ratio=0.6, criterion="gates", rank_multiple=1)
    with pytest.raises(ConfigError, match=message):
        ViTCompressor(config, progress=False, importance=scores).compress(vit, pixels)


@pytest.mark.parametrize(
    "arguments",
    [
        {"config": {"keep_ratio": 0.4}},
        {"config": {}},
        {"config": "svd"},
        {"config": CompressionConfig},
        {"accelerator": "cuda"},
        {"image_processor": "vit"},
        {"importance": [1.0]},
    ],
    ids=str,
)
def test_a_compressor_is_made_of_the_right_kinds(arguments: dict[str, Any]) -> None:
    (name,) = arguments
    with pytest.raises(ConfigError, match=f"{name} must be"):
        ViTCompressor(**arguments)


def test_a_model_without_weights_is_refused(pixels: Tensor) -> None:
    with torch.device("meta"):
        model = ViTForImageClassification(ViTConfig(**TINY))
    with pytest.raises(UnsupportedModelError, match="no weights"):
        small_recipe().compress(model, pixels)


def test_a_model_without_classes_has_no_accuracy_to_lose(pixels: Tensor) -> None:
    with pytest.raises(BudgetError, match="no classes"):
        small_recipe(keep_ratio=None, max_accuracy_drop=0.1).compress(ViTModel(ViTConfig(**TINY)), pixels)


@pytest.mark.parametrize("stage", ["planner", "build", "plan"])
def test_stages_refuse_statistics_that_are_none(stage: str, vit: PreTrainedModel) -> None:
    more = [CompressionPlan({})] if stage == "build" else []
    with pytest.raises(ConfigError, match="statistics must be Statistics, not None"):
        getattr(small_recipe(), stage)(vit, None, *more)


def test_build_refuses_what_is_no_plan(vit: PreTrainedModel, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="plan must be CompressionPlan"):
        small_recipe().build(vit, Statistics(), {"layers": {}})  # type: ignore[arg-type]


def test_a_model_is_looked_at_under_the_default_budget_or_the_nearest_that_a_plan_meets(vit: PreTrainedModel) -> None:
    subject = small_recipe().open(vit)
    assert within_reach(subject, config := CompressionConfig(rank_multiple=1)) == config
    coarse = CompressionConfig(rank_multiple=64, allocation="uniform")
    near = within_reach(subject, coarse)
    assert near.keep_ratio is not None
    assert 0.5 < near.keep_ratio < 1
    assert near == coarse.with_budget(keep_ratio=near.keep_ratio)
    check_reach(subject, near)
    smallest = int(near.keep_ratio * subject.model.num_parameters())
    with pytest.raises(BudgetError, match="out of reach"):
        check_reach(subject, coarse.with_budget(max_params=smallest - 2))


def test_a_budget_that_was_asked_for_is_not_replaced(vit: PreTrainedModel) -> None:
    subject = small_recipe().open(vit)
    assert within_reach(subject, config := CompressionConfig(max_params=20_000, rank_multiple=1)) is config
    with pytest.raises(BudgetError, match="out of reach"):
        within_reach(subject, CompressionConfig(keep_ratio=0.02))
