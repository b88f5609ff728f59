"""The dense model teaches the compressed one, as a whole and without labels.

The loss of an image is

    T² KL(softmax(z/T) ‖ softmax(ẑ/T)) + w mean_l mean (LN(ĥ_l) − LN(h_l))² + w' CE(ẑ, label)

with logits z and layer-normalised hidden states h after four evenly spaced blocks (Hinton et al., arXiv 1503.02531;
hidden states as in FitNets, Romero et al., arXiv 1412.6550). The KL divergence has one number a class to say, and
little of a gradient where the two models agree; hidden states say more, about every token. A merged token is
compared with each of those that are in it, which draws it to their mean. Where a model says more, or
less, than an image's classes, `outputs.divergence` stands in the place of the KL divergence; of the pixels of a
segmentation a part that lies evenly over them is compared.
"""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from ..architectures.layers import block_names, find_layers
from ..architectures.outputs import class_logits, divergence, outputs_of, thinned_classes
from ..architectures.running import evaluation_mode, passing
from ..architectures.subject import Subject
from ..config import CompressionConfig
from ..durations import Duration
from ..errors import CompensationError, CompensationWarning
from ..evaluation.reference import Reference
from ..images.augmentation import augment
from ..images.images import Batch, ImageSource
from ..modeling_factored import compressed_modules
from ..runtime.checkpoints import Checkpoint
from ..runtime.devices import autocast, resolve_precision
from ..runtime.distributed import sum_in_place
from ..runtime.hooks import Capture
from ..runtime.run import Run
from ..runtime.text import loss_text
from ..tokens_factored import of_every_token
from ..training.loop import Learner, TrainingState, run_steps
from ..training.steps import Steps, sum_gradients
from .course import CompensationPoint

FEATURE_LAYERS = 4
EVALUATIONS = 10
"""Times that the held-out images are asked, evenly over the steps."""
PATIENCE = 3
"""Times in a row that the held-out loss may rise in the second half of the steps.

In the first half large steps raise it, and the smaller ones that follow take that back."""
WARM_UP = 0.05


def trained_parameters(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """What compensation may change: the compressed layers, norms and biases, by name."""
    compressed = set(compressed_modules(model))
    chosen = {}
    for module_name, module in model.named_modules():
        changed = module_name in compressed
        inside = changed or isinstance(module, nn.LayerNorm)
        for name, parameter in module.named_parameters(prefix=module_name, recurse=changed):
            if inside or name.rpartition(".")[2] == "bias":
                chosen[name] = parameter
    return chosen


def chosen_learning_rate(config: CompressionConfig, model: PreTrainedModel) -> float:
    """The config's, or the default one for the width of the dense model's widest blocks."""
    return config.learning_rate_at(max(layer.full_rank for layer in find_layers(model)))


class Distillation(Learner[CompensationPoint]):
    """Trains `student` in place; the dense model stays as it was.

    Args:
        subject: the dense model, which teaches.
        images: to learn from, none of them in `reference`.
        reference: the dense model on held-out images, which stop the training and choose its best state.
        optimizer: of the trained parameters; AdamW by default.
    """

    doing = "distilling"
    point_type = CompensationPoint
    point_count = EVALUATIONS
    point_at_start = True

    def __init__(
        self,
        student: PreTrainedModel,
        subject: Subject,
        images: ImageSource,
        reference: Reference,
        run: Run,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        config = run.config
        self.student, self.dense, self.reference, self.config = student, subject.model, reference, config
        self.teacher, self.pupil, self.progress = subject, subject.like(student), run.progress
        self.accelerator = run.accelerator
        self.largest_rate = chosen_learning_rate(config, subject.model)
        self.label_weight = config.label_weight if reference.trusted else 0.0
        self.trained = trained_parameters(student)
        self.optimizer = optimizer or torch.optim.AdamW(
            self.trained.values(), lr=self.largest_rate, betas=(0.9, 0.99), weight_decay=0.0
        )
        self.steps = Steps(images, subject.processor, config.distill_batch_size, config.seed, self.accelerator)
        self.precision = resolve_precision(config.precision, student.device)
        blocks = block_names(subject.model)
        chosen = {math.ceil(len(blocks) * (i + 1) / FEATURE_LAYERS) for i in range(FEATURE_LAYERS)}
        self.compared = [blocks[i - 1] for i in sorted(chosen)] if config.feature_weight else []
        """Blocks whose outputs the student is to match."""
        self.best_loss = math.inf
        self.best: dict[str, Tensor] = {}
        """The trained parameters where the held-out loss was lowest."""

    def run(self, duration: Duration, checkpoint: Checkpoint) -> list[CompensationPoint]:
        """Train for `duration` and return the course; the student ends in its best state.

        A loss that is not finite ends it there, with a warning.

        Raises:
            CompensationError: the loss is not finite before anything was learnt; the student is then as it was.
        """
        with evaluation_mode(self.dense), evaluation_mode(self.student, self.trained.values()):
            try:
                points = run_steps(self, duration, checkpoint, self.progress).points
                self.steps.images.account(self.accelerator)
                return points
            finally:
                with torch.no_grad():
                    for name, best in self.best.items():
                        self.trained[name].copy_(best)

    def learning_rate(self, step: int, total_steps: int) -> float:
        """Rises linearly over the first steps, then follows a cosine to 0."""
        warm_up = max(1, round(WARM_UP * total_steps))
        if step < warm_up:
            return self.largest_rate * (step / warm_up)
        done = (step - warm_up) / max(1, total_steps - warm_up)
        return self.largest_rate * (1 + math.cos(math.pi * done)) / 2

    def point(self, state: TrainingState[CompensationPoint]) -> CompensationPoint | None:
        """Judge the student on the held-out images, and keep its parameters if they are the best so far."""
        loss = self.reference.loss_of(self.student)
        if not math.isfinite(loss):
            self.diverged(state, loss)
            return None
        if loss < self.best_loss:
            self.best_loss = loss
            self.best = {name: parameter.detach().clone() for name, parameter in self.trained.items()}
        return CompensationPoint("distill", state.seconds, state.step * self.steps.batch_size, loss)

    def caption(self, point: CompensationPoint) -> str:
        """The held-out loss."""
        return f"held-out loss {loss_text(point.loss)}"

    def gives_up(self, state: TrainingState[CompensationPoint]) -> bool:
        """Whether the held-out loss only rises, in the second half of the steps."""
        return state.step >= state.total_steps / 2 and only_rises(state.points)

    def diverged(self, state: TrainingState[CompensationPoint], loss: float) -> None:
        """The best state so far is the result, with a warning; before the first change there is none."""
        config = self.config
        if state.step < 2:  # the first step warms up, at a learning rate of 0
            raise CompensationError(
                f"The loss of the distillation is {loss} before anything has been learnt. Use "
                f'precision="float32" (now {self.precision!r}), or smaller weights in the loss (feature_weight '
                f"{config.feature_weight:g}, label_weight {config.label_weight:g}, 1 / temperature "
                f"{1 / config.temperature:g}); or check the images and the dense model's outputs."
            )
        if self.accelerator.is_main_process:
            warnings.warn(
                f"The loss became {loss} after {state.step} steps of distilling, and the training ended there. The "
                f"result is the best state before that, with a held-out loss of {loss_text(self.best_loss)}. Lower "
                f"learning_rate ({self.largest_rate:g}) to go further.",
                CompensationWarning,
                stacklevel=2,
            )

    def state_dict(self) -> dict[str, Any]:
        """With the best state so far."""
        return {**super().state_dict(), "best_loss": self.best_loss, "best": self.best}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """With the best state so far."""
        super().load_state_dict(saved)
        self.best_loss, self.best = saved["best_loss"], saved["best"]

    def gradients(self, step: int) -> float:
        """Gradients of the mean loss over the batch of a step, summed over the processes; returns that loss."""
        total = torch.zeros((), dtype=torch.float32, device=self.student.device)
        for batch, draws in self.steps.own_part(step):
            with passing(self.student, batch.pixel_values, lower="distill_batch_size"):
                loss = self._loss(batch, draws) / self.steps.batch_size
                loss.backward()
            total += loss.detach()
        sum_gradients(self.accelerator, self.trained.values())
        sum_in_place(self.accelerator, [total])
        return float(total)

    def _loss(self, batch: Batch, draws: Tensor) -> Tensor:
        """Sum of the images' losses."""
        config, device = self.config, self.student.device
        pixel_values = augment(batch.pixel_values, draws, config.augmentation).to(device)
        # Taps, because hooks of `output_hidden_states` would stay on both models.
        with torch.no_grad(), autocast(self.dense, self.precision), Capture(self.dense, self.compared) as dense_tap:
            target = outputs_of(self.teacher, pixel_values, batch.inputs)
        with autocast(self.student, self.precision), Capture(self.student, self.compared) as tap:
            output = outputs_of(self.pupil, pixel_values, batch.inputs)
        compared = thinned_classes(target), thinned_classes(output)
        loss = divergence(*compared, config.temperature, torch.float32).sum()
        if self.reference.classes and self.label_weight and batch.labels is not None:
            labels = batch.labels.to(device)
            loss = loss + self.label_weight * functional.cross_entropy(class_logits(output), labels, reduction="sum")
        if self.compared:
            learnt = (of_every_token(hidden, hidden) for hidden in tap.outputs.values())
            pairs = zip(dense_tap.outputs.values(), learnt, strict=True)
            loss = loss + config.feature_weight * feature_error(pairs)
        return loss


def only_rises(points: Sequence[CompensationPoint]) -> bool:
    """Whether the held-out loss rose `PATIENCE` times in a row, up to the last point."""
    losses = [point.loss for point in points][-PATIENCE - 1 :]
    return len(losses) > PATIENCE and all(later > earlier for earlier, later in pairwise(losses))


def feature_error(pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Sum over images of the mean squared difference of layer-normalised hidden states (n, …, d), over the pairs."""
    errors = []
    for pair in pairs:
        taught, learnt = (functional.layer_norm(hidden.float(), hidden.shape[-1:]) for hidden in pair)
        errors.append((learnt - taught).square().flatten(1).mean(1).sum())
    return torch.stack(errors).mean()
