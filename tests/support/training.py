"""Tiny trainings with a Trainer that knows nothing of compression."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from hf_vitcompress import CompressionConfig
from support.students import lively, random_images

STEPS = 8
CONFIG = CompressionConfig(keep_ratio=0.5, rank_multiple=1, num_images=32, measuring_images=0, precision="float32")
PIXELS = random_images(64)
LABELS = torch.randint(0, 5, (64,), generator=torch.Generator().manual_seed(0))
DATA = [{"pixel_values": image, "labels": label} for image, label in zip(PIXELS, LABELS, strict=True)]


class Recorder(TrainerCallback):
    """Looks like a reporter to a tracker: user callbacks that stand before ours are called before them by default."""

    def __init__(self) -> None:
        self.logs: list[tuple[int, dict[str, Any]]] = []
        self.closed = False

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert not self.closed
        self.logs.append((state.global_step, dict(kwargs["logs"])))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.closed = True


def new_trainer(
    folder: Path, *callbacks: TrainerCallback, model: PreTrainedModel | None = None, **settings: Any
) -> Trainer:
    """Eight steps on 32 images, the same in every Trainer."""
    values: dict[str, Any] = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "logging_steps": 2,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        **settings,
    }
    evaluated = {} if values.pop("without_evaluation", False) else {"eval_dataset": DATA[:16]}
    arguments = TrainingArguments(str(folder), **values)
    return Trainer(model or lively(), arguments, train_dataset=DATA, callbacks=list(callbacks), **evaluated)


def weights_of(trainer: Trainer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def same_weights(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Noting(TrainerCallback):
    """Notes the random state when each step begins."""

    def __init__(self) -> None:
        self.states: list[torch.Tensor] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.states.append(torch.get_rng_state())


class Watcher(TrainerCallback):
    """Notes the model's size, and whether the optimizer has its parameters, when each step begins."""

    def __init__(self) -> None:
        self.sizes: dict[int, int] = {}
        self.learning_rates: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        self.sizes[state.global_step] = model.num_parameters()
        self.learning_rates.append(optimizer.param_groups[0]["lr"])
        held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        assert held == set(model.parameters())


def changing_steps(watcher: Watcher) -> list[int]:
    """Steps after which the model was another one."""
    sizes = watcher.sizes
    return [step for step in sizes if step and sizes[step] != sizes[step - 1]]
