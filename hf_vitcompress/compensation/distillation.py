"""The dense model teaches the compressed one, as a whole and without labels.

The loss of an image is

    T² KL(softmax(z/T) ‖ softmax(ẑ/T)) + w mean_l mean (LN(ĥ_l) − LN(h_l))² + w' CE(ẑ, label)

with logits z and layer-normalised hidden states h after four evenly spaced blocks (Hinton et al., arXiv 1503.02531;
hidden states as in FitNets, Romero et al., arXiv 1412.6550). The KL divergence has one number a class to say, and
little of a gradient where the two models agree; hidden states say more, about every token. Where a model says more, or
less, than an image's classes, `outputs.divergence` stands in the place of the KL divergence; of the pixels of a
segmentation a part that lies evenly over them is compared.
"""

import math
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel, get_cosine_schedule_with_warmup

from ..architectures.layers import block_names
from ..architectures.outputs import class_logits, divergence, outputs_of, thinned_classes
from ..architectures.running import evaluation_mode
from ..config import CompressionConfig
from ..errors import CompensationError
from ..evaluation.reference import Reference
from ..images.augmentation import augment
from ..images.images import Batch, ImageSource
from ..modeling_factored import compressed_modules
from ..runtime.checkpoints import CHECKPOINT_SECONDS, Checkpoint
from ..runtime.devices import autocast, resolve_precision
from ..runtime.distributed import from_main, sum_in_place
from ..runtime.hooks import Tap
from ..training.steps import Steps, sum_gradients
from .course import CompensationPoint

FEATURE_LAYERS = 4
EVALUATIONS = 10
"""Times that the held-out images are asked, evenly over the steps."""
PATIENCE = 3
"""Times in a row that the held-out loss may rise in the second half of the steps.

In the first half large steps raise it, and the smaller ones that follow take that back."""
WARM_UP = 0.05


@dataclass
class State:
    """How far a distillation has come; plain data and tensors."""

    total_steps: int
    step: int = 0
    seconds: float = 0.0
    late: bool = False
    best_loss: float = math.inf
    best: dict[str, Tensor] = field(default_factory=dict)
    points: list[CompensationPoint] = field(default_factory=list)

    @property
    def stopped(self) -> bool:
        """Whether the held-out loss does nothing but rise."""
        losses = [point.loss for point in self.points][-PATIENCE - 1 :]
        rising = len(losses) > PATIENCE and all(later > earlier for earlier, later in pairwise(losses))
        return rising and self.step >= self.total_steps / 2


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


class Distillation:
    """Trains `student` in place; the dense model stays as it was.

    Args:
        images: to learn from, none of them in `reference`.
        reference: the dense model on held-out images, which stop the training and choose its best state.
        optimizer: of the trained parameters; AdamW by default.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        dense: PreTrainedModel,
        images: ImageSource,
        reference: Reference,
        config: CompressionConfig,
        image_processor: Any = None,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        self.student, self.dense, self.reference, self.config = student, dense, reference, config
        self.accelerator: Accelerator = reference.accelerator
        self.trained = trained_parameters(student)
        self.optimizer = optimizer or torch.optim.AdamW(
            self.trained.values(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=0.0
        )
        self.steps = Steps(images, image_processor, config.distill_batch_size, config.seed, self.accelerator)
        self.precision = resolve_precision(config.precision, student.device)
        blocks = block_names(dense)
        chosen = {math.ceil(len(blocks) * (i + 1) / FEATURE_LAYERS) for i in range(FEATURE_LAYERS)}
        self.compared = [blocks[i - 1] for i in sorted(chosen)] if config.feature_weight else []
        """Blocks whose outputs the student is to match."""

    def run(self, minutes: float | None, checkpoint: Checkpoint, progress: bool = True) -> list[CompensationPoint]:
        """Train for `minutes`, or for the config's epochs if `None`; the student ends in its best state.

        Raises:
            CompensationError: the loss was not finite; the student is then in its best state, too.
        """
        start = time.perf_counter()
        with evaluation_mode(self.dense), evaluation_mode(self.student, self.trained.values()):
            state, resumed = self._begin(minutes, start, checkpoint)
            try:
                self._train(state, resumed, minutes, checkpoint, progress)
            finally:
                self.optimizer.zero_grad()
                with torch.no_grad():
                    for name, best in state.best.items():
                        self.trained[name].copy_(best)
        return state.points

    def _begin(self, minutes: float | None, start: float, checkpoint: Checkpoint) -> tuple[State, bool]:
        """A new state, in which the number of steps is fixed; or the one that was saved."""
        if (saved := checkpoint.load()) is not None:
            self.optimizer.load_state_dict(saved["optimizer"])
            with torch.no_grad():
                for name, value in saved["parameters"].items():
                    self.trained[name].copy_(value)
            plain = {**saved["state"], "points": [CompensationPoint(**point) for point in saved["state"]["points"]]}
            return State(**plain), True
        if minutes is None:
            state = State(self.steps.in_epochs(self.config.distillation_duration.epochs or 1.0))
            self._evaluate(state)
        else:
            before = time.perf_counter()
            state = State(1)
            self._evaluate(state)
            evaluations = EVALUATIONS * (time.perf_counter() - before)
            left = 60 * minutes - (time.perf_counter() - start) - evaluations
            state.total_steps = self.steps.in_seconds(left, self._step, self.optimizer)
        state.seconds = time.perf_counter() - start
        return state, False

    def _train(
        self, state: State, resumed: bool, minutes: float | None, checkpoint: Checkpoint, progress: bool
    ) -> None:
        scheduler = get_cosine_schedule_with_warmup(
            self.optimizer, max(1, round(WARM_UP * state.total_steps)), state.total_steps, last_epoch=state.step - 1
        )
        evaluate_at = {math.ceil(state.total_steps * (i + 1) / EVALUATIONS) for i in range(EVALUATIONS)}
        bar = self.steps.bar("distilling", state.step, state.total_steps, progress)
        if not resumed:
            self._save(state, checkpoint)
        clock = saved_at = time.perf_counter()
        with bar:
            while state.step < state.total_steps and not (state.stopped or state.late):
                loss = self._step(state.step)
                if not math.isfinite(loss):
                    raise CompensationError(
                        f"The loss of the distillation became {loss} after {state.step} steps; the best state so far "
                        f"is kept. Lower learning_rate ({self.config.learning_rate:g})."
                    )
                self.optimizer.step()
                scheduler.step()
                self.optimizer.zero_grad()
                state.step += 1
                now = time.perf_counter()
                state.seconds, clock = state.seconds + now - clock, now
                bar.update(self.steps.batch_size)
                if state.step in evaluate_at:
                    self._evaluate(state)
                    bar.set_postfix_str(f"held-out loss {state.points[-1].loss:.4f}")
                due = from_main(self.accelerator, now - saved_at > CHECKPOINT_SECONDS) if state.step % 8 == 0 else False
                if due or state.step in evaluate_at:
                    # Where the machine has become slower than it was when the steps were counted.
                    late = minutes is not None and state.seconds > 66 * minutes
                    state.late = from_main(self.accelerator, late)
                    self._save(state, checkpoint)
                    saved_at = time.perf_counter()

    def _step(self, step: int) -> float:
        """Gradients of the mean loss over the batch of a step, summed over the processes; returns that loss."""
        total = torch.zeros((), device=self.student.device)
        for batch, draws in self.steps.own_part(step):
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
        with torch.no_grad(), autocast(device, self.precision), Tap(self.dense, self.compared) as dense_tap:
            target = outputs_of(self.dense, pixel_values, batch.inputs)
        with autocast(device, self.precision), Tap(self.student, self.compared) as tap:
            output = outputs_of(self.student, pixel_values, batch.inputs)
        compared = thinned_classes(target), thinned_classes(output)
        loss = divergence(*compared, config.temperature, torch.float32).sum()
        if self.reference.classes and config.label_weight and batch.labels is not None:
            labels = batch.labels.to(device)
            loss = loss + config.label_weight * functional.cross_entropy(class_logits(output), labels, reduction="sum")
        if self.compared:
            pairs = zip(dense_tap.outputs.values(), tap.outputs.values(), strict=True)
            loss = loss + config.feature_weight * feature_error(pairs)
        return loss

    def _evaluate(self, state: State) -> None:
        loss = self.reference.loss_of(self.student)
        state.points.append(CompensationPoint("distill", state.seconds, state.step * self.steps.batch_size, loss))
        if loss < state.best_loss:
            state.best_loss = loss
            state.best = {name: parameter.detach().clone() for name, parameter in self.trained.items()}

    def _save(self, state: State, checkpoint: Checkpoint) -> None:
        plain = {**vars(state), "points": [asdict(point) for point in state.points]}
        parameters = {name: parameter.detach() for name, parameter in self.trained.items()}
        checkpoint.save({"state": plain, "parameters": parameters, "optimizer": self.optimizer.state_dict()})


def feature_error(pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Sum over images of the mean squared difference of layer-normalised hidden states (n, …, d), over the pairs."""
    errors = []
    for pair in pairs:
        taught, learnt = (functional.layer_norm(hidden.float(), hidden.shape[-1:]) for hidden in pair)
        errors.append((learnt - taught).square().flatten(1).mean(1).sum())
    return torch.stack(errors).mean()
