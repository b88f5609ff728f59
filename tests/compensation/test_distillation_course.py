"""The course of a distillation: which state is kept, how long it takes, and what an interruption costs."""

import dataclasses
import math
import time
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, get_cosine_schedule_with_warmup

import hf_vitcompress.compensation.distillation
import hf_vitcompress.training.loop
from hf_vitcompress.compensation.course import CompensationPoint
from hf_vitcompress.compensation.distillation import EVALUATIONS, PATIENCE, Distillation, chosen_learning_rate
from hf_vitcompress.config import CompressionConfig
from hf_vitcompress.durations import Duration
from hf_vitcompress.errors import CompensationError, CompensationWarning
from hf_vitcompress.evaluation.reference import Reference
from hf_vitcompress.training.loop import TrainingState
from hf_vitcompress.training.steps import Steps
from support.lessons import FIVE_EPOCHS, comparable, counted, judged, learn, lesson
from support.students import Case, changed, checkpoint, state_of


@pytest.fixture(scope="module")
def case() -> Case:
    """For tests that leave the dense model and the images alone."""
    return lesson()


# ---- the learning rate


@pytest.mark.parametrize("total_steps", [1, 2, 20, 333])
def test_the_learning_rate_warms_up_and_follows_a_cosine(total_steps: int, case: Case) -> None:
    """As the schedule of transformers does, to the bit."""
    teaching = case.distillation(case.student())
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], lr=case.config.learning_rate)
    schedule = get_cosine_schedule_with_warmup(optimizer, max(1, round(0.05 * total_steps)), total_steps)
    for step in range(total_steps):
        assert teaching.learning_rate(step, total_steps) == schedule.get_last_lr()[0]
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize(("width", "rate"), [(32, 1.8e-4), (64, 9e-5), (384, 1.5e-5), (768, 1.5e-5), (1024, 1.5e-5)])
def test_the_default_learning_rate_is_larger_for_narrower_models_than_vit_s(width: int, rate: float) -> None:
    assert CompressionConfig().learning_rate_at(width) == pytest.approx(rate, rel=1e-12)
    assert CompressionConfig(learning_rate=2e-4).learning_rate_at(width) == 2e-4


def test_the_default_learning_rate_is_that_of_the_dense_model(case: Case) -> None:
    config = dataclasses.replace(case.config, learning_rate=None)
    assert chosen_learning_rate(config, case.dense) == config.learning_rate_at(32)


# ---- which state is kept


def test_the_held_out_loss_clearly_falls_where_much_was_lost() -> None:
    case = lesson(metric="fisher", keep_ratio=0.3)
    student, points = learn(case, duration=Duration(20.0, "epochs"))
    assert case.reference.loss_of(student) < 0.6 * points[0].loss
    assert [point.stage for point in points] == ["distill"] * len(points)
    assert [point.seconds for point in points] == sorted(point.seconds for point in points)


@pytest.mark.parametrize("learning_rate", [1e-4, 1e-2, 1.0, 100.0])
def test_the_best_state_is_the_one_that_is_kept(learning_rate: float) -> None:
    case = lesson(learning_rate=learning_rate)
    before = case.reference.loss_of(case.student())
    student, points = learn(case)
    after = case.reference.loss_of(student)
    assert after == pytest.approx(min(point.loss for point in points), rel=1e-4)
    assert points[0].loss == pytest.approx(before, rel=1e-4)
    assert after <= before * (1 + 1e-4)


@pytest.mark.parametrize("best", [0, 1, 4, 10])
def test_any_of_the_judged_states_can_be_the_best(best: int, monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    monkeypatch.setattr(hf_vitcompress.compensation.distillation, "PATIENCE", 99)
    states = judged(monkeypatch, [1.0 + abs(i - best) for i in range(11)])
    student, points = learn(case)
    assert len(points) == 11
    assert not changed(states[best], student)
    assert best == 10 or changed(states[10], student)


def test_a_huge_learning_rate_leaves_the_model_as_it_was() -> None:
    case = lesson(learning_rate=100.0)
    student, points = learn(case)
    assert min(point.loss for point in points[1:]) > points[0].loss
    assert not changed(state_of(case.student()), student)


def test_it_stops_in_the_second_half_where_the_loss_only_rises(monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    states, steps = judged(monkeypatch, [1.0 + 0.1 * i for i in range(11)]), counted(monkeypatch)
    student, points = learn(case)
    assert len(points) == 1 + EVALUATIONS // 2
    assert len(steps) == EVALUATIONS  # two steps lie between evaluations
    assert not changed(states[0], student)


@pytest.mark.parametrize(
    ("losses", "step", "stopped"),
    [
        ([1.0], 100, False),
        ([1.0 + i for i in range(PATIENCE)], 100, False),
        ([1.0 + i for i in range(PATIENCE + 1)], 50, True),
        ([1.0 + i for i in range(PATIENCE + 1)], 49, False),
        ([1.0] + [2.0] * PATIENCE, 100, False),
        ([3.0, 2.0, 1.0] + [1.1 + i for i in range(PATIENCE)], 60, True),
        ([1.0 + i for i in range(PATIENCE)] + [1.5], 60, False),
    ],
)
def test_patience_counts_rises_in_the_second_half(losses: list[float], step: int, stopped: bool, case: Case) -> None:
    points = [CompensationPoint("distill", 0.0, 0, loss) for loss in losses]
    teaching = case.distillation(case.student())
    assert teaching.gives_up(TrainingState(100, step=step, points=points)) == stopped


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_it_in_the_best_state(
    loss: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: Case
) -> None:
    states = judged(monkeypatch, [1.0, 0.9, 0.8, 0.85])
    student, kept = case.student(), checkpoint(tmp_path / "stage")
    teaching = case.distillation(student)
    take = teaching.gradients
    monkeypatch.setattr(teaching, "gradients", lambda step: take(step) if step < 7 else loss)
    ended = r"after 7 steps of distilling.*best state.*0\.8\. Lower learning_rate \(0\.001\)"
    with pytest.warns(CompensationWarning, match=ended):
        points = teaching.run(FIVE_EPOCHS, kept)
    assert [point.loss for point in points] == [1.0, 0.9, 0.8, 0.85]
    assert not changed(states[2], student)
    again = case.student()
    assert case.distillation(again).run(FIVE_EPOCHS, kept) == points
    assert not changed(states[2], again)


def test_held_out_images_on_which_it_has_diverged_end_it_in_the_best_state(
    monkeypatch: pytest.MonkeyPatch, case: Case
) -> None:
    states = judged(monkeypatch, [1.0, 0.9, math.nan])
    student = case.student()
    with pytest.warns(CompensationWarning, match="The loss became nan after 4 steps"):
        points = case.distillation(student).run(FIVE_EPOCHS, checkpoint())
    assert [point.loss for point in points] == [1.0, 0.9]
    assert not changed(states[1], student)


def test_a_learning_rate_beyond_all_measure_is_named() -> None:
    case = lesson(learning_rate=1e30)
    student = case.student()
    before = state_of(student)
    with pytest.warns(CompensationWarning, match=r"Lower learning_rate \(1e\+30\)"):
        case.distillation(student).run(FIVE_EPOCHS, checkpoint())
    assert not changed(before, student)


@pytest.mark.parametrize("setting", ["feature_weight", "label_weight"])
def test_a_learning_rate_that_has_moved_nothing_yet_is_not_blamed(setting: str) -> None:
    case = lesson(labels=[0] * 96, **{setting: 1e39})
    student = case.student()
    before = state_of(student)
    with pytest.raises(CompensationError, match=rf"before anything has been learnt.*{setting}") as failed:
        case.distillation(student).run(FIVE_EPOCHS, checkpoint())
    assert "learning_rate" not in str(failed.value)
    assert not changed(before, student)


# ---- how long


@pytest.mark.parametrize(("epochs", "steps"), [(1, 4), (2.5, 10), (0.01, 1), (0.4, 2), (5, 20)])
def test_epochs_decide_the_number_of_steps(
    epochs: float, steps: int, monkeypatch: pytest.MonkeyPatch, case: Case
) -> None:
    monkeypatch.setattr(hf_vitcompress.compensation.distillation, "PATIENCE", 99)
    taken = counted(monkeypatch)
    _, points = learn(case, duration=Duration(epochs, "epochs"))
    assert taken == list(range(steps))
    assert points[0].images == 0
    assert points[-1].images == 16 * steps
    assert len(points) == 1 + min(steps, 10)


def test_a_batch_is_no_larger_than_there_are_images(monkeypatch: pytest.MonkeyPatch) -> None:
    case = lesson(distill_batch_size=1000)
    taken = counted(monkeypatch)
    _, points = learn(case, duration=Duration(3.0, "epochs"))
    assert len(taken) == 3
    assert points[-1].images == 3 * 72


def test_minutes_are_about_what_it_takes(monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    minutes = 0.03
    monkeypatch.setattr(hf_vitcompress.compensation.distillation, "PATIENCE", 99)
    taken = []
    for _ in range(3):  # a busy machine may be slower than it was when the steps were counted
        start = time.perf_counter()
        case.distillation(case.student()).run(Duration(minutes, "minutes"), checkpoint())
        taken.append((time.perf_counter() - start) / (60 * minutes))
        if 0.3 < taken[-1] < 2:
            return
    pytest.fail(f"it took {taken} of the time")


def test_no_time_left_is_still_a_step(case: Case) -> None:
    student = case.student()
    points = case.distillation(student).run(Duration(-1.0, "minutes"), checkpoint())
    assert [point.images for point in points] == [0, 16]


def test_a_machine_that_has_become_slow_does_not_go_on_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: Case
) -> None:
    take = Distillation.gradients
    monkeypatch.setattr(Steps, "seconds_of", lambda *_: 0.001)
    monkeypatch.setattr(Distillation, "gradients", lambda self, step: time.sleep(0.005) or take(self, step))
    monkeypatch.setattr(hf_vitcompress.compensation.distillation, "PATIENCE", 99)
    student, moment = case.student(), Duration(0.005, "minutes")
    stage = checkpoint(tmp_path / "stage")
    points = case.distillation(student).run(moment, stage)  # 300 steps are planned
    assert points[-1].images <= 16 * 90
    assert case.distillation(case.student()).run(moment, stage) == points
    assert case.reference.loss_of(student) <= points[0].loss * (1 + 1e-4)


# ---- interruptions


def test_two_runs_are_alike_to_the_bit() -> None:
    case = lesson()
    torch.manual_seed(0)
    first, first_points = learn(case)
    torch.manual_seed(1)
    second, second_points = learn(case)
    assert not changed(state_of(first), second)
    assert comparable(first_points) == comparable(second_points)


def test_the_global_random_state_is_left_alone(case: Case) -> None:
    teaching = case.distillation(case.student())
    before = torch.get_rng_state()
    teaching.run(FIVE_EPOCHS, checkpoint())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("seconds", [0.0, 1e9], ids=["often", "at evaluations"])
@pytest.mark.parametrize("stop_before", [0, 7, 19])
def test_a_run_that_was_interrupted_ends_like_one_that_was_not(
    stop_before: int, seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = lesson()  # 20 steps, evaluated after every second one
    monkeypatch.setattr(hf_vitcompress.training.loop, "CHECKPOINT_SECONDS", seconds)
    monkeypatch.setattr(hf_vitcompress.compensation.distillation, "PATIENCE", 99)
    whole, expected = learn(case)
    with monkeypatch.context() as patch:
        counted(patch, stop_before)
        with pytest.raises(KeyboardInterrupt):
            learn(case, tmp_path / "stage")
    steps = counted(monkeypatch)
    student, points = learn(case, tmp_path / "stage")
    assert steps
    assert stop_before - 2 < steps[0] <= stop_before
    assert not changed(state_of(whole), student)
    assert comparable(points) == comparable(expected)


def test_an_interruption_while_judging_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: Case
) -> None:
    monkeypatch.setattr(hf_vitcompress.compensation.distillation, "PATIENCE", 99)
    whole, expected = learn(case)
    asked = Reference.loss_of
    for stop_at in (0, 1, 4):
        left = [stop_at]

        def loss_of(self: Reference, model: PreTrainedModel, left: list[int] = left) -> float:
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            return asked(self, model)

        with monkeypatch.context() as patch:
            patch.setattr(Reference, "loss_of", loss_of)
            with pytest.raises(KeyboardInterrupt):
                learn(case, tmp_path / "stage")
    student, points = learn(case, tmp_path / "stage")
    assert not changed(state_of(whole), student)
    assert comparable(points) == comparable(expected)


@pytest.mark.parametrize("losses", [[1.0 + 0.1 * i for i in range(11)], [1.0 - 0.05 * i for i in range(11)]])
def test_a_finished_run_is_not_run_again(
    losses: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: Case
) -> None:
    judged(monkeypatch, losses)
    first, points = learn(case, tmp_path / "stage")
    counted(monkeypatch, stop_before=0)
    second, again = learn(case, tmp_path / "stage")
    assert again == points
    assert not changed(state_of(first), second)


def test_a_run_of_minutes_goes_on_with_the_steps_that_were_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: Case
) -> None:
    monkeypatch.setattr(Steps, "seconds_of", lambda *_: 2.0)
    stage = tmp_path / "stage"
    with monkeypatch.context() as patch:
        counted(patch, stop_before=9)
        with pytest.raises(KeyboardInterrupt):
            case.distillation(case.student()).run(Duration(1.0, "minutes"), checkpoint(stage))
    saved = checkpoint(stage).load()
    assert saved is not None
    monkeypatch.setattr(Steps, "seconds_of", lambda *_: 1e9)
    monkeypatch.setattr(hf_vitcompress.compensation.distillation, "PATIENCE", 99)
    points = case.distillation(case.student()).run(Duration(1.0, "minutes"), checkpoint(stage))
    assert points[-1].images == 16 * saved["state"]["total_steps"] > 16 * 9
