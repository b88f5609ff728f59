"""Learning importance scores without a Trainer: all weights frozen, only gates move, and the dense model teaches them.

The loss is

    mean over images of KL(dense ‖ gated) + w' CE(gated, label) + λ Σ cost · |score| / Σ cost

on the images that calibrate; `outputs.divergence` where the output is more, or less, than an image's classes. Dense and
gated model are the same object, its gates off and on. At scores of 1 the KL has no gradient: at first the penalty pulls
everything down alike, and what the model needs holds out. Adam follows the sum and a cosine lets it settle.
"""

import math
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..architectures.outputs import class_logits, divergence, is_classifier, outputs_of, thinned_classes
from ..architectures.running import evaluation_mode, own_turn, passing
from ..architectures.subject import Subject
from ..errors import DataError
from ..images.augmentation import augment
from ..images.images import Batch, ImageSource
from ..runtime.checkpoints import Checkpoint
from ..runtime.devices import autocast, resolve_precision
from ..runtime.distributed import sum_in_place
from ..runtime.identity import SETTINGS, facts_of
from ..runtime.run import Run
from ..statistics.identity import identity_of
from ..training.loop import Learner, TrainingState, run_steps
from ..training.steps import Steps, sum_gradients
from .gates import (
    GATE_LEARNING_RATE,
    add_penalty_gradient,
    attach_gates,
    detach_gates,
    gated_layers,
    gates_of,
    gates_off,
    scores,
)
from .report import NEAR_ZERO, GatePoint, GateReport, LearnedImportance, figures_of, layer_figures

BATCH_SIZE = 16
"""Images in a step, over all processes: many small steps bring scores further than few exact ones."""
BETAS = (0.9, 0.99)
"""Of Adam."""
POINTS = 20
"""Entries of the course, evenly over the steps."""


def learn_gates(
    subject: Subject, images: ImageSource, run: Run, checkpoint: Checkpoint | None = None
) -> LearnedImportance:
    """Learn which neurons and heads a dense model needs; it is left as it was.

    Args:
        subject: the model, on its device; float32 for scores that are more than rough.
        images: to learn from; their labels are used where `label_weight` asks for them.
        run: the config's `mlp` and `attention` say what gets scores, its `gate_duration` how long they are learned:
            with epochs, a run that was interrupted ends with the same scores as one that was not. Several processes
            share every batch, and all get the same scores.
        checkpoint: where a run goes on after an interruption; without one it starts again.

    Returns:
        scores (neurons,) or (heads,) by the name of the layer that reads the features, and the report.

    Raises:
        ConfigError: `config` prunes neither neurons nor heads.
        CompensationError: the loss is not finite.
        DataError: not one image can be read.
    """
    model = subject.model
    with own_turn(model):
        attach_gates(model, run.config)
        try:
            learner = GateLearner(subject, images, run)
            with evaluation_mode(model, learner.trained.values()):
                kept = checkpoint or Checkpoint(None, run.accelerator)
                state = run_steps(learner, run.config.gates_duration, kept, run.progress)
            learned = scores(model)
        finally:
            detach_gates(model)
    images.account(run.accelerator)
    layers = layer_figures(learned)
    l1 = run.config.gate_l1
    report = GateReport(len(images), l1, GATE_LEARNING_RATE, state.points, layers, state.seconds)
    return LearnedImportance(learned, report)


class GateLearner(Learner[GatePoint]):
    """Trains the gates that are attached to `model`."""

    doing = "learning scores"
    point_type = GatePoint
    point_count = POINTS

    def __init__(self, subject: Subject, images: ImageSource, run: Run) -> None:
        self.subject, self.model, self.config, self.accelerator = subject, subject.model, run.config, run.accelerator
        self.trained = gates_of(self.model)
        self.optimizer = torch.optim.Adam(self.trained.values(), lr=GATE_LEARNING_RATE, betas=BETAS)
        self.steps = Steps(images, subject.processor, BATCH_SIZE, run.config.seed, run.accelerator)
        self.precision = resolve_precision(run.config.precision, self.model.device)
        self.remedy = 'Use precision="float32".'
        self.classes = is_classifier(self.model)

    def learning_rate(self, step: int, total_steps: int) -> float:
        """Follows a cosine to 0."""
        return GATE_LEARNING_RATE * ((1 + math.cos(math.pi * step / total_steps)) / 2)

    def point(self, state: TrainingState[GatePoint]) -> GatePoint:
        """The mean loss since the last point, and how large the scores are."""
        loss, figures = statistics.fmean(state.losses), figures_of(scores(self.model))
        return GatePoint(state.step, state.seconds, state.step * self.steps.batch_size, loss, *figures)

    def caption(self, point: GatePoint) -> str:
        """The share of scores that are nearly 0."""
        return f"{point.near_zero:.0%} below {NEAR_ZERO}"

    def gradients(self, step: int) -> float:
        """Of the mean loss over the batch of a step and of the penalty; returns the loss without the penalty."""
        total = torch.zeros(2, dtype=torch.float64, device=self.model.device)
        for batch, draws in self.steps.own_part(step):
            with passing(self.model, batch.pixel_values, lower="the number of images in a step (learning.BATCH_SIZE)"):
                loss = self._loss(batch, draws)
                loss.backward()
            total += torch.stack([loss.detach().double(), total.new_tensor(len(batch.pixel_values))])
        sum_gradients(self.accelerator, self.trained.values())
        sum_in_place(self.accelerator, [total])
        loss_sum, count = total.tolist()
        for gate in self.trained.values():
            if gate.grad is not None:
                gate.grad /= max(count, 1)
        add_penalty_gradient(self.model, self.config.gate_l1)
        return loss_sum / max(count, 1)

    def _loss(self, batch: Batch, draws: Tensor) -> Tensor:
        """Sum of the images' losses."""
        model, device = self.model, self.model.device
        pixel_values = augment(batch.pixel_values, draws, self.config.augmentation)
        with autocast(model, self.precision):
            with torch.no_grad(), gates_off(model):
                target = outputs_of(self.subject, pixel_values, batch.inputs)
            output = outputs_of(self.subject, pixel_values, batch.inputs)
        loss = divergence(thinned_classes(target), thinned_classes(output)).sum()
        if self.classes and self.config.label_weight and batch.labels is not None:
            labels = batch.labels.to(device)
            loss = loss + self.config.label_weight * functional.cross_entropy(
                class_logits(output), labels, reduction="sum"
            )
        return loss


def gates_for(
    subject: Subject, images: ImageSource | None, run: Run, beside: str | Path | None
) -> tuple[LearnedImportance, Checkpoint]:
    """`learn_gates` with a checkpoint beside that file.

    Raises:
        DataError: there are no images, or none that can be read.
    """
    if images is None:
        raise DataError(
            'criterion="gates" learns scores from images: give some (images=…, --data), or scores that were learned '
            "before (importance=…)."
        )
    kept = gate_checkpoint(beside, subject, images, run)
    return learn_gates(subject, images, run, kept), kept


def gate_checkpoint(beside: str | Path | None, subject: Subject, images: ImageSource, run: Run) -> Checkpoint:
    """A checkpoint beside that file, named after everything that the scores are made from; `None` keeps none."""
    if beside is None:
        return Checkpoint(None, run.accelerator)
    config = run.config
    names = ("gate_l1", "gate_duration", "label_weight", "augmentation", "precision", "seed")
    settings: dict[str, Any] = {name: getattr(config, name) for name in names}
    settings["scores"] = gated_layers(subject.model, config)
    identity = identity_of(subject, images, run.accelerator, labels=config.label_weight > 0)
    return Checkpoint.beside(beside, "gates", {**identity, SETTINGS: facts_of(settings)}, run.accelerator)
