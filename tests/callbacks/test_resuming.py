"""Trainings that go on from a checkpoint, and best checkpoints, whatever structure they have."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageClassification, Trainer, TrainerCallback, ViTForImageClassification

from hf_vitcompress.callbacks import CompressionCallback, ProgressiveCompressionCallback
from hf_vitcompress.errors import ConfigError
from hf_vitcompress.model.assembly import is_factored
from hf_vitcompress.model.restructure import take_tokens
from hf_vitcompress.planning.planner import Planner
from support.students import lively, logits
from support.training import CONFIG, PIXELS, new_trainer, same_weights, weights_of

MIDST = {"at_step": 3}
STAGES = [(1, 0.8), (4, 0.65), (5, 0.5)]
RUNS: dict[str, Callable[[], Any]] = {
    "end": lambda: CompressionCallback(CONFIG),
    "midst": lambda: CompressionCallback(CONFIG, **MIDST),
    "stages": lambda: ProgressiveCompressionCallback(CONFIG, STAGES),
}
SETTINGS = {"save_strategy": "steps", "save_steps": 2, "weight_decay": 0.1, "lr_scheduler_type": "cosine"}


@pytest.fixture(scope="module", params=RUNS)
def uninterrupted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Any]:
    folder = tmp_path_factory.mktemp(request.param)
    trainer = new_trainer(folder, RUNS[request.param](), gradient_accumulation_steps=2, **SETTINGS)
    trainer.train()
    return request.param, folder, weights_of(trainer)


@pytest.mark.parametrize("step", [2, 4, 6])
def test_a_resumed_training_ends_with_the_same_bits(uninterrupted: tuple[str, Path, Any], step: int) -> None:
    name, folder, expected = uninterrupted
    callback = RUNS[name]()
    settings = {**SETTINGS, "save_strategy": "no", "gradient_accumulation_steps": 2}
    trainer = new_trainer(folder, callback, model=lively(seed=9), **settings)
    trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
    assert same_weights(weights_of(trainer), expected)


def test_a_resumed_model_is_saved_with_its_record(uninterrupted: tuple[str, Path, Any], tmp_path: Path) -> None:
    name, folder, _ = uninterrupted
    trainer = new_trainer(folder, RUNS[name](), model=lively(seed=9), **{**SETTINGS, "save_strategy": "no"})
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-6"))
    trainer.save_model(str(tmp_path))
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"compression_recipe.yaml", "compression_plan.json", "compression_report.md"}
    reloaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert torch.equal(logits(reloaded, PIXELS), logits(trainer.model, PIXELS))


def test_a_training_resumed_after_the_compression_has_its_report(
    uninterrupted: tuple[str, Path, Any],
) -> None:
    name, folder, _ = uninterrupted
    callback = RUNS[name]()
    trainer = new_trainer(folder, callback, model=lively(seed=9), **{**SETTINGS, "save_strategy": "no"})
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-6"))
    assert callback.report is not None
    assert callback.report.compressed.parameters == trainer.model.num_parameters()


def test_a_checkpoint_of_another_schedule_is_refused(tmp_path: Path) -> None:
    new_trainer(tmp_path, ProgressiveCompressionCallback(CONFIG, STAGES), **SETTINGS).train()
    other = new_trainer(tmp_path, ProgressiveCompressionCallback(CONFIG, [(2, 0.7), (6, 0.5)]))
    with pytest.raises(ConfigError, match="Use the stages and the number of steps"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_a_structure_that_was_not_loaded_is_noticed(tmp_path: Path) -> None:
    new_trainer(tmp_path, **SETTINGS).train()
    trainer = new_trainer(tmp_path, CompressionCallback(CONFIG, **MIDST))
    with pytest.raises(ConfigError, match="after at_step=3, but with a dense model"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def test_an_optimizer_of_another_structure_is_noticed(tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path, CompressionCallback(CONFIG, at_step=6), **SETTINGS)
    trainer.train()
    with pytest.raises((ConfigError, ValueError)):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


# ---- the best checkpoint


class Scores(TrainerCallback):
    """Fixes the metric of every evaluation, by step."""

    def __init__(self, best: int) -> None:
        self.best = best

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        kwargs["metrics"]["eval_score"] = float(state.global_step == self.best)


def best_of(folder: Path, callback: TrainerCallback, best: int, **settings: Any) -> Trainer:
    values = {
        **SETTINGS,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "score",
        "greater_is_better": True,
        **settings,
    }
    trainer = new_trainer(folder, Scores(best), callback, **values)
    trainer.train()
    return trainer


def saved(folder: Path, step: int) -> Any:
    return AutoModelForImageClassification.from_pretrained(folder / f"checkpoint-{step}")


def test_a_better_dense_model_does_not_win_by_default(tmp_path: Path) -> None:
    trainer = best_of(tmp_path, CompressionCallback(CONFIG, **MIDST), best=2)
    assert is_factored(trainer.model)
    assert trainer.state.best_global_step == 4


def test_a_better_dense_model_may_win(tmp_path: Path) -> None:
    trainer = best_of(tmp_path, CompressionCallback(CONFIG, reset_best=False, **MIDST), best=2)
    assert type(trainer.model) is ViTForImageClassification
    assert torch.equal(logits(trainer.model, PIXELS), logits(saved(tmp_path, 2), PIXELS))
    held = {parameter for group in trainer.optimizer.param_groups for parameter in group["params"]}
    assert held == set(trainer.model.parameters())


@pytest.mark.parametrize("best", [2, 4])
def test_the_best_may_be_of_any_stage(tmp_path: Path, best: int) -> None:
    callback = ProgressiveCompressionCallback(CONFIG, STAGES, reset_best=False)
    trainer = best_of(tmp_path, callback, best)
    assert torch.equal(logits(trainer.model, PIXELS), logits(saved(tmp_path, best), PIXELS))
    assert trainer.model.num_parameters() == saved(tmp_path, best).num_parameters()
    trainer.save_model(str(tmp_path / "best"))
    reloaded = AutoModelForImageClassification.from_pretrained(tmp_path / "best")
    assert torch.equal(logits(reloaded, PIXELS), logits(trainer.model, PIXELS))


def test_the_best_dense_model_is_compressed_at_the_end(tmp_path: Path) -> None:
    trainer = best_of(tmp_path, callback := CompressionCallback(CONFIG), best=2)
    twin = new_trainer(tmp_path, model=saved(tmp_path, 2))
    assert callback.dense_metrics["eval_dense_loss"] == pytest.approx(twin.evaluate()["eval_loss"])
    assert is_factored(trainer.model)


def test_merged_tokens_are_resumed_and_are_part_of_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, completed = {"vit.layers.0": 3}, Planner.completed
    with monkeypatch.context() as patch:
        patch.setattr(Planner, "completed", lambda self, *given: replace(completed(self, *given), tokens=tokens))
        trainer = new_trainer(tmp_path, CompressionCallback(CONFIG, **MIDST), **SETTINGS)
        trainer.train()
        assert trainer.model.config.compression["tokens"] == tokens
    resumed = new_trainer(
        tmp_path, CompressionCallback(CONFIG, **MIDST), model=lively(seed=9), **{**SETTINGS, "save_strategy": "no"}
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert resumed.model.config.compression["tokens"] == tokens
    assert same_weights(weights_of(resumed), weights_of(trainer))
    assert torch.equal(logits(resumed.model, PIXELS), logits(trainer.model, PIXELS))
    assert resumed.model.companions
    take_tokens(resumed.model, tmp_path / "checkpoint-2")  # of before the compression
    assert "tokens" not in resumed.model.config.compression
    assert type(resumed.model.vit.layers[1]).__name__ == "ViTLayer"
