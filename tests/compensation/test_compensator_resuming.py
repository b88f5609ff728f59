"""Compensation that is interrupted, and checkpoints that it does not go on with."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_vitcompress.compensation.compensator import Compensator
from hf_vitcompress.compensation.distillation import Distillation
from hf_vitcompress.compensation.residual import ResidualCompensation
from hf_vitcompress.errors import CompensationError, CompensationWarning
from hf_vitcompress.images.images import ImageSource
from support.compensated import RECIPE, STAGES, done, every_method, new
from support.stages import quiet
from support.students import Case, changed, compressed, lively, logits, low_rank_plan, state_of


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
    take = Distillation.gradients

    def taking(self: Distillation, number: int) -> float:
        if number == step:
            raise KeyboardInterrupt
        return take(self, number)

    monkeypatch.setattr(Distillation, "gradients", taking)


def test_an_interrupted_second_stage_does_not_repeat_the_first(
    dense: PreTrainedModel, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = new()
    expected = whole.compress(dense, images)
    with monkeypatch.context() as patch:
        interrupted(patch, 9)
        with pytest.raises(KeyboardInterrupt):
            new().compress(dense, images, checkpoint=tmp_path / "file")
    before = sum(torch.load(path)["seconds"] for path in tmp_path.glob("file.*"))
    solved: list[str] = []
    monkeypatch.setattr(ResidualCompensation, "_solve_block", lambda *_: solved.append("block"))
    compressor = new()
    small = compressor.compress(dense, images, checkpoint=tmp_path / "file")
    assert not solved
    assert not changed(state_of(expected), small)
    assert [point.loss for point in done(compressor).points] == [point.loss for point in done(whole).points]
    assert len(compressor.checkpoints) == 2
    assert compressor.report is not None
    assert compressor.report.seconds["compensate"] > done(compressor).seconds > before > 0


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
        compensating = Compensator(case.prepared, case.train, quiet(case.config), tmp_path / "file")
        paths.append(compensating.checkpoint_for("distill", case.plan).path)
    assert paths[0] != paths[1]


def test_other_models_plans_and_images_do_not_go_on_with_a_checkpoint(tmp_path: Path) -> None:
    names, one, other = set(), compressed(**RECIPE), compressed(dense=lively(seed=1), **RECIPE)
    for case, images in ((one, one.train), (one, one.train.select(range(40))), (other, other.train)):
        compensating = Compensator(case.prepared, images, quiet(case.config), tmp_path / "file")
        for plan in (low_rank_plan({"vit.layers.0.mlp.fc1": rank}) for rank in (2, 3)):
            for stage in ("residual", "distill"):
                names.add(compensating.checkpoint_for(stage, plan).path)
    assert len(names) == 12


def compensating(case: Case, images: ImageSource, path: Path) -> Path | None:
    return Compensator(case.prepared, images, quiet(case.config), path).checkpoint_for("distill", case.plan).path


def test_images_go_by_their_content_and_not_by_their_name(tmp_path: Path) -> None:
    case = compressed(**RECIPE)
    path, images = tmp_path / "file", case.train
    changed_image = replace(images, images=[images.images[0] + 1, *images.images[1:]])
    renamed = replace(images, name="another folder")
    answers = case.dense(torch.stack(list(images.images))).logits.argmax(-1).tolist()
    labelled = replace(images, labels=answers)
    assert compensating(case, renamed, path) == compensating(case, labelled, path) == compensating(case, images, path)
    assert compensating(case, changed_image, path) != compensating(case, images, path)
    assert compensating(case, images.select(range(len(images))[::-1]), path) != compensating(case, images, path)
    learns = compressed(**RECIPE, label_weight=0.5)
    assert compensating(learns, labelled, path) != compensating(learns, images, path)


def test_a_checkpoint_of_another_plan_is_refused(tmp_path: Path) -> None:
    case = compressed(**RECIPE)
    stages = Compensator(case.prepared, case.train, quiet(case.config), tmp_path / "file")
    ours, theirs = (stages.checkpoint_for("distill", low_rank_plan({"vit.layers.0.mlp.fc1": r})) for r in (2, 3))
    assert ours.path is not None
    assert theirs.path is not None
    ours.save({"step": 1})
    ours.path.rename(theirs.path)
    with pytest.raises(CompensationError, match=r"another plan \(layers .*Delete it to start this stage again"):
        theirs.load()


def test_the_same_plan_under_another_budget_goes_on(dense: PreTrainedModel, images: Tensor, tmp_path: Path) -> None:
    """The stages depend on the shapes, and not on how they were asked for."""
    plan = low_rank_plan({"vit.layers.0.mlp.fc1": 4})
    first, second = new(), new(keep_ratio=None, max_params=10_000_000)
    for compressor in (first, second):
        asked = replace(plan, budget=compressor.config.budgets)
        compressor.compress(dense, images, plan=asked, checkpoint=tmp_path / "file")
    assert first.checkpoints == second.checkpoints


def test_a_damaged_checkpoint_is_named(dense: PreTrainedModel, images: Tensor, tmp_path: Path) -> None:
    compressor = new()
    compressor.compress(dense, images, checkpoint=tmp_path / "file")
    compressor.checkpoints[0].write_bytes(b"damaged")
    with pytest.raises(CompensationError, match=r"file\.residual-.*Delete it"):
        new().compress(dense, images, checkpoint=tmp_path / "file")


def test_a_divergence_is_named_and_leaves_a_model_in_its_dtype(dense: PreTrainedModel, images: Tensor) -> None:
    dense.to(torch.bfloat16)
    compressor = new(learning_rate=1e30)
    with pytest.warns(CompensationWarning, match="learning_rate"):
        small = compressor.compress(dense, images)
    assert done(compressor).loss_after <= done(compressor).loss_before
    assert {parameter.dtype for parameter in small.parameters()} == {torch.bfloat16}
    assert torch.isfinite(logits(small, images.bfloat16())).all()


def test_a_failure_leaves_the_dtype(dense: PreTrainedModel, images: Tensor) -> None:
    dense.to(torch.bfloat16)
    compressor = new(feature_weight=1e39)
    statistics = compressor.calibrate(dense, images)
    plan = compressor.plan(dense, statistics)
    small = compressor.build(dense, statistics, plan)
    with pytest.raises(CompensationError, match="feature_weight"):
        compressor.compensate(small, dense, statistics, plan, images)
    assert {parameter.dtype for parameter in small.parameters()} == {torch.bfloat16}
    assert torch.isfinite(logits(small, images.bfloat16())).all()
