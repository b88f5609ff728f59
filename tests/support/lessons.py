"""Distillations of tiny models: what they are told, which steps they take and which states are judged."""

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from transformers import PreTrainedModel

from hf_vitcompress.compensation.course import CompensationPoint
from hf_vitcompress.compensation.distillation import Distillation
from hf_vitcompress.durations import Duration
from hf_vitcompress.evaluation.reference import Reference
from support.students import Case, checkpoint, compressed, state_of

FIVE_EPOCHS = Duration(5.0, "epochs")
"""20 steps on the images of a `lesson`, so that two steps lie between evaluations."""


def lesson(**settings: Any) -> Case:
    """A student that has lost something, and four steps in an epoch for it."""
    lessons = {"metric": "activation", "distill_batch_size": 16, "learning_rate": 1e-3, "feature_weight": 1.0}
    return compressed(**{**lessons, **settings})


def learn(
    case: Case, path: Path | None = None, duration: Duration = FIVE_EPOCHS
) -> tuple[PreTrainedModel, list[CompensationPoint]]:
    student = case.student()
    return student, case.distillation(student).run(duration, checkpoint(path))


def judged(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> list[dict[str, Tensor]]:
    """The held-out images say this; the list gets the states that they were asked about."""
    left, states = list(losses), []

    def loss_of(_: Reference, model: PreTrainedModel) -> float:
        states.append(state_of(model))
        return left.pop(0)

    monkeypatch.setattr(Reference, "loss_of", loss_of)
    return states


def counted(monkeypatch: pytest.MonkeyPatch, stop_before: int = -1) -> list[int]:
    """The steps that are taken; the one of number `stop_before` breaks off."""
    steps: list[int] = []
    take = Distillation.gradients

    def taking(self: Distillation, step: int) -> float:
        if step == stop_before:
            raise KeyboardInterrupt
        steps.append(step)
        return take(self, step)

    monkeypatch.setattr(Distillation, "gradients", taking)
    return steps


def comparable(points: list[CompensationPoint]) -> list[tuple[str, int, float]]:
    """Points without their seconds."""
    return [(point.stage, point.images, point.loss) for point in points]
