"""The public API from a dense model to a saved, reloaded and judged one."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    BertConfig,
    BertModel,
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTForMaskedImageModeling,
    DeiTModel,
    PreTrainedModel,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTImageProcessorPil,
    ViTModel,
    pipeline,
)

from hf_vitcompress import CompressionConfig, CompressionPlan, FactoredLinear, Statistics, ViTCompressor, evaluate_model
from hf_vitcompress.architectures.layers import find_layers
from hf_vitcompress.config import PRESETS
from hf_vitcompress.errors import BudgetError, CalibrationError, ConfigError, DataError, UnsupportedModelError
from hf_vitcompress.evaluation.costs import count_costs
from hf_vitcompress.images.images import ImageSource
from hf_vitcompress.images.sources import open_images
from hf_vitcompress.model.shapes import layout_of
from hf_vitcompress.runtime.weights import disk_bytes
from support.models import DIGITS, TINY, seeded, tiny_config
from support.students import LOW_RANK, METHODS, low_rank_plan

RECIPE = CompressionConfig(keep_ratio=0.4, rank_multiple=2, precision="float32")
CALIBRATION = DIGITS / "calibration.parquet"
METRICS = ("weight", "activation", "row_fisher", "fisher")


def new(config: CompressionConfig = RECIPE, **changes: Any) -> ViTCompressor:
    return ViTCompressor(CompressionConfig.from_dict({**config.to_dict(), **changes}), progress=False)


def small_recipe(**changes: Any) -> ViTCompressor:
    """For the tiny random models, whose layers are 32 wide."""
    values = {"keep_ratio": 0.6, "rank_multiple": 1, "precision": "float32", **changes}
    return ViTCompressor(CompressionConfig(**values), progress=False)


def weights(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def identical(a: PreTrainedModel | dict[str, Tensor], b: PreTrainedModel | dict[str, Tensor]) -> bool:
    first, second = (m if isinstance(m, dict) else m.state_dict() for m in (a, b))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def factored_names(model: PreTrainedModel) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, FactoredLinear)}


@pytest.fixture(scope="module")
def digits() -> PreTrainedModel:
    return AutoModelForImageClassification.from_pretrained(DIGITS / "model").eval()


@pytest.fixture(scope="module")
def digit_processor() -> Any:
    return AutoImageProcessor.from_pretrained(DIGITS / "model")


@pytest.fixture(scope="module")
def compressor() -> ViTCompressor:
    return new()


@pytest.fixture(scope="module")
def small(compressor: ViTCompressor, digits: PreTrainedModel) -> PreTrainedModel:
    return compressor.compress(digits, CALIBRATION)


@pytest.fixture(scope="module")
def folder(small: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "digits-40"
    small.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def test_images(digits: PreTrainedModel) -> ImageSource:
    return open_images(DIGITS / "test.parquet", label2id=digits.config.label2id)


# ---- the whole way, on a trained model


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
        "README.md",
        "config.json",
        "model.safetensors",
        "modeling_factored.py",
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
    assert identical(model, small)
    assert model.companions[0].plan == CompressionPlan.load(folder / "compression_plan.json")


def test_the_saved_report_agrees_with_the_model(small: PreTrainedModel, folder: Path, digits: PreTrainedModel) -> None:
    report = json.loads((folder / "compression_report.json").read_text(encoding="utf-8"))
    assert report["compressed"]["parameters"] == small.num_parameters()
    assert report["dense"]["parameters"] == digits.num_parameters()
    layers = {name: shape for part in report["parts"] for name, shape in part["shapes"].items()}
    assert layers == json.loads((folder / "compression_plan.json").read_text())["layers"] == layout_of(small)
    assert len({name for part in report["parts"] for name in part["layers"]}) == len(find_layers(digits))
    assert report["calibration_images"] == 297
    assert sum(part["predicted_loss"] for part in report["parts"]) == pytest.approx(report["predicted_loss"])


# ---- where models come from


def _as_hub_id(monkeypatch: pytest.MonkeyPatch, cache: Path) -> str:
    """The digits model as the cache of the Hub client holds a downloaded one."""
    repository = cache / "models--someone--digits"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / ("0" * 40)).symlink_to(DIGITS / "model", target_is_directory=True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    return "someone/digits"


@pytest.mark.parametrize("kind", ["folder as text", "folder as path", "Hub id"])
def test_a_model_can_be_given_by_name(
    kind: str, digits: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name = {"folder as text": str(DIGITS / "model"), "folder as path": DIGITS / "model"}.get(kind)
    compressor = new(metric="weight", measuring_images=0, num_images=32)
    model = compressor.compress(name or _as_hub_id(monkeypatch, tmp_path), CALIBRATION)
    assert compressor.image_processor is not None
    assert identical(model, new(metric="weight", measuring_images=0, num_images=32).compress(digits, CALIBRATION))


def test_a_model_that_does_not_exist_is_named() -> None:
    with pytest.raises(UnsupportedModelError, match="nobody/nothing"):
        new().compress("nobody/nothing", CALIBRATION)


def test_another_architecture_is_refused_with_the_supported_ones() -> None:
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    with pytest.raises(UnsupportedModelError, match=r"BertModel.*beit, clip"):
        new().compress(BertModel(config), CALIBRATION)


def test_a_compressed_model_is_not_compressed_again(small: PreTrainedModel) -> None:
    with pytest.raises(UnsupportedModelError, match="compressed already"):
        new().compress(small, CALIBRATION)


def test_each_model_gets_the_image_processor_beside_it(pictures: list[Image.Image], tmp_path: Path) -> None:
    """One compressor, two models of different image size."""
    for size in (16, 24):
        seeded(ViTForImageClassification, tiny_config(image_size=size)).save_pretrained(tmp_path / str(size))
        ViTImageProcessorPil(size={"height": size, "width": size}).save_pretrained(tmp_path / str(size))
    compressor = small_recipe()
    compressor.compress(tmp_path / "16", pictures)
    compressor.compress(tmp_path / "24", pictures)
    assert compressor.image_processor.size["height"] == 24


def test_a_given_image_processor_goes_before_the_one_beside_the_model(digits: PreTrainedModel) -> None:
    given = ViTImageProcessorPil(size={"height": 16, "width": 16}, image_mean=[0.0] * 3, image_std=[1.0] * 3)
    compressor = ViTCompressor(RECIPE, image_processor=given, progress=False)
    compressor.load(DIGITS / "model")
    assert compressor.image_processor is given


# ---- heads and families

DEIT = DeiTConfig(**TINY, encoder_stride=4)
HEADS: list[tuple[type[PreTrainedModel], Any, Any]] = [
    (ViTModel, tiny_config(), AutoModel),
    (ViTForMaskedImageModeling, tiny_config(encoder_stride=4), AutoModelForMaskedImageModeling),
    (DeiTForImageClassification, DEIT, AutoModelForImageClassification),
    (DeiTForImageClassificationWithTeacher, DEIT, AutoModelForImageClassification),
    (DeiTModel, DEIT, AutoModel),
    (DeiTForMaskedImageModeling, DEIT, AutoModelForMaskedImageModeling),
]


def output(model: PreTrainedModel, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        result = model.eval()(pixel_values=pixels)
    return next(result[key] for key in ("logits", "reconstruction", "last_hidden_state") if key in result)


@pytest.mark.parametrize(("model_class", "config", "auto"), HEADS, ids=[head[0].__name__ for head in HEADS])
def test_every_head_compresses_saves_and_reloads(
    model_class: type[PreTrainedModel], config: Any, auto: Any, pixels: Tensor, tmp_path: Path
) -> None:
    dense = seeded(model_class, config)
    compressor = small_recipe()
    model = compressor.compress(dense, pixels)
    assert type(model).__name__ == f"Factored{model_class.__name__}"
    assert model.num_parameters() / dense.num_parameters() == pytest.approx(0.6, rel=0.005)
    assert compressor.report is not None
    assert compressor.report.compressed == count_costs(model)
    expected, got = output(dense, pixels), output(model, pixels)
    # Closer to the dense model than the mean of its answers, and not the dense model.
    assert 0 < (got - expected).norm() < (expected - expected.mean(0)).norm()
    model.save_pretrained(tmp_path)
    reloaded = auto.from_pretrained(tmp_path)
    assert type(reloaded) is type(model)
    assert torch.equal(output(reloaded, pixels), got)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_result_has_the_dtype_of_the_model(dtype: torch.dtype, vit: PreTrainedModel, pixels: Tensor) -> None:
    model = small_recipe(metric="activation").compress(vit.to(dtype), pixels)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert torch.isfinite(output(model, pixels.to(dtype))).all()


def test_the_dense_model_is_left_as_it_was(vit: PreTrainedModel, pixels: Tensor) -> None:
    vit.train()
    vit.classifier.requires_grad_(False)
    before, attention = weights(vit), vit.config._attn_implementation
    small_recipe().compress(vit, pixels)
    assert identical(vit, before)
    assert vit.training
    assert [name for name, p in vit.named_parameters() if not p.requires_grad] == [
        "classifier.weight",
        "classifier.bias",
    ]
    assert all(parameter.grad is None for parameter in vit.parameters())
    assert vit.config._attn_implementation == attention
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in vit.modules())
    assert "compression" not in vit.config.to_dict()


def test_the_result_shares_no_memory_with_the_dense_model(vit: PreTrainedModel, pixels: Tensor) -> None:
    before = weights(vit)
    model = small_recipe().compress(vit, pixels)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert identical(vit, before)


# ---- budgets


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
    shares = {part.parameters / part.dense_parameters for part in compressor.report.parts}  # type: ignore[union-attr]
    even = max(shares) - min(shares) < 0.1
    assert even == (config.allocation == "uniform")


def test_compensation_without_images_is_refused_before_any_work(vit: PreTrainedModel, pixels: Tensor) -> None:
    config = CompressionConfig.preset("azizi2024", rank_multiple=1, precision="float32")
    compressor = ViTCompressor(config, progress=False)
    statistics = compressor.calibrate(vit, pixels)
    with pytest.raises(DataError, match=r"compensation='residual'.*images"):
        compressor.compress(vit, statistics=statistics)


def test_max_macs_is_met_and_spent(vit: PreTrainedModel, pixels: Tensor) -> None:
    limit = int(0.7 * count_costs(vit).macs)
    model = small_recipe(keep_ratio=None, max_macs=limit).compress(vit, pixels)
    assert 0.97 * limit <= count_costs(model).macs <= limit


def test_max_params_is_met_and_spent(vit: PreTrainedModel, pixels: Tensor) -> None:
    limit = int(0.55 * vit.num_parameters())
    model = small_recipe(keep_ratio=None, max_params=limit).compress(vit, pixels)
    assert 0.98 * limit <= model.num_parameters() <= limit


def test_a_budget_out_of_reach_says_what_is_in_reach(vit: PreTrainedModel, pixels: Tensor) -> None:
    with pytest.raises(BudgetError, match=r"smallest model.*rank_multiple"):
        small_recipe(keep_ratio=0.05).compress(vit, pixels)


def test_everything_kept_is_the_dense_model(vit: PreTrainedModel, pixels: Tensor) -> None:
    model = small_recipe(keep_ratio=1.0).compress(vit, pixels)
    assert not layout_of(model)
    assert identical(model, vit)


DROP = CompressionConfig(max_accuracy_drop=0.01, rank_multiple=2, precision="float32")


def test_an_accuracy_drop_holds_on_labelled_validation_images(digits: PreTrainedModel, digit_processor: Any) -> None:
    validation = open_images(CALIBRATION, label2id=digits.config.label2id).select(range(150))
    model = new(DROP).compress(digits, DIGITS / "test.parquet", validation=validation)
    result = evaluate_model(model, validation, digit_processor, against=digits, progress=False)
    assert result.top1_drop is not None
    assert result.top1_drop.value <= 0.01
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
    small = compressor.compress(model, statistics=statistics, plan=plan)
    assert small.num_parameters() < model.num_parameters()


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


# ---- plans and statistics that do not fit


@pytest.fixture
def statistics(vit: PreTrainedModel, pixels: Tensor) -> Statistics:
    return small_recipe(measuring_images=0).calibrate(vit, pixels)


def test_a_plan_decides_the_ranks(vit: PreTrainedModel, statistics: Statistics) -> None:
    names = ["vit.layers.0.mlp.fc1", "vit.layers.1.attention.o_proj"]
    compressor = small_recipe(**LOW_RANK)
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
    small_recipe(metric="weight").calibrate(vit, pixels, checkpoint=file)
    with pytest.raises(CalibrationError, match=r"calibration\.safetensors"):
        small_recipe(metric="activation").calibrate(vit, pixels, checkpoint=file)


def test_unreadable_images_are_in_the_report(vit: PreTrainedModel, pictures: list[Any], processor: Any) -> None:
    settings = {"keep_ratio": 0.6, "rank_multiple": 1, "measuring_images": 0, "batch_size": 8, "precision": "float32"}
    config = CompressionConfig(**settings)
    compressor = ViTCompressor(config, image_processor=processor, progress=False)
    compressor.compress(vit, [*pictures, b"broken", b"broken too"])
    assert compressor.report is not None
    assert (compressor.report.calibration_images, compressor.report.bad_images) == (48, 2)


def test_num_images_bounds_the_calibration(vit: PreTrainedModel, pixels: Tensor) -> None:
    compressor = small_recipe(num_images=40, measuring_images=8)
    compressor.compress(vit, pixels)
    assert compressor.report is not None
    assert compressor.report.calibration_images == 40


# ---- a real model


def test_a_real_model_keeps_most_answers_at_little_more_than_half(assets: Path, tmp_path: Path) -> None:
    compressor = new(CompressionConfig(keep_ratio=0.6, batch_size=16, measuring_images=0))
    dense = compressor.load(assets / "vit-s14-cifar10")
    images = open_images(assets / "cifar10" / "calibration.parquet", label2id=dense.config.label2id)
    model = compressor.compress(dense, images.select(range(64)))
    parameters = model.num_parameters()
    assert parameters / dense.num_parameters() == pytest.approx(0.6, rel=0.005)
    model.save_pretrained(tmp_path)
    assert disk_bytes(tmp_path) == pytest.approx(4 * parameters, rel=0.01)
    reloaded = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    others = images.select(range(64, 128))
    pixels = next(others.select(range(4)).batches(compressor.image_processor, 4)).pixel_values
    assert torch.equal(output(reloaded, pixels), output(model, pixels))
    result = evaluate_model(reloaded, others, compressor.image_processor, dense, precision="auto", progress=False)
    assert result.agreement is not None
    assert result.agreement.value >= 0.8
