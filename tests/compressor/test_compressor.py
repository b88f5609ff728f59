"""The public API from a dense model to a saved, reloaded and judged one."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageClassification, PreTrainedModel, pipeline

from hf_vitcompress import CompressionConfig, CompressionPlan, Statistics, ViTCompressor, evaluate_model
from hf_vitcompress.architectures.layers import find_layers
from hf_vitcompress.config import PRESETS
from hf_vitcompress.configuration_factored import TRAVELLING_FILES
from hf_vitcompress.errors import DataError
from hf_vitcompress.images.images import ImageSource
from hf_vitcompress.images.sources import open_images
from hf_vitcompress.model.shapes import layout_of
from hf_vitcompress.model.stored import round_weights
from support.digits import CALIBRATION, RECIPE, identical, new, output, small_recipe
from support.models import DIGITS
from support.students import METHODS

METRICS = ("weight", "activation", "row_fisher", "fisher")


@pytest.fixture(scope="module")
def folder(small: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "digits-40"
    small.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def test_images(digits: PreTrainedModel) -> ImageSource:
    return open_images(DIGITS / "test.parquet", label2id=digits.config.label2id)


def test_the_budget_is_met(small: PreTrainedModel, compressor: ViTCompressor, digits: PreTrainedModel) -> None:
    kept = small.num_parameters() / digits.num_parameters()
    assert kept == pytest.approx(0.4, rel=0.005)
    assert kept <= 0.4
    assert compressor.report is not None
    assert compressor.report.keep_ratio == kept


def test_answers_stay_and_the_predicted_loss_is_about_the_measured_one(
    small: PreTrainedModel,
    compressor: ViTCompressor,
    digits: PreTrainedModel,
    test_images: ImageSource,
    digit_processor: Any,
) -> None:
    result = evaluate_model(small, test_images, digit_processor, against=digits, progress=False)
    assert compressor.report is not None
    assert result.agreement is not None
    assert result.kl is not None
    assert result.agreement.value >= 0.95
    measured, predicted = result.kl.value, compressor.report.predicted_loss
    assert predicted is not None
    assert measured / 3 < predicted < 3 * measured or max(measured, predicted) < 1e-3


def test_fewer_parameters_cost_more(compressor: ViTCompressor, small: PreTrainedModel, digits: PreTrainedModel) -> None:
    assert compressor.statistics is not None
    plans = [
        new(RECIPE.with_budget(keep_ratio=ratio)).plan(digits, compressor.statistics) for ratio in (0.7, 0.4, 0.25)
    ]
    losses = [plan.predicted_loss for plan in plans]
    assert losses == sorted(losses)  # type: ignore[type-var]
    assert losses[2] > 5 * losses[0] > 0  # type: ignore[operator]


def test_another_budget_from_saved_statistics_needs_no_images(
    compressor: ViTCompressor, small: PreTrainedModel, digits: PreTrainedModel, tmp_path: Path
) -> None:
    other = RECIPE.with_budget(keep_ratio=0.3)
    assert compressor.statistics is not None
    compressor.statistics.save(tmp_path / "statistics.safetensors")
    again = new(other).compress(digits, statistics=Statistics.load(tmp_path / "statistics.safetensors"))
    direct = new(other).compress(digits, CALIBRATION)
    assert identical(again, direct)
    assert again.num_parameters() < small.num_parameters()


def test_everything_needed_lies_in_the_saved_folder(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {
        ".vitcompress-files.json",
        "README.md",
        "config.json",
        "model.safetensors",
        *TRAVELLING_FILES,
        "preprocessor_config.json",
        "compression_recipe.yaml",
        "compression_plan.json",
        "compression_report.json",
        "compression_report.md",
        "compression_report.png",
    }


def test_nothing_in_the_saved_folder_names_where_it_was_made(folder: Path) -> None:
    places = {str(folder.parent), str(DIGITS), str(DIGITS.parent)}
    for path in folder.iterdir():
        content = path.read_bytes()
        assert not [place for place in places if place.encode() in content], path.name


def test_the_reloaded_model_is_the_same_model(small: PreTrainedModel, folder: Path) -> None:
    reloaded = AutoModelForImageClassification.from_pretrained(folder)
    assert type(reloaded) is type(small)
    assert identical(reloaded, small)


def test_a_pipeline_runs_on_the_saved_folder(folder: Path, test_images: ImageSource) -> None:
    classify = pipeline("image-classification", model=str(folder))
    answers = [classify(test_images.decoded(i))[0]["label"] for i in range(10)]
    assert sum(answer == str(label) for answer, label in zip(answers, test_images.labels[:10], strict=True)) >= 9  # type: ignore[index]


def test_the_saved_recipe_makes_the_same_model_again(small: PreTrainedModel, folder: Path) -> None:
    config = CompressionConfig.load(folder / "compression_recipe.yaml")
    assert config == RECIPE
    again = ViTCompressor(config, progress=False)
    model = again.compress(DIGITS / "model", CALIBRATION)
    rounded = copy.deepcopy(small)
    round_weights(rounded, torch.float16)  # in which the file of the model is
    assert identical(model, rounded)
    assert model.companions[0].plan == CompressionPlan.load(folder / "compression_plan.json")


def test_the_saved_report_agrees_with_the_model(small: PreTrainedModel, folder: Path, digits: PreTrainedModel) -> None:
    report = json.loads((folder / "compression_report.json").read_text(encoding="utf-8"))
    assert report["compressed"]["parameters"] == small.num_parameters()
    assert report["dense"]["parameters"] == digits.num_parameters()
    layers = {name: shape for group in report["parts"] for name, shape in group["shapes"].items()}
    assert layers == json.loads((folder / "compression_plan.json").read_text())["layers"] == layout_of(small)
    assert len({name for group in report["parts"] for name in group["layers"]}) == len(find_layers(digits))
    assert (report["calibration_images"], report["measuring_images"]) == (223, 74)
    low, high = report["predicted_interval"]
    assert 0 < low < report["predicted_loss"] < high
    assert sum(group["predicted_loss"] for group in report["parts"]) == pytest.approx(report["predicted_loss"])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_runs(metric: str, method: str, vit: PreTrainedModel, pixels: Tensor) -> None:
    compressor = small_recipe(metric=metric, **METHODS[method])
    model = compressor.compress(vit, pixels)
    assert model.num_parameters() / vit.num_parameters() == pytest.approx(0.6, rel=0.005)
    assert compressor.statistics is not None
    assert compressor.statistics.settings["metric"] == metric
    assert torch.isfinite(output(model, pixels)).all()
    assert layout_of(model)


@pytest.mark.parametrize("preset", [name for name, values in PRESETS.items() if values.get("criterion") != "gates"])
def test_every_preset_runs(preset: str, vit: PreTrainedModel, pixels: Tensor) -> None:
    config = CompressionConfig.preset(preset, keep_ratio=0.6, rank_multiple=1, precision="float32")
    compressor = ViTCompressor(config, progress=False)
    model = compressor.compress(vit, pixels)
    assert model.num_parameters() / vit.num_parameters() == pytest.approx(0.6, rel=0.005)
    shares = {group.parameters / group.dense_parameters for group in compressor.report.parts}  # type: ignore[union-attr]
    even = max(shares) - min(shares) < 0.1
    assert even == (config.allocation == "uniform")


def test_compensation_without_images_is_refused_before_any_work(vit: PreTrainedModel, pixels: Tensor) -> None:
    config = CompressionConfig.preset("azizi2024", rank_multiple=1, precision="float32")
    compressor = ViTCompressor(config, progress=False)
    statistics = compressor.calibrate(vit, pixels)
    with pytest.raises(DataError, match=r"compensation='residual'.*images"):
        compressor.compress(vit, statistics=statistics)
