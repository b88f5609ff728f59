"""The loop that trains compressed models and importance scores: steps, clock, checkpoints and points of the course.

`run_steps` trains a `Learner`. The learner knows its loss, its learning rate and what a point of its course says; the
loop knows when a step, a point and a checkpoint are due, and when the training ends.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import nn
from tqdm.auto import tqdm

from ..durations import Duration
from ..errors import CompensationError
from ..runtime.checkpoints import CHECKPOINT_SECONDS, Checkpoint
from ..runtime.distributed import from_main
from .steps import Steps

Point = TypeVar("Point")
"""Dataclass of plain numbers and strings."""

CHECK_EVERY = 8
"""Steps between two looks at the clock; several processes have to agree on each of them."""
LATE = 1.1
"""Share of its minutes after which a training ends before its last step.

It gets there where the machine has become slower than it was when the steps were counted."""
FORMAT = 2
"""Of the checkpoints. Files of another format are not read."""


@dataclass
class TrainingState(Generic[Point]):
    """How far a training has come.

    Attributes:
        total_steps: number of steps to take.
        step: number of steps taken.
        seconds: time until the last step, including the time before an interruption.
        ended: whether the training ends here, before its last step.
        losses: losses of the steps since the last point.
        points: the course so far.
    """

    total_steps: int = 0
    step: int = 0
    seconds: float = 0.0
    ended: bool = False
    losses: list[float] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)


class Learner(ABC, Generic[Point]):
    """Parameters that `run_steps` trains, and how they are trained.

    Attributes:
        doing: name of the training in the progress bar and in errors.
        remedy: advice to the user whose loss is not finite, as a sentence.
        point_type: class of the points.
        point_count: number of points, evenly over the steps.
        point_at_start: whether there is one more point before the first step.
        trained: parameters by name.
        optimizer: of these parameters.
        steps: which images each step sees.
    """

    doing: str
    remedy: str = ""
    point_type: type[Point]
    point_count: int
    point_at_start: bool = False
    trained: Mapping[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    steps: Steps

    @abstractmethod
    def gradients(self, step: int) -> float:
        """Set the gradients of a step, the same on all processes, and return the mean loss of its images.

        Trial steps call it, too, so that it must not change anything else that is trained.
        """

    @abstractmethod
    def learning_rate(self, step: int, total_steps: int) -> float:
        """Learning rate of a step."""

    @abstractmethod
    def point(self, state: TrainingState[Point]) -> Point | None:
        """The point of the course at `state`; `None` where there is nothing to judge and the training ends."""

    @abstractmethod
    def caption(self, point: Point) -> str:
        """What the progress bar says about a point."""

    def diverged(self, state: TrainingState[Point], loss: float) -> None:
        """What follows from a loss that is not finite: an error, unless the training can end there."""
        raise CompensationError(f"The loss became {loss} after {state.step} steps of {self.doing}. {self.remedy}")

    def gives_up(self, state: TrainingState[Point]) -> bool:
        """Whether the training ends at the point that was added last."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """Everything that a checkpoint has to keep, besides the `TrainingState`; tensors and plain data."""
        parameters = {name: parameter.detach() for name, parameter in self.trained.items()}
        return {"parameters": parameters, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.optimizer.load_state_dict(saved["optimizer"])
        with torch.no_grad():
            for name, value in saved["parameters"].items():
                self.trained[name].copy_(value)


def run_steps(
    learner: Learner[Point], duration: Duration, checkpoint: Checkpoint, progress: bool = True
) -> TrainingState[Point]:
    """Train a learner from the start, or from where the checkpoint left it.

    Args:
        duration: epochs make the training repeatable to the bit, however often it is interrupted; minutes fix the
            number of steps at the start.
        checkpoint: is written before the first step, at every point and about every `CHECKPOINT_SECONDS`.

    Returns:
        the state at the end. No gradients are left.

    Raises:
        CompensationError: a loss is not finite and the learner has no state to end in, or the checkpoint is damaged.
    """
    try:
        state = _resumed(learner, checkpoint)
        if state is None:
            state = _started(learner, duration)
            _save(learner, state, checkpoint)
        with learner.steps.bar(learner.doing, state.step, state.total_steps, progress) as bar:
            _train(learner, state, duration, checkpoint, bar)
    finally:
        learner.optimizer.zero_grad()
    return state


def _started(learner: Learner[Point], duration: Duration) -> TrainingState[Point]:
    """The state before the first step, when the number of steps is fixed."""
    start = time.perf_counter()
    state: TrainingState[Point] = TrainingState()
    if learner.point_at_start and (point := learner.point(state)) is not None:
        state.points.append(point)
    if duration.minutes is None:
        state.total_steps = learner.steps.in_epochs(duration.value)
    else:
        spent = time.perf_counter() - start  # on the first point; each of the others takes as long
        left = 60 * duration.minutes - (1 + learner.point_count) * spent
        state.total_steps = learner.steps.in_seconds(left, learner.gradients, learner.optimizer)
    state.seconds = time.perf_counter() - start
    return state


def _train(
    learner: Learner[Point],
    state: TrainingState[Point],
    duration: Duration,
    checkpoint: Checkpoint,
    bar: "tqdm[Any]",
) -> None:
    points_at = evenly(learner.point_count, state.total_steps)
    clock = saved_at = time.perf_counter()
    while state.step < state.total_steps and not state.ended:
        _take_step(learner, state)
        if state.ended:
            _save(learner, state, checkpoint)
            break
        now = time.perf_counter()
        state.seconds, clock = state.seconds + now - clock, now
        bar.update(learner.steps.batch_size)
        at_point = state.step in points_at
        if not at_point and state.step % CHECK_EVERY:
            continue
        late = duration.minutes is not None and state.seconds > LATE * 60 * duration.minutes
        checks = late, now - saved_at > CHECKPOINT_SECONDS
        state.ended, save_is_due = from_main(learner.steps.accelerator, checks)
        if at_point or state.ended:
            _add_point(learner, state, bar)
            save_is_due = True
        if save_is_due:
            _save(learner, state, checkpoint)
            saved_at = time.perf_counter()


def evenly(count: int, total_steps: int) -> set[int]:
    """Steps after which the points of a course are due; the last step is one of them.

    Fewer than `count` where there are fewer steps.
    """
    return {math.ceil(total_steps * (i + 1) / count) for i in range(count)}


def _take_step(learner: Learner[Point], state: TrainingState[Point]) -> None:
    loss = learner.gradients(state.step)
    if not math.isfinite(loss):
        learner.diverged(state, loss)
        state.ended = True
        return
    for group in learner.optimizer.param_groups:
        group["lr"] = learner.learning_rate(state.step, state.total_steps)
    learner.optimizer.step()
    learner.optimizer.zero_grad()
    state.step += 1
    state.losses.append(loss)


def _add_point(learner: Learner[Point], state: TrainingState[Point], bar: "tqdm[Any]") -> None:
    point = learner.point(state)
    state.losses.clear()
    if point is None:
        state.ended = True
        return
    state.points.append(point)
    state.ended = state.ended or learner.gives_up(state)
    bar.set_postfix_str(learner.caption(point))


# ---- checkpoints


def _save(learner: Learner[Point], state: TrainingState[Point], checkpoint: Checkpoint) -> None:
    checkpoint.save({"format": FORMAT, "state": asdict(state), "learner": learner.state_dict()})


def _resumed(learner: Learner[Point], checkpoint: Checkpoint) -> TrainingState[Point] | None:
    """The saved state, with the learner as it was then; `None` without a checkpoint of this format."""
    saved = checkpoint.load()
    if saved is None or saved.get("format") != FORMAT:
        return None
    with checkpoint.restoring():
        learner.load_state_dict(saved["learner"])
        points = [learner.point_type(**point) for point in saved["state"]["points"]]
        return TrainingState(**{**saved["state"], "points": points})
