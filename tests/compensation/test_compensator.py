"""Compensation as users meet it: one setting of the recipe, its report, its checkpoints and its complaints."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageClassification, PreTrainedModel

from hf_vitcompress import CompressionConfig, ViTCompressor
from hf_vitcompress.architectures.outputs import divergence, outputs_of
from hf_vitcompress.architectures.subject import Subject
from hf_vitcompress.compensation.course import CompensationPoint, CompensationReport
from hf_vitcompress.errors import ConfigError, DataWarning
from hf_vitcompress.images.images import ImageSource
from hf_vitcompress.layers_factored import FactoredLinear
from hf_vitcompress.runtime.text import loss_text
from support.compensated import IMAGES, JUDGES, RECIPE, STAGES, done, every_method, new
from support.students import LOW_RANK, METHODS, changed, logits, low_rank_plan, state_of


def test_without_compensation_nothing_is_compensated(dense: PreTrainedModel, images: Tensor, tmp_path: Path) -> None:
    compressor = new(compensation="none")
    compressor.compress(dense, images, checkpoint=tmp_path / "file")
    assert compressor.report is not None
    assert compressor.report.compensation is None
    assert compressor.checkpoints == []
    assert "compensate" not in compressor.report.seconds


@pytest.mark.parametrize("form", METHODS)
@every_method
def test_each_method_takes_its_stages_and_wins_something_back(
    method: str, form: str, dense: PreTrainedModel, images: Tensor
) -> None:
    plain = new(compensation="none", **METHODS[form]).compress(dense, images)
    compressor = new(compensation=method, **METHODS[form])
    small = compressor.compress(dense, images)
    report = done(compressor)
    assert type(small) is type(plain)
    assert small.num_parameters() == plain.num_parameters()
    assert changed(state_of(plain), small)
    stages = [point.stage for point in report.points]
    assert list(dict.fromkeys(stages)) == STAGES[method]
    assert sorted(stages, reverse=True) == stages
    assert report.method == method
    assert (report.images, report.held_out_images) == (IMAGES - JUDGES, JUDGES)
    assert report.loss_after < report.loss_before
    seconds = [point.seconds for point in report.points]
    assert seconds == sorted(seconds)
    assert 0 < seconds[-1] <= report.seconds <= compressor.seconds["compensate"]


@every_method
def test_the_reported_losses_are_those_of_the_models_on_the_held_out_images(
    method: str, dense: PreTrainedModel, images: Tensor
) -> None:
    plain, compressor = new(compensation="none").compress(dense, images), new(compensation=method)
    small = compressor.compress(dense, images)
    order = ImageSource(list(range(IMAGES)), None, "numbers").sample(None, 0).images
    held_out = images[list(order)[-JUDGES:]]
    with torch.no_grad():
        taught = outputs_of(Subject.alone(dense), held_out)
        before, after = (
            float(divergence(taught, outputs_of(Subject.alone(model), held_out)).mean()) for model in (plain, small)
        )
    assert done(compressor).loss_before == pytest.approx(before, rel=1e-4)
    assert done(compressor).loss_after == pytest.approx(after, rel=1e-4)


def test_both_start_the_second_stage_where_the_first_ended(dense: PreTrainedModel, images: Tensor) -> None:
    compressor = new()
    compressor.compress(dense, images)
    points = done(compressor).points
    first = [point for point in points if point.stage == "residual"]
    second = [point for point in points if point.stage == "distill"]
    assert second[0].loss == pytest.approx(min(point.loss for point in first), rel=1e-6)
    assert second[0].images == 0


@every_method
def test_two_runs_are_alike_to_the_bit(method: str, dense: PreTrainedModel, images: Tensor) -> None:
    first, second = (new(compensation=method).compress(dense, images) for _ in range(2))
    assert not changed(state_of(first), second)


def test_the_dense_model_stays_as_it_was(dense: PreTrainedModel, images: Tensor) -> None:
    dense.train()
    before, attention = state_of(dense), dense.config._attn_implementation
    new().compress(dense, images)
    assert not changed(before, dense)
    assert dense.training
    assert dense.config._attn_implementation == attention
    assert all(parameter.requires_grad and parameter.grad is None for parameter in dense.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in dense.modules())


@pytest.mark.parametrize(
    ("method", "dtype"),
    [("residual", torch.bfloat16), ("distill", torch.bfloat16), ("both", torch.bfloat16), ("both", torch.float16)],
)
def test_a_model_in_half_precision_stays_in_half_precision(
    method: str, dtype: torch.dtype, dense: PreTrainedModel, images: Tensor
) -> None:
    dense.to(dtype)
    plain, compressor = new(compensation="none").compress(dense, images), new(compensation=method)
    small = compressor.compress(dense, images)
    assert {parameter.dtype for parameter in small.parameters()} == {dtype}
    assert torch.isfinite(logits(small, images.to(dtype))).all()
    assert changed(state_of(plain), small)
    assert done(compressor).loss_after < done(compressor).loss_before


def test_only_factored_layers_change_in_the_residual_stage(dense: PreTrainedModel, images: Tensor) -> None:
    ranks = {"vit.layers.0.mlp.fc2": 3, "vit.layers.1.attention.q_proj": 5}
    plan, given = low_rank_plan(ranks), {**LOW_RANK, "keep_ratio": None}
    small = new(compensation="residual", **given).compress(dense, images, plan=plan)
    assert {name: m.rank for name, m in small.named_modules() if isinstance(m, FactoredLinear)} == ranks
    before = state_of(new(compensation="none", **given).compress(dense, images, plan=plan))
    assert {name.rsplit(".", 2)[0] for name in changed(before, small)} <= set(ranks)


def test_a_built_model_can_be_compensated_later(dense: PreTrainedModel, images: Tensor) -> None:
    at_once = new().compress(dense, images)
    compressor = new()
    statistics = compressor.calibrate(dense, images)
    plan = compressor.plan(dense, statistics)
    small = compressor.build(dense, statistics, plan)
    assert compressor.report is not None
    assert compressor.report.compensation is None
    compressor.compensate(small, dense, statistics, plan, images)
    assert not changed(state_of(at_once), small)
    assert done(compressor).loss_after < done(compressor).loss_before
    assert compressor.report.seconds["compensate"] > 0


def test_the_preset_of_the_paper_solves_a_quarter_of_each_rank_again(dense: PreTrainedModel, images: Tensor) -> None:
    values = {name: RECIPE[name] for name in ("keep_ratio", "rank_multiple", "precision", "measuring_images")}
    config = CompressionConfig.preset("azizi2024", **values)
    assert (config.compensation, config.residual_share) == ("residual", 0.25)
    compressor = ViTCompressor(config, progress=False)
    compressor.compress(dense, images)
    assert done(compressor).method == "residual"
    assert {point.stage for point in done(compressor).points} == {"residual"}


def test_labels_are_used_where_they_have_weight(dense: PreTrainedModel, images: Tensor) -> None:
    with torch.no_grad():
        answers = dense(images).logits.argmax(-1)
    batches = [{"pixel_values": images, "labels": answers}]
    with_labels, without = (
        new(compensation="distill", label_weight=weight).compress(dense, batches) for weight in (1.0, 0.0)
    )
    assert changed(state_of(with_labels), without)
    batches = [{"pixel_values": images, "labels": (answers + 1) % 5}]
    with pytest.warns(DataWarning, match="no better than guessing.*the model learns from the dense one alone"):
        distrusted = new(compensation="distill", label_weight=1.0).compress(dense, batches)
    assert not changed(state_of(distrusted), without)
    unlabelled = new(compensation="distill", label_weight=1.0).compress(dense, images)
    assert not changed(state_of(unlabelled), without)


def test_the_report_is_saved_with_the_model(dense: PreTrainedModel, images: Tensor, tmp_path: Path) -> None:
    compressor = new()
    small = compressor.compress(dense, images)
    small.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "compression_report.json").read_text(encoding="utf-8"))
    report = done(compressor)
    points = [CompensationPoint(**point) for point in saved["compensation"].pop("points")]
    assert CompensationReport(**saved["compensation"], points=points) == report
    assert saved["seconds"]["compensate"] > 0
    before, after = loss_text(report.loss_before), loss_text(report.loss_after)
    row = f"| KL held out, n={JUDGES} | 0 | {after} | {before} before compensation |"
    assert row in (tmp_path / "compression_report.md").read_text(encoding="utf-8")
    assert f"{before} before compensation" in str(compressor.report)
    assert CompressionConfig.load(tmp_path / "compression_recipe.yaml") == compressor.config
    reloaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert torch.equal(logits(reloaded, images), logits(small, images))


def test_losses_before_and_after_are_the_first_and_the_best() -> None:
    points = [CompensationPoint("residual", 0.0, 0, loss) for loss in (3.0, 1.0, 2.0)]
    report = CompensationReport("residual", 1, 1, points, 0.0)
    assert (report.loss_before, report.loss_after) == (3.0, 1.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("compensation", "all"),
        ("compensation", None),
        ("compensation", True),
        ("residual_share", 0),
        ("residual_share", 1.5),
        ("residual_share", None),
        ("compensation_duration", "0 minutes"),
        ("compensation_duration", "-1 minutes"),
        ("compensation_duration", "inf minutes"),
        ("compensation_duration", "long"),
        ("compensation_duration", 5),
        ("compensation_duration", True),
        ("compensation_images", 0),
        ("compensation_images", 2.5),
        ("held_out_images", 0),
        ("held_out_images", None),
        ("learning_rate", 0),
        ("learning_rate", -1e-3),
        ("distill_batch_size", 0),
        ("distill_batch_size", None),
        ("temperature", 0),
        ("temperature", float("inf")),
        ("feature_weight", -1),
        ("feature_weight", None),
        ("label_weight", -0.1),
        ("label_weight", float("nan")),
        ("augmentation", "yes"),
        ("augmentation", None),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        CompressionConfig(**{name: value})


@pytest.mark.parametrize(
    ("method", "solves", "distills"),
    [("none", False, False), ("residual", True, False), ("distill", False, True), ("both", True, True)],
)
def test_a_method_says_which_stages_it_has(method: Any, solves: bool, distills: bool) -> None:
    config = CompressionConfig(compensation=method)
    assert (config.solves_residuals, config.distills) == (solves, distills)


def test_the_settings_survive_a_file(tmp_path: Path) -> None:
    config = CompressionConfig(**{**RECIPE, "compensation_images": 7, "label_weight": 0.5})
    config.save(tmp_path / "recipe.yaml")
    assert CompressionConfig.load(tmp_path / "recipe.yaml") == config
