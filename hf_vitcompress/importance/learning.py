"""Learning importance scores without a Trainer: all weights frozen, only gates move, and the dense model teaches them.

The loss is

    mean over images of KL(dense ‖ gated) + w' CE(gated, label) + λ Σ cost · |score| / Σ cost

on the images that calibrate; `outputs.divergence` where the output is more, or less, than an image's classes. Dense and
gated model are the same object, its gates off and on. At scores of 1 the KL has no gradient: at first the penalty pulls
everything down alike, and what the model needs holds out. Adam follows the sum and a cosine lets it settle.
"""

import hashlib
import json
import math
import statistics
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from ..architectures.outputs import class_logits, divergence, is_classifier, outputs_of, thinned_classes
from ..architectures.running import evaluation_mode
from ..config import CompressionConfig
from ..errors import CompensationError
from ..images.augmentation import augment
from ..images.images import Batch, ImageSource
from ..runtime.checkpoints import CHECKPOINT_SECONDS, Checkpoint
from ..runtime.devices import autocast, resolve_precision
from ..runtime.distributed import from_main, new_accelerator, sum_in_place
from ..runtime.weights import fingerprint
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
from .report import NEAR_ZERO, GatePoint, GateReport, figures_of, layer_figures

BATCH_SIZE = 16
"""Images in a step, over all processes: many small steps bring scores further than few exact ones."""
BETAS = (0.9, 0.99)
"""Of Adam."""
POINTS = 20
"""Entries of the course, evenly over the steps."""
SAVE_EVERY = 8
"""Steps after which the clock is asked whether a checkpoint is due."""
LATE = 1.1
"""Where the machine has become slower than it was when the steps were counted, this multiple of the minutes ends it."""


@dataclass
class _State:
    """How far the learning has come; plain data. `losses` are those since the last point."""

    total_steps: int
    step: int = 0
    seconds: float = 0.0
    late: bool = False
    losses: list[float] = field(default_factory=list)
    points: list[GatePoint] = field(default_factory=list)


def learn_gates(
    model: PreTrainedModel,
    images: ImageSource,
    config: CompressionConfig,
    image_processor: object = None,
    checkpoint: Checkpoint | None = None,
    progress: bool = True,
    accelerator: Accelerator | None = None,
) -> tuple[dict[str, Tensor], GateReport]:
    """Learn which neurons and heads a dense model needs; it is left as it was.

    Args:
        model: on its device; float32 for scores that are more than rough.
        images: to learn from; their labels are used where `label_weight` asks for them.
        config: `mlp` and `attention` say what gets scores; `gate_duration` says how long.
        checkpoint: where to keep how far it has come; a learning that was killed ends with the same scores as one that
            was not, where epochs fix its length.
        accelerator: several processes share every batch, and all get the same scores.

    Returns:
        scores (neurons,) or (heads,) by the name of the layer that reads the features, and the report.

    Raises:
        ConfigError: `config` prunes neither neurons nor heads.
        CompensationError: the loss was not finite.
        DataError: not one image can be read.
    """
    accelerator = accelerator or new_accelerator()
    attach_gates(model, config)
    try:
        learning = _Learning(model, images, config, image_processor, accelerator)
        with evaluation_mode(model, learning.gates.values()):
            state = learning.run(checkpoint or Checkpoint(None, accelerator), progress)
        learned = scores(model)
    finally:
        detach_gates(model)
    layers = layer_figures(learned)
    report = GateReport(len(images), config.gate_l1, GATE_LEARNING_RATE, state.points, layers, state.seconds)
    return learned, report


class _Learning:
    """The gates of `model`, in training."""

    def __init__(
        self,
        model: PreTrainedModel,
        images: ImageSource,
        config: CompressionConfig,
        image_processor: object,
        accelerator: Accelerator,
    ) -> None:
        self.model, self.images, self.config, self.accelerator = model, images, config, accelerator
        self.duration = config.gates_duration
        self.gates: dict[str, nn.Parameter] = gates_of(model)
        self.optimizer = torch.optim.Adam(self.gates.values(), lr=GATE_LEARNING_RATE, betas=BETAS)
        self.steps = Steps(images, image_processor, BATCH_SIZE, config.seed, accelerator)
        self.precision = resolve_precision(config.precision, model.device)
        self.classes = is_classifier(model)
        self.seen = 0
        """Images that could be read."""

    def run(self, checkpoint: Checkpoint, progress: bool) -> _State:
        start = time.perf_counter()
        saved = checkpoint.load()
        if saved is not None:
            self.optimizer.load_state_dict(saved["optimizer"])
            with torch.no_grad():
                for name, value in saved["scores"].items():
                    self.gates[name].copy_(value)
            state = _State(**{**saved["state"], "points": [GatePoint(**point) for point in saved["state"]["points"]]})
        elif self.duration.epochs is not None:
            state = _State(self.steps.in_epochs(self.duration.epochs))
        else:
            left = 60 * self.duration.value - (time.perf_counter() - start)
            state = _State(self.steps.in_seconds(left, self._gradients, self.optimizer))
        if saved is None:
            state.seconds = time.perf_counter() - start
            self._save(state, checkpoint)
        try:
            self._train(state, checkpoint, progress)
        finally:
            self.optimizer.zero_grad()
        return state

    def _train(self, state: _State, checkpoint: Checkpoint, progress: bool) -> None:
        noted = {math.ceil(state.total_steps * (i + 1) / POINTS) for i in range(POINTS)}
        bar = self.steps.bar("learning scores", state.step, state.total_steps, progress)
        self.seen = 0
        first = state.step
        clock = saved_at = time.perf_counter()
        with bar:
            while state.step < state.total_steps and not state.late:
                self._update(state)
                now = time.perf_counter()
                state.seconds, clock = state.seconds + now - clock, now
                bar.update(self.steps.batch_size)
                if state.step % SAVE_EVERY == 0 and self.duration.minutes is not None:
                    late = state.seconds > 60 * LATE * self.duration.minutes
                    state.late = from_main(self.accelerator, late)
                if state.step in noted or state.late:
                    self._note(state)
                    bar.set_postfix_str(f"{state.points[-1].near_zero:.0%} below {NEAR_ZERO}")
                due = state.step % SAVE_EVERY == 0 and from_main(self.accelerator, now - saved_at > CHECKPOINT_SECONDS)
                if due or state.late or state.step == state.total_steps:
                    self._save(state, checkpoint)
                    saved_at = time.perf_counter()
        if state.step > first and self.seen == 0:
            raise self.images.unreadable()

    def _update(self, state: _State) -> None:
        """One step of the optimizer, on a cosine to 0."""
        loss = self._gradients(state.step)
        if not math.isfinite(loss):
            raise CompensationError(
                f'The loss became {loss} after {state.step} steps of learning scores. Use precision="float32".'
            )
        add_penalty_gradient(self.model, self.config.gate_l1)
        share_left = (1 + math.cos(math.pi * state.step / state.total_steps)) / 2
        self.optimizer.param_groups[0]["lr"] = GATE_LEARNING_RATE * share_left
        self.optimizer.step()
        self.optimizer.zero_grad()
        state.step += 1
        state.losses.append(loss)

    def _gradients(self, step: int) -> float:
        """Gradients of the mean loss over the batch of a step, summed over the processes; returns that loss."""
        total = torch.zeros(2, dtype=torch.float64, device=self.model.device)
        for batch, draws in self.steps.own_part(step):
            loss = self._loss(batch, draws)
            loss.backward()
            total += torch.stack([loss.detach().double(), total.new_tensor(len(batch.pixel_values))])
        sum_gradients(self.accelerator, self.gates.values())
        sum_in_place(self.accelerator, [total])
        loss_sum, count = total.tolist()
        self.seen += int(count)
        for gate in self.gates.values():
            if gate.grad is not None:
                gate.grad /= max(count, 1)
        return loss_sum / max(count, 1)

    def _loss(self, batch: Batch, draws: Tensor) -> Tensor:
        """Sum of the images' losses."""
        model, device = self.model, self.model.device
        pixel_values = augment(batch.pixel_values, draws, self.config.augmentation)
        with autocast(device, self.precision):
            with torch.no_grad(), gates_off(model):
                target = outputs_of(model, pixel_values, batch.inputs)
            output = outputs_of(model, pixel_values, batch.inputs)
        loss = divergence(thinned_classes(target), thinned_classes(output)).sum()
        if self.classes and self.config.label_weight and batch.labels is not None:
            labels = batch.labels.to(device)
            loss = loss + self.config.label_weight * functional.cross_entropy(
                class_logits(output), labels, reduction="sum"
            )
        return loss

    def _note(self, state: _State) -> None:
        loss, figures = statistics.fmean(state.losses), figures_of(scores(self.model))
        images = state.step * self.steps.batch_size
        state.points.append(GatePoint(state.step, state.seconds, images, loss, *figures))
        state.losses.clear()

    def _save(self, state: _State, checkpoint: Checkpoint) -> None:
        plain = {**vars(state), "points": [asdict(point) for point in state.points]}
        checkpoint.save({"state": plain, "scores": scores(self.model), "optimizer": self.optimizer.state_dict()})


def gate_checkpoint(
    beside: str | Path | None,
    model: PreTrainedModel,
    images: ImageSource,
    config: CompressionConfig,
    accelerator: Accelerator,
) -> Checkpoint:
    """A checkpoint beside that file, named after all that the scores depend on; `None` keeps none."""
    if beside is None:
        return Checkpoint(None, accelerator)
    names = ("gate_l1", "gate_duration", "label_weight")
    settings = [getattr(config, name) for name in (*names, "augmentation", "precision", "seed")]
    known = [fingerprint(model), settings, gated_layers(model, config), images.name, len(images)]
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:12]
    path = Path(beside)
    return Checkpoint(path.with_name(f"{path.name}.gates-{digest}"), accelerator)
