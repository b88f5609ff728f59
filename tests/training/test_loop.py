"""The training loop: when it looks at the clock, saves, adds points and ends, and how it goes on."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

import hf_vitcompress.training.loop
import hf_vitcompress.training.steps
from hf_vitcompress.compensation import distillation
from hf_vitcompress.durations import Duration
from hf_vitcompress.errors import CompensationError
from hf_vitcompress.images.images import ImageSource
from hf_vitcompress.importance import learning
from hf_vitcompress.runtime.checkpoints import Checkpoint
from hf_vitcompress.training.loop import CHECK_EVERY, LATE, Learner, TrainingState, evenly, run_steps
from hf_vitcompress.training.steps import TIMED_STEPS, Steps
from support.gated import learned
from support.lessons import learn, lesson
from support.students import checkpoint, random_images

BATCH, IMAGES = 4, 40
MINUTE = Duration(1.0, "minutes")


class Clock:
    """Stands still but for what a learner says that it takes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        own = SimpleNamespace(perf_counter=lambda: self.now)
        monkeypatch.setattr(hf_vitcompress.training.loop, "time", own)
        monkeypatch.setattr(hf_vitcompress.training.steps, "time", own)


@dataclass
class Note:
    """A point that says when it was made and what the mean loss since the last one was."""

    step: int
    seconds: float
    loss: float


class Toy(Learner[Note]):
    """Finds the number 3: ten steps are an epoch, a step takes `step_seconds` and a point `point_seconds`.

    Args:
        stop_before: the step that breaks off.
        enough: points after which it gives up.
    """

    doing = "finding three"
    remedy = "Be patient."
    point_type = Note
    point_count = 5

    def __init__(
        self,
        clock: Clock | None = None,
        step_seconds: float = 1.0,
        point_seconds: float = 0.0,
        stop_before: int = -1,
        enough: int = 1000,
    ) -> None:
        self.clock, self.step_seconds, self.point_seconds = clock, step_seconds, point_seconds
        self.stop_before, self.enough = stop_before, enough
        self.number = nn.Parameter(torch.zeros(1))
        self.trained = {"number": self.number}
        self.optimizer = torch.optim.Adam([self.number], lr=1.0)
        self.steps = Steps(ImageSource(list(random_images(IMAGES)), None, "the images"), None, BATCH, 0, Accelerator())
        self.taken: list[int] = []
        self.rates: list[float] = []
        self.extra = 0

    def gradients(self, step: int) -> float:
        if step == self.stop_before:
            raise KeyboardInterrupt
        self.taken.append(step)
        self._spend(self.step_seconds)
        loss = (self.number - 3).square().sum() + step / 100
        loss.backward()
        return float(loss.detach())

    def learning_rate(self, step: int, total_steps: int) -> float:
        self.rates.append(1 - step / total_steps)
        return self.rates[-1]

    def point(self, state: TrainingState[Note]) -> Note:
        self._spend(self.point_seconds)
        self.extra += 1
        mean = sum(state.losses) / len(state.losses) if state.losses else 0.0
        return Note(state.step, state.seconds, mean)

    def caption(self, point: Note) -> str:
        return f"loss {point.loss:.2f}"

    def gives_up(self, state: TrainingState[Note]) -> bool:
        return len(state.points) >= self.enough

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "extra": self.extra}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        super().load_state_dict(saved)
        self.extra = saved["extra"]

    def _spend(self, seconds: float) -> None:
        if self.clock is not None:
            self.clock.now += seconds


class Watched(Checkpoint):
    """Notes the steps after which it was written."""

    def __init__(self, path: Path | None = None) -> None:
        super().__init__(path, Accelerator())
        self.steps: list[int] = []

    def save(self, state: dict[str, Any]) -> None:
        self.steps.append(state["state"]["step"])
        super().save(state)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def epochs(count: float) -> Duration:
    return Duration(count, "epochs")


def run(learner: Toy, duration: Duration, kept: Checkpoint | None = None) -> TrainingState[Note]:
    return run_steps(learner, duration, kept or checkpoint(), progress=False)


# ---- steps


def test_every_step_is_taken_once_with_its_own_learning_rate() -> None:
    learner = Toy()
    state = run(learner, epochs(2))
    assert learner.taken == list(range(20))
    assert learner.rates == [1 - step / 20 for step in range(20)]
    assert (state.step, state.total_steps, state.ended) == (20, 20, False)
    assert learner.optimizer.param_groups[0]["lr"] == pytest.approx(1 / 20)
    assert abs(float(learner.number.detach()) - 3) < 1
    assert learner.number.grad is None


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_an_error_that_says_what_to_do(loss: float) -> None:
    learner = Toy()
    take = learner.gradients
    learner.gradients = lambda step: take(step) if step < 7 else loss * take(step)  # type: ignore[method-assign]
    told = rf"^The loss became {loss} after 7 steps of finding three\. Be patient\.$"
    with pytest.raises(CompensationError, match=told):
        run(learner, epochs(2))
    assert learner.number.grad is None


# ---- points


@pytest.mark.parametrize(
    ("count", "total_steps", "steps"),
    [
        (5, 20, {4, 8, 12, 16, 20}),
        (5, 7, {2, 3, 5, 6, 7}),
        (10, 3, {1, 2, 3}),
        (1, 9, {9}),
        (20, 1, {1}),
    ],
)
def test_points_lie_evenly_and_the_last_at_the_end(count: int, total_steps: int, steps: set[int]) -> None:
    assert evenly(count, total_steps) == steps


@pytest.mark.parametrize("total_steps", [1, 4, 23, 60])
def test_a_point_tells_of_the_steps_since_the_one_before(total_steps: int, clock: Clock) -> None:
    losses: list[float] = []
    learner = Toy(clock, step_seconds=2.0, point_seconds=1.0)
    take = learner.gradients
    learner.gradients = lambda step: losses.append(take(step)) or losses[-1]  # type: ignore[method-assign,func-returns-value]
    state = run(learner, epochs(total_steps / 10))
    assert [point.step for point in state.points] == sorted(evenly(5, total_steps))
    begin = 0
    for number, point in enumerate(state.points):
        assert point.loss == pytest.approx(sum(losses[begin : point.step]) / (point.step - begin))
        assert point.seconds == 2.0 * point.step + number  # the point itself is not in its own time
        begin = point.step
    assert state.losses == []


def test_a_point_at_the_start_comes_before_the_steps(clock: Clock) -> None:
    learner = Toy(clock, step_seconds=2.0, point_seconds=3.0)
    learner.point_at_start = True
    state = run(learner, epochs(1))
    assert [(point.step, point.seconds) for point in state.points[:3]] == [(0, 0.0), (2, 7.0), (4, 14.0)]
    assert len(state.points) == 6


def test_a_learner_may_give_up_at_a_point() -> None:
    learner, kept = Toy(enough=2), Watched()
    state = run(learner, epochs(5), kept)
    assert (state.step, state.ended, len(state.points)) == (20, True, 2)
    assert kept.steps[-1] == 20


# ---- minutes


@pytest.mark.parametrize("point_seconds", [0.0, 3.0])
def test_minutes_count_the_trial_steps_and_the_points(point_seconds: float, clock: Clock) -> None:
    learner = Toy(clock, step_seconds=0.5, point_seconds=point_seconds)
    learner.point_at_start = True
    state = run(learner, MINUTE)
    trials = TIMED_STEPS + 1
    assert state.total_steps == (60 - 6 * point_seconds - trials * 0.5) / 0.5
    assert learner.taken[:trials] == list(range(trials))
    assert learner.taken[trials:] == list(range(state.total_steps))
    assert state.points[-1].seconds == pytest.approx(60, abs=1 + point_seconds)


def slower(monkeypatch: pytest.MonkeyPatch, total_steps: int) -> None:
    """So many steps are counted, in whatever time."""
    monkeypatch.setattr(Steps, "in_seconds", lambda *_: total_steps)


def test_a_training_that_is_late_ends_with_a_point_and_a_checkpoint(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """66 seconds of a minute, after 32 steps, are not late yet."""
    slower(monkeypatch, 1000)
    learner, kept = Toy(clock, step_seconds=66 / 32), Watched()
    state = run(learner, MINUTE, kept)
    assert 60 * LATE == 66
    assert (state.step, state.ended) == (40, True)
    assert [point.step for point in state.points] == [40]
    assert kept.steps[-1] == 40


def test_few_slow_steps_are_late_at_a_point(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    slower(monkeypatch, 7)
    state = run(Toy(clock, step_seconds=25.0), MINUTE)
    assert (state.step, state.ended) == (3, True)
    assert [point.step for point in state.points] == [2, 3]


def test_epochs_are_never_late(clock: Clock) -> None:
    assert run(Toy(clock, step_seconds=1e6), epochs(3)).step == 30


# ---- checkpoints


def test_a_checkpoint_is_written_at_points_and_every_half_minute(clock: Clock) -> None:
    learner, kept = Toy(clock, step_seconds=2.0), Watched()
    run(learner, epochs(20), kept)
    assert [step for step in kept.steps if step % 40 == 0] == [0, 40, 80, 120, 160, 200]
    # More than 30 seconds are 16 steps, and the clock is asked after every eighth; each save starts them anew.
    assert kept.steps[:5] == [0, 16, 32, 40, 56]
    assert all(step % CHECK_EVERY == 0 for step in kept.steps)


def test_fast_steps_are_saved_at_points_alone(clock: Clock) -> None:
    learner, kept = Toy(clock, step_seconds=0.001), Watched()
    run(learner, epochs(20), kept)
    assert kept.steps == [0, 40, 80, 120, 160, 200]


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Names of what is not the same to the bit in two learners' states."""

    def same(a: Any, b: Any) -> bool:
        if isinstance(a, Tensor):
            return torch.equal(a, b)
        if isinstance(a, dict):
            return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
        return a == b

    return [name for name in one if not same(one[name], other[name])]


@pytest.mark.parametrize("stop_before", [0, 1, 9, 17, 38, 39])
def test_an_interrupted_training_goes_on_where_it_was_saved(
    stop_before: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two points, too, with the losses since the last one."""
    monkeypatch.setattr(hf_vitcompress.training.loop, "CHECKPOINT_SECONDS", -1.0)
    monkeypatch.setattr(hf_vitcompress.training.loop, "CHECK_EVERY", 3)
    whole, kept = Toy(), Watched(tmp_path / "stage")
    expected = run(whole, epochs(4))
    with pytest.raises(KeyboardInterrupt):
        run(Toy(stop_before=stop_before), epochs(4), kept)
    learner = Toy()
    state = run(learner, epochs(4), kept)
    assert learner.taken == list(range(kept.steps[kept.steps.index(learner.taken[0])], 40))
    assert stop_before - 3 < learner.taken[0] <= stop_before
    assert [(point.step, point.loss) for point in state.points] == [
        (point.step, point.loss) for point in expected.points
    ]
    assert not differences(learner.state_dict(), whole.state_dict())


def test_time_before_an_interruption_counts(clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slower(monkeypatch, 100)
    kept = checkpoint(tmp_path / "stage")
    with pytest.raises(KeyboardInterrupt):
        run(Toy(clock, stop_before=45), MINUTE, kept)
    clock.now += 1000
    state = run(Toy(clock), MINUTE, kept)
    assert (state.step, state.seconds, state.ended) == (72, 72.0, True)  # 40 of them before


@pytest.mark.parametrize("enough", [2, 1000])
def test_a_training_that_has_ended_is_not_continued(enough: int, tmp_path: Path) -> None:
    kept = checkpoint(tmp_path / "stage")
    first = run(Toy(enough=enough), epochs(3), kept)
    again = Toy()
    assert run(again, epochs(3), kept) == first
    assert again.taken == []


def old(_: dict[str, Any]) -> dict[str, Any]:
    """As the loops of distillation and gate learning wrote it before they were one."""
    state = {"total_steps": 30, "step": 8, "seconds": 1.0, "late": False, "points": []}
    return {"state": state, "parameters": {"number": torch.ones(1)}, "optimizer": {}}


@pytest.mark.parametrize("change", [old, lambda saved: {**saved, "format": 1}, lambda saved: {**saved, "format": 99}])
def test_a_checkpoint_of_another_format_is_not_read(
    change: Callable[[dict[str, Any]], dict[str, Any]], tmp_path: Path
) -> None:
    kept = checkpoint(tmp_path / "stage")
    run(Toy(), epochs(1), kept)
    saved = kept.load()
    assert saved is not None
    kept.save(change(saved))
    learner = Toy()
    run(learner, epochs(3), kept)
    assert learner.taken == list(range(30))
    assert run(Toy(), epochs(3), kept).step == 30


# ---- whose loop it is


def test_distillation_and_gate_learning_are_trained_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    learners: list[tuple[type, Duration]] = []

    def recorded(learner: Learner[Any], duration: Duration, *arguments: Any) -> TrainingState[Any]:
        learners.append((type(learner), duration))
        return run_steps(learner, duration, *arguments)

    for module in (distillation, learning):
        monkeypatch.setattr(module, "run_steps", recorded)
    learn(lesson(), duration=epochs(1))
    learned(duration="2 epochs")
    assert learners == [(distillation.Distillation, epochs(1)), (learning.GateLearner, epochs(2))]
