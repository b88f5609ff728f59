"""Compression of an unmodified Trainer's model, at the end of a training and in its midst."""

import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from accelerate import DistributedType
from torch.utils.data import IterableDataset
from transformers import AutoModelForImageClassification, ViTImageProcessorPil

from hf_vitcompress import ViTCompressor
from hf_vitcompress.callbacks import (
    CompressionCallback,
    CompressionMetricsCallback,
)
from hf_vitcompress.callbacks.finding import trainer_of
from hf_vitcompress.errors import ConfigError, DataError, PublishError, UnsupportedModelError
from hf_vitcompress.model.assembly import is_factored
from hf_vitcompress.planning import latency
from hf_vitcompress.profiling import measuring
from support.adapters import require_peft
from support.models import tiny_config
from support.profiles import even_seconds, latency_by_macs
from support.students import lively, logits
from support.training import (
    CONFIG,
    DATA,
    PIXELS,
    STEPS,
    Noting,
    Recorder,
    Watcher,
    changing_steps,
    new_trainer,
    same_weights,
    weights_of,
)

# ---- at the end


def test_the_model_is_compressed_when_training_ends(tmp_path: Path) -> None:
    callback, recorder = CompressionCallback(CONFIG, output_dir=tmp_path / "small"), Recorder()
    model, processor = lively(), ViTImageProcessorPil(size={"height": 16, "width": 16})
    trainer = new_trainer(tmp_path, recorder, callback, model=model)
    trainer.processing_class = processor
    trainer.train()
    recorder.closed = False
    plain = new_trainer(tmp_path)
    plain.train()
    assert trainer.model is model
    assert is_factored(model)
    assert callback.report is not None
    assert callback.report.keep_ratio == pytest.approx(0.5, rel=0.005)
    assert callback.dense_metrics["eval_dense_loss"] == pytest.approx(plain.evaluate()["eval_loss"])
    assert callback.compressed_metrics["eval_loss"] == pytest.approx(trainer.evaluate()["eval_loss"])
    assert [name for _, logs in recorder.logs for name in logs if name.endswith("_loss")][:3] == [
        "train_loss",
        "eval_dense_loss",
        "eval_loss",
    ]
    trainer.save_model(str(tmp_path / "again"))
    for folder in ("small", "again"):
        reloaded = AutoModelForImageClassification.from_pretrained(tmp_path / folder)
        assert torch.equal(logits(reloaded, PIXELS), logits(model, PIXELS))
        names = {path.name for path in (tmp_path / folder).iterdir()}
        assert names >= {"compression_recipe.yaml", "compression_plan.json", "preprocessor_config.json"}
        report = json.loads((tmp_path / folder / "compression_report.json").read_text(encoding="utf-8"))
        assert report["keep_ratio"] == callback.report.keep_ratio


def test_a_budget_of_time_holds_at_the_end_of_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "alternate_latency", latency_by_macs)
    monkeypatch.setattr(measuring, "time_operation", lambda _, operation: even_seconds(operation))
    config = CONFIG.with_budget(speedup=1.25, keep_ratio=0.9)
    callback = CompressionCallback(config, images=PIXELS[:16])
    trainer = new_trainer(tmp_path, callback)
    trainer.train()
    assert is_factored(trainer.model)
    assert callback.report is not None
    assert callback.report.timed is not None
    assert callback.report.timed.excess <= latency.EXCEEDED
    assert callback.report.keep_ratio <= 0.9


def test_the_closed_form_is_that_of_the_compressor(tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path, CompressionCallback(CONFIG, images=PIXELS[:40]))
    trainer.train()
    plain = new_trainer(tmp_path)
    plain.train()
    small = ViTCompressor(CONFIG, progress=False).compress(plain.model.eval(), PIXELS[:40])
    assert same_weights(weights_of(trainer), small.state_dict())


# ---- in the midst


@pytest.mark.parametrize(
    ("at_step", "settings"),
    [
        (3, {"weight_decay": 0.1, "lr_scheduler_type": "cosine"}),
        (0.4, {"gradient_accumulation_steps": 2}),
        (3, {"bf16": True}),
    ],
    ids=["plain", "accumulation", "bf16"],
)
def test_training_goes_on_with_the_compressed_model(tmp_path: Path, at_step: float, settings: dict[str, Any]) -> None:
    callback, watcher, plain = CompressionCallback(CONFIG, at_step=at_step), Watcher(), Watcher()
    trainer = new_trainer(tmp_path, callback, watcher, **settings)
    assert trainer.train().global_step == STEPS
    new_trainer(tmp_path, plain, **settings).train()
    assert changing_steps(watcher) == [3]
    assert watcher.learning_rates == plain.learning_rates
    assert is_factored(trainer.model)
    moments = trainer.optimizer.state
    steps = {name: int(moments[parameter]["step"]) for name, parameter in trainer.model.named_parameters()}
    dense = {name: parameter.shape for name, parameter in lively().named_parameters()}
    new = {
        name
        for name, parameter in trainer.model.named_parameters()
        if dense.get(name.replace(".up.bias", ".bias")) != parameter.shape
    }
    assert any(name.endswith("down.weight") for name in new)
    assert {name for name, count in steps.items() if count != STEPS} == new
    assert set(steps.values()) == {STEPS, STEPS - 3}
    assert callback.compressed_metrics["eval_loss"] != trainer.evaluate()["eval_loss"]


def test_the_trainers_own_data_and_random_numbers_are_untouched(tmp_path: Path) -> None:
    noted = [Noting(), Noting()]
    metrics = CompressionMetricsCallback(dense=lively())
    new_trainer(tmp_path, CompressionCallback(CONFIG, at_step=3), metrics, noted[0]).train()
    new_trainer(tmp_path, noted[1]).train()
    assert all(torch.equal(one, other) for one, other in zip(noted[0].states, noted[1].states, strict=True))


def test_a_planned_evaluation_is_not_made_twice(tmp_path: Path) -> None:
    callback, recorder = CompressionCallback(CONFIG, at_step=4), Recorder()
    new_trainer(tmp_path, recorder, callback, eval_strategy="steps", eval_steps=4).train()
    evaluated = [
        (step, name) for step, logs in recorder.logs for name in logs if name in ("eval_loss", "eval_dense_loss")
    ]
    assert evaluated == [(4, "eval_dense_loss"), (4, "eval_loss"), (8, "eval_loss")]
    assert [step for step, logs in recorder.logs if "loss" in logs] == [2, 4, 6, 8]
    assert callback.compressed_metrics["eval_loss"] == recorder.logs[3][1]["eval_loss"]


def test_a_step_that_is_never_reached_means_the_end(tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path, CompressionCallback(CONFIG, at_step=100), without_evaluation=True)
    trainer.train()
    assert is_factored(trainer.model)


def test_a_second_training_goes_on_with_the_same_structure(tmp_path: Path) -> None:
    watcher = Watcher()
    trainer = new_trainer(tmp_path, CompressionCallback(CONFIG), watcher)
    trainer.train()
    report = trainer.callback_handler.callbacks[1].report
    trainer.train()
    assert changing_steps(watcher) == []
    assert watcher.sizes[0] == report.compressed.parameters


def test_a_compiled_model_is_compiled_again(tmp_path: Path) -> None:
    config = tiny_config(num_hidden_layers=1)
    compiled = {"torch_compile": True, "torch_compile_backend": "eager"}
    trainers = [
        new_trainer(tmp_path, CompressionCallback(CONFIG, at_step=3), model=lively(config=config), **more)
        for more in ({}, compiled)
    ]
    for trainer in trainers:
        trainer.train()
    for one, other in zip(trainers[0].model.parameters(), trainers[1].model.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_images_may_come_one_by_one(tmp_path: Path) -> None:
    class Stream(IterableDataset):
        def __iter__(self) -> Any:
            return iter(DATA)

    trainer = new_trainer(tmp_path, CompressionCallback(CONFIG, at_step=2))
    trainer.train_dataset = Stream()
    trainer.train()
    assert is_factored(trainer.model)


def test_an_empty_data_set_is_named(tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path, callback := CompressionCallback(CONFIG))
    trainer.callback_handler.train_dataloader = mock.Mock(dataset=[])
    with pytest.raises(DataError, match="data set is empty: give images"):
        callback.on_train_end(None, None, None)


def test_the_model_is_pushed_once(tmp_path: Path) -> None:
    callback = CompressionCallback(CONFIG, push_to_hub="me/small")
    trainer = new_trainer(tmp_path, callback, hub_token="hf_mine")
    with mock.patch("hf_vitcompress.callbacks.structure.push_model") as push:
        trainer.train()
    push.assert_called_once_with(trainer.model, "me/small", token="hf_mine")


def test_a_push_that_cannot_succeed_is_refused_before_the_training(tmp_path: Path) -> None:
    with pytest.raises(PublishError, match="no name of a Hub repository"):
        new_trainer(tmp_path, CompressionCallback(CONFIG, push_to_hub="me/my/small"), hub_token="hf_mine")


# ---- where they do not work


@pytest.mark.parametrize("at_step", [0, -1, 1.0, 1.5, True, "3"])
def test_a_moment_that_is_none_is_refused(at_step: Any) -> None:
    with pytest.raises(ConfigError, match="at_step is an optimizer step"):
        CompressionCallback(CONFIG, at_step=at_step)


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED"])
def test_sharded_models_are_refused(tmp_path: Path, kind: str) -> None:
    trainer, callback = new_trainer(tmp_path), CompressionCallback(CONFIG)
    accelerator = mock.Mock(distributed_type=DistributedType[kind])
    with mock.patch.object(trainer, "accelerator", accelerator), pytest.raises(ConfigError) as error:
        callback.meet(trainer)
    assert "has sharded" in str(error.value)
    assert "ViTCompressor" in str(error.value)


def test_a_callback_without_trainer_says_so() -> None:
    with pytest.raises(ConfigError, match=r"inside a Trainer only.*attach\(trainer\)"):
        trainer_of(CompressionCallback(CONFIG))
    with pytest.raises(ConfigError, match=r"Trainer\(…, callbacks"):
        _ = CompressionCallback(CONFIG).trainer


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # what peft reads
def test_adapters_are_refused_before_the_training(tmp_path: Path) -> None:
    peft = require_peft()
    adapted = peft.get_peft_model(lively(), peft.LoraConfig(target_modules=["fc1"]))
    with pytest.raises(UnsupportedModelError, match=r"has adapters.*merge_and_unload"):
        new_trainer(tmp_path, CompressionCallback(CONFIG), model=adapted)
