"""What processes do that share a training with a callback that compresses."""

import os
from pathlib import Path
from typing import Any

import torch

from hf_vitcompress.callbacks import CompressionCallback, CompressionMetricsCallback, ProgressiveCompressionCallback
from support.students import lively
from support.training import CONFIG, new_trainer, weights_of

SHARED = {"ddp_backend": "gloo", "ddp_find_unused_parameters": False, "without_evaluation": True}


def trained(folder: Path, callback: Any, resume: str | None = None, **settings: Any) -> dict[str, Any]:
    metrics = CompressionMetricsCallback(dense=lively(), num_images=20)
    trainer = new_trainer(folder, callback, metrics, **{**SHARED, **settings})
    trainer.train(resume_from_checkpoint=resume)
    return {"weights": weights_of(trainer), "history": trainer.state.log_history}


def train(folder: Path) -> None:
    """Each way to compress within a training; the results of a process are in a file that its rank names."""
    torch.set_num_threads(1)
    stages = [(2, 0.8), (4, 0.5)]
    saving = {"save_strategy": "steps", "save_steps": 3}
    more = {"bf16": True, "gradient_accumulation_steps": 2}
    checkpoint = str(folder / "stages" / "checkpoint-3")
    results = {
        "end": trained(folder / "end", CompressionCallback(CONFIG, output_dir=folder / "small")),
        "midst": trained(folder / "midst", CompressionCallback(CONFIG, at_step=3)),
        "stages": trained(folder / "stages", ProgressiveCompressionCallback(CONFIG, stages), **saving, **more),
        "resumed": trained(folder / "stages", ProgressiveCompressionCallback(CONFIG, stages), checkpoint, **more),
    }
    torch.save(results, folder / f"result-{os.environ['RANK']}.pt")
