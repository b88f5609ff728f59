"""Repair after the closed form: residual tensors, then distillation, and what came of them."""

import dataclasses
import time
from functools import cached_property
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from ..config import BUDGET_SETTINGS
from ..durations import Duration
from ..errors import DataError
from ..evaluation.reference import Reference
from ..images.digest import images_facts
from ..images.images import ImageSource
from ..planning.plan import CompressionPlan
from ..planning.planner import Planner
from ..runtime.checkpoints import Checkpoint
from ..runtime.identity import SETTINGS, Identity, facts_of
from ..runtime.run import Run
from .course import CompensationPoint, CompensationReport
from .distillation import Distillation, chosen_learning_rate, trained_parameters
from .optimizer import RotatedAdamW, eigenbases
from .residual import ResidualCompensation

LARGEST_HELD_OUT_SHARE = 0.2
"""Of few images, no more than this only judge."""


class Compensator:
    """Compensates compressed models of one dense model, on the same images.

    Args:
        planner: of the dense model, which is left as it was.
        images: to learn from; the last of them are held out. Labels are used where `label_weight` asks for them.
        run: the recipe and the processes.
        checkpoint: path that the stages' own checkpoint files begin with; `None` keeps none.

    Attributes:
        stages: these files, of the stages that have begun.

    Raises:
        DataError: there are fewer than two images.
    """

    def __init__(self, planner: Planner, images: ImageSource, run: Run, checkpoint: str | Path | None = None) -> None:
        if len(images) < 2:
            raise DataError(
                f"Compensation needs at least two images, one to learn from and one to judge by; {images.name} has "
                f"{len(images)}."
            )
        config = run.config
        self.planner, self.work, self.config, self.checkpoint = planner, run, config, checkpoint
        self.stages: list[Checkpoint] = []
        held_out = max(1, min(config.held_out_images, int(LARGEST_HELD_OUT_SHARE * len(images))))
        end = len(images) - held_out
        self.train = images.select(
            range(end if config.compensation_images is None else min(end, config.compensation_images))
        )
        self.reference = Reference.of(planner.subject, images.select(range(end, len(images))), run)
        if run.config.label_weight:
            self.reference.distrust_guesses("the model learns from the dense one alone")

    @property
    def checkpoints(self) -> list[Path]:
        """The files of the stages that have begun."""
        return [stage.path for stage in self.stages if stage.path is not None]

    @property
    def spent(self) -> float:
        """Seconds of these stages in earlier runs, which were interrupted."""
        return sum(stage.spent for stage in self.stages)

    def run(self, student: PreTrainedModel, plan: CompressionPlan, share: float = 1.0) -> CompensationReport:
        """Compensate `student` in place, as the config says.

        Args:
            student: the compressed model of `plan`.
            share: of the distillation's minutes or epochs; for trials, which keep no checkpoints.
        """
        start = time.perf_counter()
        config, dtypes = self.config, {name: tensor.dtype for name, tensor in _tensors(student)}
        student.float()  # small steps would be lost in half precision
        points: list[CompensationPoint] = []
        try:
            if config.solves_residuals:
                images = self.train.select(range(min(len(self.train), config.num_images or len(self.train))))
                residuals = ResidualCompensation(student, self.planner, plan, images, self.reference, self.work)
                points = residuals.run(self._stage("residual", plan, share))
            if config.distills:
                points = self._distill(student, plan, share, points)
        finally:
            for name, tensor in _tensors(student):
                tensor.data = tensor.data.to(dtypes[name])
        return CompensationReport(
            method=config.compensation,
            images=len(self.train),
            held_out_images=self.reference.images,
            points=points,
            seconds=time.perf_counter() - start + self.spent,
        )

    def _distill(
        self, student: PreTrainedModel, plan: CompressionPlan, share: float, points: list[CompensationPoint]
    ) -> list[CompensationPoint]:
        config = self.config
        duration = config.distillation_duration.scaled(share)
        spent = points[-1].seconds if points else 0.0
        if duration.minutes is not None:
            duration = Duration(duration.minutes - spent / 60, "minutes")
        optimizer = None
        if config.optimizer == "preconditioned":
            optimizer = RotatedAdamW(
                trained_parameters(student).values(),
                eigenbases(student, self.planner.layers, self.planner.statistics),
                chosen_learning_rate(config, self.planner.subject.model),
                self.reference.precision,
            )
        teaching = Distillation(student, self.planner.subject, self.train, self.reference, self.work, optimizer)
        later = teaching.run(duration, self._stage("distill", plan, share))
        return points + [dataclasses.replace(point, seconds=point.seconds + spent) for point in later]

    def _stage(self, stage: str, plan: CompressionPlan, share: float) -> Checkpoint:
        return self.checkpoint_for(stage, plan) if share == 1.0 else Checkpoint(None, self.work.accelerator)

    def checkpoint_for(
        self, stage: str, plan: CompressionPlan | None = None, validation: Reference | None = None
    ) -> Checkpoint:
        """Named after all that the result of a stage is made from, so that no other run goes on with it.

        Args:
            plan: that the stage compensates.
            validation: the images that the stage measures an accuracy on.
        """
        accelerator, statistics = self.work.accelerator, self.planner.statistics
        if self.checkpoint is None:
            return Checkpoint(None, accelerator)
        config = {name: value for name, value in self.config.to_dict().items() if name not in BUDGET_SETTINGS}
        # Of plans alike, other scores make other models.
        method = self.planner.method if self.config.criterion == "gates" else self.config.method
        made_from = statistics.made_from
        identity = {
            "statistics of other settings": made_from.pop(SETTINGS),
            **made_from,
            **self._images,
            SETTINGS: facts_of({**config, "method": method}),
        }
        if plan is not None:
            tokens = {"tokens": plan.tokens} if plan.tokens else {}
            identity["another plan"] = facts_of({"layers": plan.layers, **tokens})
        if validation is not None:
            identity["other validation images"] = images_facts(validation.source, accelerator, labels=True)
        kept = Checkpoint.beside(self.checkpoint, stage, identity, accelerator)
        self.stages.append(kept)
        return kept

    @cached_property
    def _images(self) -> Identity:
        """Those that are learnt from and those that judge."""
        accelerator, labels = self.work.accelerator, self.config.label_weight > 0
        return {
            "other images to learn from": images_facts(self.train, accelerator, labels),
            "other images to judge by": images_facts(self.reference.source, accelerator, labels),
        }


def _tensors(model: PreTrainedModel) -> list[tuple[str, Tensor]]:
    """Its parameters and buffers of real numbers, by name."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return [(name, tensor) for name, tensor in named if tensor.is_floating_point()]
