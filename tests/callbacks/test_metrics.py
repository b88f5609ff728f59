"""Figures of the compression in a Trainer's logs."""

import dataclasses
from collections import Counter
from pathlib import Path

import pytest
from torch import nn

from hf_vitcompress.architectures.layers import find_layers
from hf_vitcompress.callbacks import (
    CompressionCallback,
    CompressionMetricsCallback,
)
from hf_vitcompress.callbacks.metrics import layer_ranks, rank_figures
from support.students import compressed, lively, logits
from support.training import (
    CONFIG,
    PIXELS,
    Recorder,
    new_trainer,
)
from support.zoo import HEADS


def limits_of(model: nn.Module) -> list[tuple[str, int]]:
    """Each layer's rank can be no larger, by its shapes."""
    weights = {name: tensor.shape for name, tensor in model.state_dict().items() if ".layers." in name}
    limits = []
    for name in {name.split(".weight")[0].removesuffix(".up").removesuffix(".down") for name in weights}:
        own = [shape for key, shape in weights.items() if key.startswith(f"{name}.") and len(shape) == 2]
        if own and not name.endswith("qk_down"):
            limits.append((name, min(size for shape in own for size in shape)))
    return limits


def test_figures_reach_trackers_and_history(tmp_path: Path) -> None:
    recorder, metrics = Recorder(), CompressionMetricsCallback(dense=lively(), num_images=16)
    callback = CompressionCallback(dataclasses.replace(CONFIG, measuring_images=16), at_step=3)
    trainer = new_trainer(tmp_path, recorder, callback, metrics, eval_strategy="steps", eval_steps=8)
    trainer.train()
    figures = {step: logs for step, logs in recorder.logs if "compression_parameters" in logs and "loss" in logs}
    assert list(figures) == [2, 4, 6, 8]
    dense, small = figures[2], figures[8]
    assert callback.report is not None
    assert (dense["compression_keep_ratio"], dense["compression_rank_mean"]) == (1, 32)
    assert small["compression_parameters"] == callback.report.compressed.parameters
    assert small["compression_macs"] == callback.report.compressed.macs
    assert small["compression_kl_predicted"] == callback.report.predicted_loss
    limits = limits_of(trainer.model)
    ranks = [rank for _, rank in limits]
    assert len(ranks) == 12
    assert small["compression_rank_mean"] == pytest.approx(sum(ranks) / len(ranks))
    assert small["compression_rank_min"] == min(ranks)
    assert small["compression_rank_mean_fc1"] == pytest.approx(
        sum(rank for name, rank in limits if name.endswith("fc1")) / 2
    )
    history = [entry for entry in trainer.state.log_history if "compression_parameters" in entry]
    assert [{k: v for k, v in e.items() if k != "step"} for e in history] == [
        {k: v for k, v in logs.items() if k != "total_flos"} for _, logs in recorder.logs[: len(history)]
    ]


def test_measured_loss_is_the_divergence_from_the_dense_model(tmp_path: Path) -> None:
    dense, recorder = lively(), Recorder()
    metrics = CompressionMetricsCallback(dense=dense, images=PIXELS[:16], num_images=16)
    small = compressed(dense, ranks={"vit.layers.0.mlp.fc1": 3}).student()
    trainer = new_trainer(tmp_path, recorder, metrics, model=small, learning_rate=0.0, eval_strategy="epoch")
    trainer.train()
    p, q = (logits(model, PIXELS[:16]).log_softmax(-1) for model in (dense, small))
    expected = float((p.exp() * (p - q)).sum(-1).mean())
    measured = [logs["compression_kl_measured"] for _, logs in recorder.logs if "compression_kl_measured" in logs]
    assert measured == pytest.approx([expected] * 2, rel=1e-4)  # the first log, and the evaluation
    assert expected > 0.01


def test_metrics_of_an_evaluation_stay_its_own(tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path, CompressionMetricsCallback())
    trainer.train()
    assert not [name for name in trainer.evaluate() if name.startswith("compression_")]
    assert "compression_parameters" in trainer.state.log_history[-1]


def test_a_callback_may_be_added_later(tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path, recorder := Recorder())
    trainer.add_callback(callback := CompressionCallback(CONFIG))
    trainer.add_callback(CompressionMetricsCallback())
    trainer.train()
    assert callback.report is not None
    assert "compression_keep_ratio" in recorder.logs[0][1]


@pytest.mark.parametrize("name", ["Swinv2Backbone", "DepthAnythingForDepthEstimation", "DINOv3ViTModel"])
def test_every_architecture_has_ranks_by_role(name: str) -> None:
    model = next(head for head in HEADS if head.name == name).dense()
    ranks = layer_ranks(model)
    layers = find_layers(model)
    assert {role: len(own) for role, own in ranks.items()} == Counter(layer.role for layer in layers)
    assert rank_figures(model)["rank_min"] == min(layer.full_rank for layer in layers)
