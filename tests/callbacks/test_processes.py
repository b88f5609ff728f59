"""Callbacks under data parallelism: two real processes on CPUs, started by torchrun as `python test_… FOLDER`."""

import faulthandler
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageClassification

from hf_vitcompress.callbacks import CompressionCallback, CompressionMetricsCallback, ProgressiveCompressionCallback
from hf_vitcompress.model.restructure import follow_layout
from support.processes import environment
from support.students import lively, logits
from support.training import CONFIG, PIXELS, new_trainer, same_weights, weights_of

SECONDS = 400
SETTINGS = {"ddp_backend": "gloo", "ddp_find_unused_parameters": False, "without_evaluation": True}


def trained(folder: Path, callback: Any, resume: str | None = None, **settings: Any) -> dict[str, Any]:
    metrics = CompressionMetricsCallback(dense=lively(), num_images=20)
    trainer = new_trainer(folder, callback, metrics, **{**SETTINGS, **settings})
    trainer.train(resume_from_checkpoint=resume)
    return {"weights": weights_of(trainer), "history": trainer.state.log_history}


def work(folder: Path) -> None:
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


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("processes")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, __file__, str(folder)], env=environment(), capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stderr
    return folder, [torch.load(folder / f"result-{i}.pt", weights_only=False) for i in range(2)]


@pytest.mark.parametrize("run", ["end", "midst", "stages", "resumed"])
def test_both_processes_end_with_the_same_model(results: tuple[Path, list[dict[str, Any]]], run: str) -> None:
    one, other = (result[run] for result in results[1])
    assert any("down" in name for name in one["weights"])
    assert same_weights(one["weights"], other["weights"])
    figures = [
        [entry["compression_kl_measured"] for entry in result["history"] if "compression_kl_measured" in entry]
        for result in (one, other)
    ]
    assert figures[0] == figures[1]
    assert figures[0]


def test_two_processes_learn_what_one_learns_from_batches_twice_as_large(
    results: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    """Gradients of the new parameters, too, are those of all images."""
    single = new_trainer(tmp_path, CompressionCallback(CONFIG, at_step=3), per_device_train_batch_size=8)
    single.train()
    shared = lively()
    follow_layout(shared)
    shared.load_state_dict(results[1][0]["midst"]["weights"])
    dense = lively()
    expected = logits(single.model, PIXELS)
    assert (logits(shared, PIXELS) - expected).norm() < 0.01 * (logits(dense, PIXELS) - expected).norm()


def test_a_resumed_training_ends_alike(results: tuple[Path, list[dict[str, Any]]]) -> None:
    for result in results[1]:
        assert same_weights(result["resumed"]["weights"], result["stages"]["weights"])


def test_one_model_is_saved(results: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, (main, _) = results
    model = AutoModelForImageClassification.from_pretrained(folder / "small")
    assert same_weights(dict(model.state_dict()), main["end"]["weights"])


if __name__ == "__main__":
    faulthandler.dump_traceback_later(SECONDS / 2, exit=True)
    work(Path(sys.argv[1]))
