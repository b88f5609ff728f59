"""Callbacks under data parallelism: two real processes on CPUs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageClassification

from hf_vitcompress.callbacks import CompressionCallback
from hf_vitcompress.model.restructure import follow_layout
from support.processes import together
from support.sharing_trainings import train
from support.students import lively, logits
from support.training import CONFIG, PIXELS, new_trainer, same_weights


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("processes")
    ends = together(train, folder, processes=2)
    assert all(end.code == 0 for end in ends), ends
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
