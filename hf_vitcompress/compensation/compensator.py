"""Repair after the closed form: residual tensors, then distillation, and what came of them."""

import dataclasses
import hashlib
import json
import time
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers import PreTrainedModel

from ..config import BUDGETS, CompressionConfig
from ..errors import DataError
from ..evaluation.reference import Reference
from ..images.images import ImageSource
from ..planning.plan import CompressionPlan
from ..planning.planner import Prepared
from ..runtime.checkpoints import Checkpoint
from ..runtime.distributed import new_accelerator
from ..statistics.statistics import Statistics
from .course import CompensationPoint, CompensationReport
from .distillation import Distillation, trained_parameters
from .optimizer import RotatedAdamW, eigenbases
from .residual import ResidualCompensation

LARGEST_HELD_OUT_SHARE = 0.2
"""Of few images, no more than this only judge."""


class Compensator:
    """Compensates compressed models of one dense model, on the same images.

    Args:
        prepared: of the dense model, which is left as it was.
        statistics: of the dense model.
        images: to learn from; the last of them are held out. Labels are used where `label_weight` asks for them.
        checkpoint: path that the stages' own checkpoint files begin with; `None` keeps none.

    Attributes:
        checkpoints: these files.

    Raises:
        DataError: there are fewer than two images.
    """

    def __init__(
        self,
        prepared: Prepared,
        statistics: Statistics,
        images: ImageSource,
        config: CompressionConfig,
        image_processor: Any = None,
        checkpoint: str | Path | None = None,
        progress: bool = True,
        accelerator: Accelerator | None = None,
    ) -> None:
        if len(images) < 2:
            raise DataError(
                f"Compensation needs at least two images, one to learn from and one to judge by; {images.name} has "
                f"{len(images)}."
            )
        self.prepared, self.statistics, self.config, self.processor = prepared, statistics, config, image_processor
        self.checkpoint, self.progress = checkpoint, progress
        self.checkpoints: list[Path] = []
        self.accelerator = accelerator or new_accelerator()
        held_out = max(1, min(config.held_out_images, int(LARGEST_HELD_OUT_SHARE * len(images))))
        end = len(images) - held_out
        self.train = images.select(
            range(end if config.compensation_images is None else min(end, config.compensation_images))
        )
        held_out_images = images.select(range(end, len(images)))
        self.reference = Reference.of(prepared.model, held_out_images, image_processor, config, self.accelerator)

    def run(self, student: PreTrainedModel, plan: CompressionPlan, share: float = 1.0) -> CompensationReport:
        """Compensate `student` in place, as the config says.

        Args:
            student: the compressed model of `plan`.
            share: of the distillation's minutes or epochs; for trials, which keep no checkpoints.
        """
        start = time.perf_counter()
        config, dtype = self.config, student.dtype
        student.float()  # small steps would be lost in half precision
        points: list[CompensationPoint] = []
        try:
            if config.solves_residuals:
                points = ResidualCompensation(
                    student,
                    self.prepared,
                    plan,
                    self.statistics,
                    self.train.select(range(min(len(self.train), config.num_images or len(self.train)))),
                    self.reference,
                    config,
                    self.processor,
                ).run(self._stage("residual", plan, share), self.progress)
            if config.distills:
                points = self._distill(student, plan, share, points)
        finally:
            student.to(dtype=dtype)  # type: ignore[call-arg]
        return CompensationReport(
            method=config.compensation,
            images=len(self.train),
            held_out_images=self.reference.images,
            points=points,
            seconds=time.perf_counter() - start,
        )

    def _distill(
        self, student: PreTrainedModel, plan: CompressionPlan, share: float, points: list[CompensationPoint]
    ) -> list[CompensationPoint]:
        duration = self.config.distillation_duration.scaled(share)
        config = dataclasses.replace(self.config, compensation_duration=str(duration))
        spent = points[-1].seconds if points else 0.0
        minutes = None if duration.minutes is None else duration.minutes - spent / 60
        optimizer = None
        if config.optimizer == "preconditioned":
            optimizer = RotatedAdamW(
                trained_parameters(student).values(),
                eigenbases(student, self.prepared.layers, self.statistics),
                config.learning_rate,
                self.reference.precision,
            )
        teaching = Distillation(
            student, self.prepared.model, self.train, self.reference, config, self.processor, optimizer
        )
        later = teaching.run(minutes, self._stage("distill", plan, share), self.progress)
        return points + [dataclasses.replace(point, seconds=point.seconds + spent) for point in later]

    def _stage(self, stage: str, plan: CompressionPlan, share: float) -> Checkpoint:
        return self.checkpoint_for(stage, plan.layers) if share == 1.0 else Checkpoint(None, self.accelerator)

    def checkpoint_for(self, stage: str, *depends_on: Any) -> Checkpoint:
        """Named after all that the result of a stage depends on, so that no other run goes on with it."""
        if self.checkpoint is None:
            return Checkpoint(None, self.accelerator)
        settings = {name: value for name, value in self.config.to_dict().items() if name not in BUDGETS}
        images = [self.train.name, len(self.train), self.reference.images]
        known = [self.statistics.fingerprint, self.statistics.settings, settings, images, *depends_on]
        if self.config.criterion == "gates":
            known.append(self.prepared.method)  # of plans alike, other scores make other models
        digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:12]
        path = Path(self.checkpoint)
        path = path.with_name(f"{path.name}.{stage}-{digest}")
        self.checkpoints.append(path)
        return Checkpoint(path, self.accelerator)
