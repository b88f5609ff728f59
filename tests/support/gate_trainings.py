"""Trainings that learn importance scores of a tiny model, in one process or in several."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, Trainer, TrainerCallback

from hf_vitcompress import CompressionConfig
from hf_vitcompress.architectures.subject import Subject
from hf_vitcompress.callbacks import ImportanceGateCallback
from hf_vitcompress.images.images import ImageSource
from hf_vitcompress.importance.gates import gates_of
from hf_vitcompress.importance.learning import learn_gates
from support.models import tiny_config
from support.stages import quiet
from support.students import lively
from support.training import PIXELS, new_trainer, weights_of

SMALL = tiny_config(num_hidden_layers=1, hidden_size=16, intermediate_size=24, num_attention_heads=2)
CONFIG = CompressionConfig.preset(
    "vtp",
    max_params=2400,
    compensation="none",
    rank_multiple=1,
    num_images=16,
    precision="float32",
    measuring_images=0,
)
FC2, OUT = "vit.layers.0.mlp.fc2", "vit.layers.0.attention.o_proj"
PLAIN = {"without_evaluation": True}


def small(seed: int = 0) -> PreTrainedModel:
    return lively(config=SMALL, seed=seed)


def trained(folder: Path, *callbacks: Any, resume: str | None = None, **settings: Any) -> Trainer:
    trainer = new_trainer(folder, *callbacks, model=settings.pop("model", None) or small(), **{**PLAIN, **settings})
    trainer.train(resume_from_checkpoint=resume)
    return trainer


class Scores(TrainerCallback):
    """Notes the scores, and what their gradients are when the optimizer steps."""

    def __init__(self) -> None:
        self.values: list[dict[str, torch.Tensor]] = []
        self.settings: list[dict[str, Any]] = []

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        gates = gates_of(kwargs["model"])
        self.values.append({name: gate.detach().clone() for name, gate in gates.items()})
        groups = kwargs["optimizer"].param_groups
        own = [g for g in groups if gates and any(p is gates[FC2] for p in g["params"])]
        self.settings += [{**group, "params": len(group["params"])} for group in own]


def learned_alone() -> dict[str, torch.Tensor]:
    """Without a Trainer; five images a step leave the processes unequal shares."""
    five, config = ImageSource(list(PIXELS[:5]), None, "the images"), replace(CONFIG, gate_duration="4 epochs")
    return learn_gates(Subject.alone(small()), five, quiet(config)).scores


def train_gates(folder: Path) -> None:
    """The results of a process are in a file that its rank names."""
    torch.set_num_threads(1)
    settings = {"ddp_backend": "gloo", "ddp_find_unused_parameters": False, "max_steps": 4}
    callback, notes = ImportanceGateCallback(CONFIG, at_step=2), Scores()
    trainer = trained(folder, callback, notes, **settings)
    results = {"weights": weights_of(trainer), "values": notes.values[:2], "learned": learned_alone()}
    torch.save(results, folder / f"result-{os.environ['RANK']}.pt")
