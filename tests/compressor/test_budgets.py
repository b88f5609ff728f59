"""Budgets and the layers they are spent on; plans, statistics and images that are given."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, ViTForImageClassification, ViTModel

from hf_vitcompress import CompressionConfig, CompressionPlan, FactoredLinear, Statistics, ViTCompressor, evaluate_model
from hf_vitcompress.config import BUDGETS, load_settings
from hf_vitcompress.errors import BudgetError, CalibrationError, ConfigError, DataError, DataWarning
from hf_vitcompress.evaluation.costs import count_costs
from hf_vitcompress.images.sources import open_images
from hf_vitcompress.model.shapes import layout_of
from hf_vitcompress.planning.plan import SearchReport
from support.digits import CALIBRATION, identical, new, small_recipe
from support.models import DIGITS, seeded, tiny_config
from support.students import LOW_RANK, METHODS, low_rank_plan


def factored_names(model: PreTrainedModel) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, FactoredLinear)}


def test_max_macs_is_met_and_spent(vit: PreTrainedModel, pixels: Tensor) -> None:
    limit = int(0.7 * count_costs(vit).macs)
    model = small_recipe(keep_ratio=None, max_macs=limit).compress(vit, pixels)
    assert 0.97 * limit <= count_costs(model).macs <= limit


def test_max_params_is_met_and_spent(vit: PreTrainedModel, pixels: Tensor) -> None:
    limit = int(0.55 * vit.num_parameters())
    model = small_recipe(keep_ratio=None, max_params=limit).compress(vit, pixels)
    assert 0.98 * limit <= model.num_parameters() <= limit


def test_a_budget_out_of_reach_says_what_is_in_reach(vit: PreTrainedModel, pixels: Tensor) -> None:
    with pytest.raises(BudgetError, match=r"smallest model.*let more layers be compressed"):
        small_recipe(keep_ratio=0.05).compress(vit, pixels)


def test_everything_kept_is_the_dense_model(vit: PreTrainedModel, pixels: Tensor) -> None:
    model = small_recipe(keep_ratio=1.0).compress(vit, pixels)
    assert not layout_of(model)
    assert identical(model, vit)


DROP = CompressionConfig(max_accuracy_drop=0.01, rank_multiple=2, precision="float32")


def test_an_accuracy_drop_holds_on_labelled_validation_images(digits: PreTrainedModel, digit_processor: Any) -> None:
    validation = open_images(CALIBRATION, label2id=digits.config.label2id).select(range(150))
    compressor = new(DROP)
    model = compressor.compress(digits, DIGITS / "test.parquet", validation=validation)
    result = evaluate_model(model, validation, digit_processor, against=digits, progress=False)
    assert result.top1_drop is not None
    assert result.top1_drop.value <= 0.01
    assert compressor.report is not None
    found = SearchReport(pytest.approx(result.top1_drop.value), 150, labelled=True, split=validation.split)
    assert compressor.report.search == found
    assert model.num_parameters() < 0.6 * digits.num_parameters()


def test_an_accuracy_drop_holds_as_disagreement_on_unlabelled_images(
    digits: PreTrainedModel, digit_processor: Any
) -> None:
    source = open_images(CALIBRATION)
    pictures = [source.decoded(i) for i in range(200)]
    compressor = new(DROP)
    model = compressor.compress(digits, pictures[150:], validation=pictures[:150])
    result = evaluate_model(model, open_images(pictures[:150]), digit_processor, against=digits, progress=False)
    assert result.agreement is not None
    assert result.agreement.value >= 0.99
    assert compressor.report is not None
    found = SearchReport(pytest.approx(1 - result.agreement.value), 150, labelled=False)
    assert compressor.report.search == found
    assert model.num_parameters() < 0.6 * digits.num_parameters()


def test_without_validation_images_some_are_held_out(digits: PreTrainedModel) -> None:
    compressor = new(DROP, validation_images=97, measuring_images=0)
    model = compressor.compress(digits, CALIBRATION)
    assert compressor.report is not None
    assert compressor.report.calibration_images == 200
    assert model.num_parameters() < digits.num_parameters()


def test_an_accuracy_drop_without_images_to_measure_it_on_is_refused(
    compressor: ViTCompressor, small: PreTrainedModel, digits: PreTrainedModel
) -> None:
    with pytest.raises(BudgetError, match="validation"):
        new(DROP).compress(digits, statistics=compressor.statistics)


@pytest.mark.parametrize("model_class", [ViTModel, ViTForImageClassification])
def test_an_accuracy_drop_of_a_model_without_classes_is_refused_before_any_work(
    model_class: type[PreTrainedModel], pixels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("hf_vitcompress.compressor.calibrate")
    model = seeded(model_class, tiny_config(num_labels=1))  # one label is a number to predict
    with pytest.raises(BudgetError, match=f"{model_class.__name__} has no classes"):
        small_recipe(keep_ratio=None, max_accuracy_drop=0.1).compress(model, pixels)


def test_a_given_plan_needs_no_classes(pixels: Tensor) -> None:
    model, calibrated = seeded(ViTModel, tiny_config()), small_recipe()
    statistics = calibrated.calibrate(model, pixels)
    plan = calibrated.plan(model, statistics)
    compressor = small_recipe(keep_ratio=None, max_accuracy_drop=0.1)
    asked = replace(plan, budget=compressor.config.budgets)
    small = compressor.compress(model, statistics=statistics, plan=asked)
    assert small.num_parameters() < model.num_parameters()


@pytest.mark.parametrize("budget", [{"speedup": 50.0}, {"keep_ratio": 0.4}, {"max_accuracy_drop": 0.1}])
def test_a_budget_beside_a_plan_is_refused_before_any_work(
    budget: dict[str, float], vit: PreTrainedModel, pixels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("hf_vitcompress.compressor.calibrate")
    plan = low_rank_plan({"vit.layers.0.mlp.fc1": 3})
    plan.budget = {"max_params": 9}
    message = f"A plan takes the place of a budget: leave out {next(iter(budget))}="
    with pytest.raises(ConfigError, match=message):
        small_recipe(**{"keep_ratio": None, **budget}).compress(vit, pixels, validation=pixels, plan=plan)


def test_the_result_of_a_given_plan_names_no_budget(
    vit: PreTrainedModel, statistics: Statistics, tmp_path: Path
) -> None:
    plan = low_rank_plan({"vit.layers.0.mlp.fc1": 3})
    compressor = small_recipe(keep_ratio=None, seed=4, **LOW_RANK)
    small = compressor.compress(vit, statistics=statistics, plan=plan)
    small.save_pretrained(tmp_path)
    assert compressor.report is not None
    for settings in (compressor.report.settings, load_settings(tmp_path / "compression_recipe.yaml")):
        assert settings["seed"] == 4
        assert not set(BUDGETS) & set(settings)
    assert CompressionPlan.load(tmp_path / "compression_plan.json").budget == {}
    assert "keep_ratio" not in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_the_result_of_a_budget_names_it(vit: PreTrainedModel, statistics: Statistics, tmp_path: Path) -> None:
    compressor = small_recipe(keep_ratio=0.7)
    compressor.compress(vit, statistics=statistics).save_pretrained(tmp_path)
    assert CompressionConfig.load(tmp_path / "compression_recipe.yaml") == compressor.config
    assert compressor.report is not None
    assert compressor.report.settings == compressor.config.to_dict()


@pytest.mark.parametrize("method", ["default", "low rank"])
def test_skipped_layers_stay_dense(method: str, vit: PreTrainedModel, pixels: Tensor) -> None:
    model = small_recipe(keep_ratio=0.8, skip_modules=["layers.0.*", "fc2"], **METHODS[method]).compress(vit, pixels)
    names = set(layout_of(model))
    assert names
    assert not [name for name in names if ".0." in name or "fc2" in name]
    assert torch.equal(model.vit.layers[1].mlp.fc2.weight, vit.vit.layers[1].mlp.fc2.weight)


@pytest.mark.parametrize("method", ["default", "low rank"])
def test_only_target_layers_are_compressed(method: str, vit: PreTrainedModel, pixels: Tensor) -> None:
    model = small_recipe(keep_ratio=0.8, target_modules=["fc1", "fc2"], **METHODS[method]).compress(vit, pixels)
    assert {name.rsplit(".", 1)[1] for name in layout_of(model)} == {"fc1", "fc2"}


@pytest.fixture
def statistics(vit: PreTrainedModel, pixels: Tensor) -> Statistics:
    return small_recipe(measuring_images=0).calibrate(vit, pixels)


def test_a_plan_decides_the_ranks(vit: PreTrainedModel, statistics: Statistics) -> None:
    names = ["vit.layers.0.mlp.fc1", "vit.layers.1.attention.o_proj"]
    compressor = small_recipe(keep_ratio=None, **LOW_RANK)
    plan = low_rank_plan({names[0]: 3, names[1]: 7})
    model = compressor.compress(vit, statistics=statistics, plan=plan)
    assert {name: model.get_submodule(name).rank for name in factored_names(model)} == {names[0]: 3, names[1]: 7}
    assert compressor.report is not None
    assert compressor.report.keep_ratio == model.num_parameters() / vit.num_parameters()


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"vit.layers.9.mlp.fc1": {"rank": 4}}, r"layers\.9"),
        ({"vit.layers.0.mlp.fc1": {"rank": 33}}, r"fc1.*33"),
        ({"vit.layers.0.mlp.fc1": {"rank": 0}}, r"fc1.*0"),
        ({"vit.layers.0.mlp.fc1": {"rank": 2.5}}, r"fc1.*2\.5"),
        ({"vit.layers.0.mlp.fc1": 4}, r"fc1.*4"),
        (["vit.layers.0.mlp.fc1"], "layers"),
        (None, "layers"),
    ],
)
def test_a_plan_the_model_cannot_have_is_refused(
    layers: Any, message: str, vit: PreTrainedModel, statistics: Statistics
) -> None:
    with pytest.raises(ConfigError, match=message):
        small_recipe().compress(vit, statistics=statistics, plan=CompressionPlan(layers))


def test_statistics_of_another_model_are_refused(statistics: Statistics) -> None:
    other = seeded(ViTForImageClassification, tiny_config(), seed=1)
    with pytest.raises(CalibrationError, match="another model"):
        small_recipe().compress(other, statistics=statistics)


def test_statistics_for_another_metric_are_refused(vit: PreTrainedModel, statistics: Statistics) -> None:
    with pytest.raises(CalibrationError, match=r"'fisher'.*'weight'"):
        small_recipe(metric="weight").compress(vit, statistics=statistics)


@pytest.mark.parametrize("skipped", ["fc1", "fc2", "q_proj", "layers.0.*"])
def test_statistics_of_fewer_layers_are_refused(skipped: str, vit: PreTrainedModel, pixels: Tensor) -> None:
    fewer = small_recipe(skip_modules=[skipped], measuring_images=0).calibrate(vit, pixels)
    with pytest.raises(CalibrationError, match=skipped.rstrip("*").replace(".", r"\.")):
        small_recipe(**LOW_RANK).compress(vit, statistics=fewer)
    # Neurons that may be pruned are missed before the layers are.
    with pytest.raises(CalibrationError, match="fc2" if skipped == "fc1" else skipped.rstrip("*").replace(".", r"\.")):
        small_recipe().compress(vit, statistics=fewer)


def test_neither_images_nor_statistics_is_refused(vit: PreTrainedModel) -> None:
    with pytest.raises(DataError, match="images"):
        small_recipe().compress(vit)


def test_a_checkpoint_of_other_settings_is_refused_by_name(
    vit: PreTrainedModel, pixels: Tensor, tmp_path: Path
) -> None:
    file = tmp_path / "calibration.safetensors"
    small_recipe(metric="activation").calibrate(vit, pixels, checkpoint=file)
    with pytest.raises(CalibrationError, match=r"calibration\.safetensors"):
        small_recipe(metric="weight").calibrate(vit, pixels, checkpoint=file)


def test_unreadable_images_are_in_the_report(vit: PreTrainedModel, pictures: list[Any], processor: Any) -> None:
    settings = {"keep_ratio": 0.6, "rank_multiple": 1, "measuring_images": 0, "batch_size": 8, "precision": "float32"}
    config = CompressionConfig(**settings)
    compressor = ViTCompressor(config, image_processor=processor, progress=False)
    with pytest.warns(DataWarning, match="2 of 50 images of the list of images cannot be read"):
        compressor.compress(vit, [*pictures, b"broken", b"broken too"])
    assert compressor.report is not None
    assert (compressor.report.calibration_images, compressor.report.bad_images) == (48, 2)


def test_num_images_bounds_the_calibration(vit: PreTrainedModel, pixels: Tensor) -> None:
    compressor = small_recipe(num_images=40, measuring_images=8)
    compressor.compress(vit, pixels)
    assert compressor.report is not None
    assert (compressor.report.calibration_images, compressor.report.measuring_images) == (32, 8)
