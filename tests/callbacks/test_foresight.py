"""What can be known when a training begins is said then, a figure ends none, and what is known of a model survives."""

import dataclasses
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from transformers import (
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTForImageClassification,
    ViTModel,
)

from hf_vitcompress.callbacks import CompressionCallback, CompressionMetricsCallback, ProgressiveCompressionCallback
from hf_vitcompress.callbacks.metrics import KL
from hf_vitcompress.errors import BudgetError, ConfigError, DataError, VitCompressError
from hf_vitcompress.evaluation.reference import Reference
from support.models import seeded, tiny_config
from support.students import compressed, lively
from support.training import CONFIG, STEPS, Recorder, Watcher, new_trainer

DENSE: dict[str, tuple[PreTrainedModel, str]] = {
    "other classes": (seeded(ViTForImageClassification, tiny_config(num_labels=7)), "5 and 7 classes"),
    "one class": (seeded(ViTForImageClassification, tiny_config(num_labels=1)), "compared"),
    "no head": (seeded(ViTModel, tiny_config()), "only one of them has classes"),
    "another size": (seeded(ViTForImageClassification, tiny_config(patch_size=32, image_size=32)), "16 × 16"),
    "other channels": (seeded(ViTForImageClassification, tiny_config(num_channels=1)), "num_channels=1"),
    "another device": (lively().to("meta"), "meta"),
}


@pytest.mark.parametrize("case", DENSE)
def test_a_dense_model_that_cannot_be_compared_costs_one_figure(
    case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dense, reason = DENSE[case]
    metrics, recorder = CompressionMetricsCallback(dense=dense, num_images=16), Recorder()
    trainer = new_trainer(tmp_path, recorder, metrics, eval_strategy="steps", eval_steps=4)
    assert trainer.train().global_step == STEPS
    names = {name for _, logs in recorder.logs for name in logs}
    assert "compression_macs" in names
    assert KL not in names
    said = [line for line in caplog.messages if KL in line]
    assert len(said) == 1
    assert reason in said[0]
    assert "training goes on" in said[0]


def test_figures_of_a_model_that_has_none_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], num_labels=5)
    recorder = Recorder()
    new_trainer(tmp_path, recorder, CompressionMetricsCallback(), model=ResNetForImageClassification(config)).train()
    assert {name for _, logs in recorder.logs for name in logs if "compression" in name} == {"compression_parameters"}
    assert len([line for line in caplog.messages if "figures of the structure" in line]) == 1


def test_a_measurement_that_fails_in_the_midst_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    metrics = CompressionMetricsCallback(dense=lively(), num_images=16)
    with mock.patch.object(Reference, "loss_of", side_effect=RuntimeError("out of memory")):
        assert new_trainer(tmp_path, metrics).train().global_step == STEPS
    assert "out of memory" in caplog.text


CASES: dict[str, tuple[Any, type[VitCompressError]]] = {
    "absent images": (lambda: CompressionCallback(CONFIG, images="/absent"), DataError),
    "absent images of stages": (lambda: ProgressiveCompressionCallback(CONFIG, images=Path("/absent")), DataError),
    "an unreachable budget": (lambda: CompressionCallback(dataclasses.replace(CONFIG, keep_ratio=0.01)), BudgetError),
    "an unreachable last stage": (
        lambda: ProgressiveCompressionCallback(CONFIG, [(2, 0.6), (4, 0.01)]),
        BudgetError,
    ),
    "no such layers": (lambda: CompressionCallback(dataclasses.replace(CONFIG, skip_modules=["x"])), ConfigError),
    "no such part": (lambda: CompressionCallback(dataclasses.replace(CONFIG, target="tower")), ConfigError),
}


@pytest.mark.parametrize("case", CASES)
def test_what_no_compression_could_do_is_refused_before_the_first_step(case: str, tmp_path: Path) -> None:
    make, error = CASES[case]
    watcher = Watcher()
    trainer = new_trainer(tmp_path, make(), watcher)
    with pytest.raises(error):
        trainer.train()
    assert watcher.sizes == {}


def test_a_budget_of_macs_out_of_reach_ends_the_training_when_the_model_is_compressed(tmp_path: Path) -> None:
    """What the smallest plan multiplies is known after calibration only."""
    config, watcher = CONFIG.with_budget(max_macs=1), Watcher()
    with pytest.raises(BudgetError, match="out of reach"):
        new_trainer(tmp_path, CompressionCallback(config, at_step=2), watcher).train()
    assert watcher.sizes


# ---- the card


def small() -> PreTrainedModel:
    return compressed(lively(), ranks={"vit.layers.0.mlp.fc1": 3}).student()


@pytest.mark.parametrize("callbacks", [[CompressionMetricsCallback], [CompressionMetricsCallback, CompressionCallback]])
def test_the_end_says_how_our_card_gets_back(
    callbacks: list[type], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = [callback(CONFIG) if callback is CompressionCallback else callback() for callback in callbacks]
    model = small() if len(made) == 1 else lively()
    new_trainer(tmp_path / "my runs", *made, model=model, hub_model_id="me/vit").train()
    said = [line for line in caplog.messages if "create_model_card" in line]
    assert len(said) == 1
    assert f"`vitcompress push '{tmp_path / 'my runs'}' me/vit`" in said[0]


def test_a_dense_model_has_no_card_of_ours(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    new_trainer(tmp_path, CompressionMetricsCallback()).train()
    assert not [line for line in caplog.messages if "create_model_card" in line]


def test_the_best_checkpoint_brings_its_record_with_its_structure(tmp_path: Path) -> None:
    callback = CompressionCallback(CONFIG, at_step=2)
    trainer = new_trainer(tmp_path, callback, save_strategy="steps", save_steps=4)
    trainer.train()
    trainer.model.companions = []
    trainer.state.best_model_checkpoint = str(tmp_path / "checkpoint-4")
    callback.finish()
    trainer.save_model(str(tmp_path / "final"))
    assert (tmp_path / "final" / "compression_report.json").is_file()
