"""Compensation as users meet it: one setting of the recipe, its report, its checkpoints and its complaints."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageClassification, PreTrainedModel

import hf_vitcompress.compensation.distillation
from hf_vitcompress import CompressionConfig, CompressionPlan, ViTCompressor
from hf_vitcompress.architectures.outputs import divergence, outputs_of
from hf_vitcompress.compensation.compensator import Compensator
from hf_vitcompress.compensation.course import CompensationPoint, CompensationReport
from hf_vitcompress.compensation.distillation import Distillation
from hf_vitcompress.compensation.residual import ResidualCompensation
from hf_vitcompress.compressor import TRIAL_SHARE
from hf_vitcompress.errors import BudgetError, CompensationError, ConfigError, DataError
from hf_vitcompress.images.images import ImageSource
from hf_vitcompress.layers_factored import FactoredLinear
from hf_vitcompress.model.shapes import layout_of
from support.students import (
    HELD_OUT,
    LOW_RANK,
    METHODS,
    changed,
    compressed,
    lively,
    logits,
    low_rank_plan,
    random_images,
    state_of,
)

RECIPE: dict[str, Any] = {
    "keep_ratio": 0.4,
    "rank_multiple": 1,
    "precision": "float32",
    "measuring_images": 0,
    "metric": "activation",
    "compensation": "both",
    "compensation_duration": "5 epochs",
    "distill_batch_size": 16,
    "learning_rate": 1e-3,
    "feature_weight": 1.0,
}
IMAGES = 96
JUDGES = 19  # a fifth of them
STAGES = {"residual": ["residual"], "distill": ["distill"], "both": ["residual", "distill"]}

every_method = pytest.mark.parametrize("method", STAGES)


def new(**changes: Any) -> ViTCompressor:
    values = {**RECIPE, **changes}
    return ViTCompressor(CompressionConfig(**values), progress=False)


def done(compressor: ViTCompressor) -> CompensationReport:
    assert compressor.report is not None
    assert compressor.report.compensation is not None
    return compressor.report.compensation


@pytest.fixture
def dense() -> PreTrainedModel:
    return lively()


@pytest.fixture
def images() -> Tensor:
    return random_images(IMAGES)


def compensator(**changes: Any) -> Compensator:
    case = compressed(**{**RECIPE, **changes})
    return Compensator(case.prepared, case.statistics, case.train, case.config, progress=False)


# ---- the setting


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
        taught = outputs_of(dense, held_out)
        before, after = (float(divergence(taught, outputs_of(model, held_out)).mean()) for model in (plain, small))
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
    plan = low_rank_plan(ranks)
    small = new(compensation="residual", **LOW_RANK).compress(dense, images, plan=plan)
    assert {name: m.rank for name, m in small.named_modules() if isinstance(m, FactoredLinear)} == ranks
    before = state_of(new(compensation="none", **LOW_RANK).compress(dense, images, plan=plan))
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
    batches = [{"pixel_values": images[i : i + 16], "labels": torch.arange(16) % 5} for i in range(0, IMAGES, 16)]
    with_labels, without = (
        new(compensation="distill", label_weight=weight).compress(dense, batches) for weight in (1.0, 0.0)
    )
    assert changed(state_of(with_labels), without)
    unlabelled = new(compensation="distill", label_weight=1.0).compress(dense, images)
    assert not changed(state_of(unlabelled), without)


# ---- the report


def test_the_report_is_saved_with_the_model(dense: PreTrainedModel, images: Tensor, tmp_path: Path) -> None:
    compressor = new()
    small = compressor.compress(dense, images)
    small.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "compression_report.json").read_text(encoding="utf-8"))
    report = done(compressor)
    points = [CompensationPoint(**point) for point in saved["compensation"].pop("points")]
    assert CompensationReport(**saved["compensation"], points=points) == report
    assert saved["seconds"]["compensate"] > 0
    before, after = f"{report.loss_before:.4f}", f"{report.loss_after:.4f}"
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


# ---- which images


@pytest.mark.parametrize(
    ("settings", "learn", "judge"),
    [
        ({}, 58, 14),
        ({"held_out_images": 5}, 67, 5),
        ({"held_out_images": 50}, 58, 14),
        ({"compensation_images": 20}, 20, 14),
        ({"compensation_images": 20, "held_out_images": 4}, 20, 4),
        ({"compensation_images": 1000}, 58, 14),
    ],
)
def test_the_last_images_judge_and_the_first_teach(settings: dict[str, Any], learn: int, judge: int) -> None:
    case = compressed(**{**RECIPE, **settings})
    compensator = Compensator(case.prepared, case.statistics, case.train, case.config, progress=False)
    given = [float(image[0, 0, 0]) for image in case.train.images]
    assert len(given) == IMAGES - HELD_OUT == 72
    assert [float(image[0, 0, 0]) for image in compensator.train.images] == given[:learn]
    judges = torch.cat([batch.pixel_values for batch in compensator.reference.batches])
    assert judges[:, 0, 0, 0].tolist() == given[72 - judge :]


def test_the_residual_takes_as_many_images_as_calibration(dense: PreTrainedModel, images: Tensor) -> None:
    compressor = new(num_images=40)
    compressor.compress(dense, images)
    report = done(compressor)
    assert report.images == IMAGES - JUDGES
    assert {point.images for point in report.points if point.stage == "residual"} == {0, 40}


def test_two_images_are_enough(dense: PreTrainedModel, images: Tensor) -> None:
    compressor = new(compensation_duration="1 epoch")
    statistics = compressor.calibrate(dense, images)
    compressor.compress(dense, images[:2], statistics=statistics)
    assert (done(compressor).images, done(compressor).held_out_images) == (1, 1)


def test_one_image_is_not_enough(dense: PreTrainedModel, images: Tensor) -> None:
    compressor = new()
    statistics = compressor.calibrate(dense, images)
    with pytest.raises(DataError, match=r"at least two images.*the list of images has 1"):
        compressor.compress(dense, images[:1], statistics=statistics)


@every_method
def test_without_images_it_says_what_is_missing(method: str, dense: PreTrainedModel, images: Tensor) -> None:
    compressor = new(compensation=method)
    statistics = compressor.calibrate(dense, images)
    with pytest.raises(DataError, match=rf"compensation='{method}' learns from images.*compensation=\"none\""):
        compressor.compress(dense, statistics=statistics)


def test_held_out_images_of_which_none_can_be_read_are_refused(dense: PreTrainedModel, images: Tensor) -> None:
    compressor = new()
    statistics = compressor.calibrate(dense, images)
    order = list(ImageSource(list(range(IMAGES)), None, "numbers").sample(None, 0).images)
    broken: list[Any] = list(images)
    for i in order[-JUDGES:]:
        broken[i] = b"no image"
    with pytest.raises(DataError, match=f"None of the {JUDGES} images"):
        compressor.compress(dense, broken, statistics=statistics)


def test_some_unreadable_images_are_no_obstacle(dense: PreTrainedModel, images: Tensor) -> None:
    broken: list[Any] = list(images)
    broken[::9] = [b"no image"] * len(broken[::9])
    compressor = new()
    compressor.compress(dense, broken)
    assert done(compressor).loss_after < done(compressor).loss_before
    assert done(compressor).held_out_images < JUDGES


def test_no_more_batches_are_read_than_are_needed(dense: PreTrainedModel, images: Tensor) -> None:
    read: list[int] = []

    class Loader:
        def __iter__(self) -> Iterator[Tensor]:
            for i in range(0, IMAGES, 8):
                read.append(i)
                yield images[i : i + 8]

    compressor = new(num_images=16, compensation_images=30, held_out_images=10, validation_images=8)
    compressor.compress(dense, Loader())
    assert len(read) == 6
    assert done(compressor).images == 30


# ---- how long


def minutes_given(monkeypatch: pytest.MonkeyPatch, residual_seconds: float = 0.0) -> list[float | None]:
    """What the distillation is told, when the residual takes so long."""
    given: list[float | None] = []

    def distill(_: Distillation, minutes: float | None, *__: Any) -> list[CompensationPoint]:
        given.append(minutes)
        return [CompensationPoint("distill", 1.0, 0, 0.5)]

    point = CompensationPoint("residual", residual_seconds, 0, 1.0)
    monkeypatch.setattr(Distillation, "run", distill)
    monkeypatch.setattr(ResidualCompensation, "run", lambda *_: [point])
    return given


@pytest.mark.parametrize(
    ("settings", "share", "minutes"),
    [
        ({"compensation": "distill", "compensation_duration": "3 minutes"}, 1.0, 3),
        ({"compensation": "distill"}, 1.0, 5),
        ({"compensation_duration": "3 minutes"}, 1.0, 2.5),
        ({"compensation_duration": "4 minutes"}, 0.25, 0.5),
        ({"compensation_duration": "2 epochs"}, 1.0, None),
    ],
)
def test_the_stages_share_the_minutes(
    settings: dict[str, Any], share: float, minutes: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = minutes_given(monkeypatch, residual_seconds=30.0)
    compensating = compensator(**{"compensation_duration": None, **settings})
    case = compressed(**RECIPE)
    report = compensating.run(case.student(), case.plan, share)
    assert given == [minutes]
    seconds = [point.seconds for point in report.points]
    assert seconds == ([1.0] if settings.get("compensation") == "distill" else [30.0, 31.0])


def test_a_trial_takes_its_share_of_the_epochs_and_keeps_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = compressed(**{**RECIPE, "compensation_duration": "8 epochs"})
    compensating = Compensator(
        case.prepared, case.statistics, case.train, case.config, checkpoint=tmp_path / "file", progress=False
    )
    steps: list[int] = []
    take = Distillation._step
    monkeypatch.setattr(hf_vitcompress.compensation.distillation, "PATIENCE", 99)
    monkeypatch.setattr(Distillation, "_step", lambda self, step: steps.append(step) or take(self, step))
    compensating.run(case.student(), case.plan, share=1 / 4)
    assert len(steps) == 2 * (58 // 16)
    assert not compensating.checkpoints
    assert not list(tmp_path.iterdir())


# ---- checkpoints


@every_method
def test_checkpoints_are_named_after_the_given_file_and_listed(
    method: str, dense: PreTrainedModel, images: Tensor, tmp_path: Path
) -> None:
    compressor = new(compensation=method)
    compressor.compress(dense, images, checkpoint=tmp_path / "file")
    assert [path.name.rsplit("-")[0] for path in compressor.checkpoints] == [f"file.{s}" for s in STAGES[method]]
    assert {path.name for path in tmp_path.iterdir()} == {"file", *(path.name for path in compressor.checkpoints)}


def test_without_a_file_there_are_no_checkpoints(
    dense: PreTrainedModel, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    compressor = new()
    compressor.compress(dense, images)
    assert compressor.checkpoints == []
    assert not list(tmp_path.iterdir())


def interrupted(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    take = Distillation._step

    def taking(self: Distillation, number: int) -> float:
        if number == step:
            raise KeyboardInterrupt
        return take(self, number)

    monkeypatch.setattr(Distillation, "_step", taking)


def test_an_interrupted_second_stage_does_not_repeat_the_first(
    dense: PreTrainedModel, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = new()
    expected = whole.compress(dense, images)
    with monkeypatch.context() as patch:
        interrupted(patch, 9)
        with pytest.raises(KeyboardInterrupt):
            new().compress(dense, images, checkpoint=tmp_path / "file")
    solved: list[str] = []
    monkeypatch.setattr(ResidualCompensation, "_solve_block", lambda *_: solved.append("block"))
    compressor = new()
    small = compressor.compress(dense, images, checkpoint=tmp_path / "file")
    assert not solved
    assert not changed(state_of(expected), small)
    assert [point.loss for point in done(compressor).points] == [point.loss for point in done(whole).points]
    assert len(compressor.checkpoints) == 2


def test_another_run_with_the_same_file_is_the_same_model(
    dense: PreTrainedModel, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = new().compress(dense, images, checkpoint=tmp_path / "file")
    interrupted(monkeypatch, 0)
    second = new().compress(dense, images, checkpoint=tmp_path / "file")
    assert not changed(state_of(first), second)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"learning_rate": 2e-3},
        {"compensation_duration": "6 epochs"},
        {"compensation": "residual"},
        {"residual_share": 0.5},
        {"keep_ratio": 0.5},
        {"compensation_images": 30},
        {"held_out_images": 3},
        {"metric": "weight"},
        {"repair": False},
        {"criterion": "magnitude"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_other_settings_do_not_go_on_with_a_checkpoint(changes: dict[str, Any], tmp_path: Path) -> None:
    paths = []
    for settings in (RECIPE, {**RECIPE, **changes}):
        case = compressed(**settings)
        compensating = Compensator(
            case.prepared, case.statistics, case.train, case.config, checkpoint=tmp_path / "file", progress=False
        )
        paths.append(compensating.checkpoint_for("distill", case.plan.layers).path)
    assert paths[0] != paths[1]


def test_other_models_plans_and_images_do_not_go_on_with_a_checkpoint(tmp_path: Path) -> None:
    names, one, other = set(), compressed(**RECIPE), compressed(dense=lively(seed=1), **RECIPE)
    for case, images in ((one, one.train), (one, one.train.select(range(40))), (other, other.train)):
        compensating = Compensator(
            case.prepared, case.statistics, images, case.config, checkpoint=tmp_path / "file", progress=False
        )
        for plan in (low_rank_plan({"vit.layers.0.mlp.fc1": rank}) for rank in (2, 3)):
            for stage in ("residual", "distill"):
                names.add(compensating.checkpoint_for(stage, plan.layers).path)
    assert len(names) == 12


def test_the_same_plan_under_another_budget_goes_on(dense: PreTrainedModel, images: Tensor, tmp_path: Path) -> None:
    """The stages depend on the shapes, and not on how they were asked for."""
    plan = low_rank_plan({"vit.layers.0.mlp.fc1": 4})
    first, second = new(), new(keep_ratio=None, max_params=10_000_000)
    for compressor in (first, second):
        compressor.compress(dense, images, plan=plan, checkpoint=tmp_path / "file")
    assert first.checkpoints == second.checkpoints


def test_a_damaged_checkpoint_is_named(dense: PreTrainedModel, images: Tensor, tmp_path: Path) -> None:
    compressor = new()
    compressor.compress(dense, images, checkpoint=tmp_path / "file")
    compressor.checkpoints[0].write_bytes(b"damaged")
    with pytest.raises(CompensationError, match=r"file\.residual-.*Delete it"):
        new().compress(dense, images, checkpoint=tmp_path / "file")


def test_a_failure_leaves_the_dtype(dense: PreTrainedModel, images: Tensor) -> None:
    dense.to(torch.bfloat16)
    compressor = new(learning_rate=1e30)
    statistics = compressor.calibrate(dense, images)
    plan = compressor.plan(dense, statistics)
    small = compressor.build(dense, statistics, plan)
    with pytest.raises(CompensationError, match="learning_rate"):
        compressor.compensate(small, dense, statistics, plan, images)
    assert {parameter.dtype for parameter in small.parameters()} == {torch.bfloat16}
    assert torch.isfinite(logits(small, images.bfloat16())).all()


# ---- an accuracy drop

DROP = {"keep_ratio": None, "max_accuracy_drop": 0.2, "compensation_duration": "16 epochs"}


def searched(dense: PreTrainedModel, file: Path | None = None, **changes: Any) -> tuple[PreTrainedModel, ViTCompressor]:
    compressor = new(**DROP, **changes)
    images, validation = random_images(IMAGES), random_images(60, seed=8)
    return compressor.compress(dense, images, validation=validation, checkpoint=file), compressor


def test_with_compensation_an_accuracy_drop_allows_a_smaller_model(dense: PreTrainedModel) -> None:
    assert searched(dense)[0].num_parameters() < searched(dense, compensation="none")[0].num_parameters()


def test_the_trial_of_the_chosen_plan_holds_the_drop(dense: PreTrainedModel, tmp_path: Path) -> None:
    small, compressor = searched(dense, tmp_path / "file")
    layers = layout_of(small)
    search = next(path for path in compressor.checkpoints if ".search-" in path.name)
    drops = torch.load(search, weights_only=True)
    drop = drops[json.dumps(layers, sort_keys=True)]
    assert drop <= 0.2 < max(drops.values())
    # The same once more by hand.
    statistics, plan = compressor.statistics, CompressionPlan(layers)
    assert statistics is not None
    images = ImageSource(list(random_images(IMAGES)), None, "the list of images").sample(None, 0)
    prepared = compressor.prepare(dense, statistics)
    student = compressor.build(dense, statistics, plan)
    Compensator(prepared, statistics, images, compressor.config, progress=False).run(student, plan, TRIAL_SHARE)
    validation = random_images(60, seed=8)
    differ = logits(student, validation).argmax(-1) != logits(dense, validation).argmax(-1)
    assert float(differ.double().mean()) == pytest.approx(drop)


def test_no_candidate_of_a_search_is_tried_twice(
    dense: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares: list[float] = []
    run = Compensator.run

    def running(self: Compensator, student: PreTrainedModel, plan: CompressionPlan, share: float = 1.0) -> Any:
        if len(shares) == 3:
            shares.clear()
            raise KeyboardInterrupt
        shares.append(share)
        return run(self, student, plan, share)

    with monkeypatch.context() as patch:
        patch.setattr(Compensator, "run", running)
        with pytest.raises(KeyboardInterrupt):
            searched(dense, tmp_path / "file")
    first, compressor = searched(dense, tmp_path / "file")
    search = next(path for path in compressor.checkpoints if ".search-" in path.name)
    assert len(torch.load(search, weights_only=True)) > 3
    monkeypatch.setattr(Compensator, "run", running)
    second, _ = searched(dense, tmp_path / "file")
    assert shares == [1.0]
    assert not changed(state_of(first), second)


def test_an_accuracy_drop_holds_out_images_and_compensates_on_the_others(
    dense: PreTrainedModel, images: Tensor
) -> None:
    compressor = new(**DROP, validation_images=30)
    compressor.compress(dense, images)
    assert done(compressor).images + done(compressor).held_out_images == IMAGES - 30


def test_a_search_without_images_to_compensate_on_says_so(dense: PreTrainedModel, images: Tensor) -> None:
    compressor = new(**DROP)
    statistics = compressor.calibrate(dense, images)
    with pytest.raises(BudgetError, match=r"images to compensate on.*compensation=\"none\""):
        compressor.plan(dense, statistics, validation=images)


# ---- settings that cannot be


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
        ("learning_rate", None),
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
