"""Importance scores learned by an unmodified Trainer, and pruning by them."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageClassification, Trainer, TrainerCallback

from hf_vitcompress import CompressionConfig
from hf_vitcompress.callbacks import CompressionMetricsCallback, ImportanceGateCallback
from hf_vitcompress.errors import ConfigError, UnsupportedModelError
from hf_vitcompress.importance.gates import gates_of
from hf_vitcompress.model.assembly import is_factored
from support.gate_trainings import CONFIG, FC2, OUT, PLAIN, Scores, learned_alone, small, train_gates, trained
from support.processes import together
from support.students import logits
from support.training import (
    DATA,
    PIXELS,
    STEPS,
    Recorder,
    Watcher,
    changing_steps,
    new_trainer,
    same_weights,
    weights_of,
)

pytestmark = pytest.mark.filterwarnings("ignore::hf_vitcompress.errors.BudgetWarning")  # heads come whole

SAVING = {"save_strategy": "steps", "save_steps": 2, "weight_decay": 0.1, "lr_scheduler_type": "cosine"}


def test_the_model_is_pruned_when_training_ends(tmp_path: Path) -> None:
    callback, recorder, watcher = ImportanceGateCallback(CONFIG, output_dir=tmp_path / "small"), Recorder(), Scores()
    model = small()
    trainer = new_trainer(tmp_path, recorder, watcher, callback, model=model, weight_decay=0.1)
    trainer.train()
    assert trainer.model is model
    assert is_factored(model)
    assert not gates_of(model)
    assert callback.report is not None
    assert callback.report.compressed.parameters == sum(p.numel() for p in model.parameters()) <= 2400
    assert callback.importance.keys() == {FC2, OUT}
    assert all(torch.equal(callback.importance[name], own) for name, own in watcher.values[-1].items())
    assert {group["weight_decay"] for group in watcher.settings} == {0.0}
    assert {group["params"] for group in watcher.settings} == {2}
    rates = [group["lr"] for group in watcher.settings]
    assert (max(rates), len(rates)) == (pytest.approx(0.05), STEPS)  # on the Trainer's schedule
    assert rates[-1] < rates[0]
    assert callback.dense_metrics["eval_dense_loss"] > 0
    logs = [logs for _, logs in recorder.logs if "gates_mean" in logs]
    assert len(logs) == STEPS // 2 + 1  # and the evaluation before
    assert 1 > logs[0]["gates_mean"] > logs[-1]["gates_mean"]
    assert {"gates_near_zero", "gates_below_half", "gates_penalty"} <= logs[0].keys()
    assert [e["gates_mean"] for e in trainer.state.log_history if "gates_mean" in e] == [e["gates_mean"] for e in logs]
    recorder.closed = False
    assert not [name for name in trainer.evaluate() if name.startswith("gates_")]
    reloaded = AutoModelForImageClassification.from_pretrained(tmp_path / "small")
    assert torch.equal(logits(reloaded, PIXELS), logits(model, PIXELS))
    trainer.train()  # again, and with the same structure
    assert is_factored(trainer.model)


def test_what_stays_has_its_score_folded_in(tmp_path: Path) -> None:
    trainer = trained(tmp_path, callback := ImportanceGateCallback(CONFIG), learning_rate=0.0)
    dense, importance = small(), callback.importance
    width = trainer.model.get_submodule(FC2).in_features
    kept = importance[FC2].abs().argsort(descending=True, stable=True)[:width].sort().values
    expected = dense.get_submodule(FC2).weight[:, kept] * importance[FC2][kept]
    torch.testing.assert_close(trainer.model.get_submodule(FC2).weight, expected)


def test_the_penalty_is_added_once_a_step(tmp_path: Path) -> None:
    """With nothing else to pull at them, scores end the same however the batches are cut."""
    plain, cut = Scores(), Scores()
    quiet = {"max_grad_norm": 1e-9, "optim": "sgd", "model": None}  # the loss's own gradients are clipped away
    for notes, steps in ((plain, 1), (cut, 4)):
        callback = ImportanceGateCallback(CONFIG, l1=0.5)
        trained(tmp_path, callback, notes, **{**quiet, "gradient_accumulation_steps": steps})
    for one, other in zip(plain.values, cut.values, strict=True):
        torch.testing.assert_close(one[FC2], other[FC2], rtol=1e-6, atol=1e-6)
    rates = [group["lr"] for group in plain.settings]
    assert float(plain.values[-1][FC2][0]) == pytest.approx(1 - 0.5 / 56 * sum(rates), rel=1e-4)
    assert float(plain.values[-1][OUT][0]) == pytest.approx(1 - 0.5 * 16 / 56 * sum(rates), rel=1e-3)


@pytest.mark.parametrize(
    "settings", [{}, {"gradient_accumulation_steps": 2}, {"bf16": True}], ids=["plain", "accumulation", "bf16"]
)
def test_training_goes_on_with_the_pruned_model(tmp_path: Path, settings: dict[str, Any]) -> None:
    watcher, metrics = Watcher(), CompressionMetricsCallback()
    trainer = trained(tmp_path, ImportanceGateCallback(CONFIG, at_step=3), metrics, watcher, **settings)
    assert changing_steps(watcher) == [3]
    assert is_factored(trainer.model)
    steps = {name: int(trainer.optimizer.state[p]["step"]) for name, p in trainer.model.named_parameters()}
    assert {count for name, count in steps.items() if "embeddings" in name} == {STEPS}
    assert steps[f"{FC2}.weight"] == STEPS - 3


# ---- checkpoints


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("gates")
    return folder, weights_of(trained(folder, ImportanceGateCallback(CONFIG, at_step=3), **SAVING))


@pytest.mark.parametrize("step", [2, 6])
def test_a_resumed_training_ends_with_the_same_bits(uninterrupted: tuple[Path, Any], step: int) -> None:
    folder, expected = uninterrupted
    settings = {**SAVING, "save_strategy": "no", "model": small(seed=9)}
    callback = ImportanceGateCallback(CONFIG, at_step=3)
    trainer = trained(folder, callback, resume=str(folder / f"checkpoint-{step}"), **settings)
    assert same_weights(weights_of(trainer), expected)


class Best(TrainerCallback):
    """Makes the evaluation at one step the best."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        kwargs["metrics"]["eval_score"] = float(state.global_step == self.step)


@pytest.mark.parametrize(
    ("at_step", "reset", "pruned"), [(None, True, True), (3, True, True), (3, False, False)], ids=["end", "new", "old"]
)
def test_the_best_checkpoint_may_have_gates(tmp_path: Path, at_step: int | None, reset: bool, pruned: bool) -> None:
    settings = {
        **SAVING,
        "max_steps": 4,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "score",
        "greater_is_better": True,
        "without_evaluation": False,
    }
    callback = ImportanceGateCallback(CONFIG, at_step=at_step, reset_best=reset, output_dir=tmp_path / "best")
    trainer = trained(tmp_path, Best(2), callback, **settings)
    assert is_factored(trainer.model) is pruned
    assert not gates_of(trainer.model)
    reloaded = AutoModelForImageClassification.from_pretrained(tmp_path / "best")
    assert torch.equal(logits(reloaded, PIXELS), logits(trainer.model, PIXELS))
    if not pruned:
        gated = new_trainer(tmp_path, ImportanceGateCallback(CONFIG), model=small(seed=9))
        gated._load_from_checkpoint(str(tmp_path / "checkpoint-2"))
        torch.testing.assert_close(logits(gated.model, PIXELS), logits(trainer.model, PIXELS))


# ---- several trainings, several Trainers


@pytest.mark.parametrize("own", [None, "a method of the object"])
def test_the_trainer_makes_its_optimizer_itself_again(tmp_path: Path, own: str | None) -> None:
    trainer, groups = new_trainer(tmp_path, model=small(), max_steps=2, **PLAIN), []

    def counted(model: Any = None) -> Any:
        groups.append(Trainer.create_optimizer(trainer, model))
        return groups[-1]

    if own:
        trainer.create_optimizer = counted
    callback = ImportanceGateCallback(CONFIG).attach(trainer)
    assert "create_optimizer" in vars(trainer)
    trainer.train()
    assert vars(trainer).get("create_optimizer") is (counted if own else None)
    assert len(groups) == (1 if own else 0)
    rates = [group["initial_lr"] for group in trainer.optimizer.param_groups]
    assert rates == pytest.approx([1e-3, 1e-3, 0.05])
    assert callback.importance
    assert not bool((callback.importance[FC2] == 1).all())


def test_each_model_of_model_init_has_scores(tmp_path: Path) -> None:
    """As in a search over hyperparameters, which calls `train` for each trial."""
    args = new_trainer(tmp_path, model=small(), max_steps=2, **PLAIN).args
    callback, notes = ImportanceGateCallback(CONFIG, at_step=1), Scores()
    trainer = Trainer(model_init=lambda: small(), args=args, train_dataset=DATA, callbacks=[callback, notes])
    found = []
    for _ in range(2):
        trainer.train()
        assert is_factored(trainer.model)
        found.append(callback.importance)
    assert [len(values) for values in notes.values] == [2, 0, 2, 0]
    assert same_weights(*found)


def test_it_works_for_the_trainer_that_calls_it(tmp_path: Path) -> None:
    callback = ImportanceGateCallback(CONFIG)
    settings = {"max_steps": 2, **PLAIN}
    trainers = [new_trainer(tmp_path, callback, model=small(seed), **settings) for seed in range(2)]
    for seed, trainer in enumerate(trainers):
        trainer.train()
        alone = trained(tmp_path, ImportanceGateCallback(CONFIG), model=small(seed), max_steps=2)
        assert same_weights(weights_of(trainer), weights_of(alone))
    size = trainers[0].model.num_parameters()
    trainers[0].train()
    assert trainers[0].model.num_parameters() == size
    twin = pickle.loads(pickle.dumps(callback))
    other = trained(tmp_path, twin, model=small(1), max_steps=2)
    assert same_weights(weights_of(other), weights_of(alone))


# ---- where it does not work


def test_what_it_cannot_work_with_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='use criterion="gates"'):
        ImportanceGateCallback(CompressionConfig())
    with pytest.raises(ConfigError, match="learning_rate above 0"):
        ImportanceGateCallback(CONFIG, learning_rate=0.0)
    late = new_trainer(tmp_path, model=small())
    late.add_callback(ImportanceGateCallback(CONFIG))
    with pytest.raises(ConfigError, match="before the optimizer is made"):
        late.train()
    pruned = trained(tmp_path, ImportanceGateCallback(CONFIG), max_steps=1).model
    with pytest.raises(UnsupportedModelError, match="compressed already"):
        new_trainer(tmp_path, ImportanceGateCallback(CONFIG), model=pruned)


# ---- two processes


def test_two_processes_end_with_the_same_model(tmp_path: Path) -> None:
    ends = together(train_gates, tmp_path, processes=2)
    assert all(end.code == 0 for end in ends), ends
    one, other = (torch.load(tmp_path / f"result-{i}.pt", weights_only=False) for i in range(2))
    assert same_weights(one["weights"], other["weights"])
    assert same_weights(one["learned"], other["learned"])
    torch.testing.assert_close(one["learned"], learned_alone(), rtol=1e-3, atol=1e-3)
    notes = Scores()
    trained(tmp_path, ImportanceGateCallback(CONFIG, at_step=2), notes, max_steps=4, per_device_train_batch_size=8)
    for single, shared in zip(notes.values, one["values"], strict=False):
        for name, own in single.items():
            torch.testing.assert_close(own, shared[name], rtol=1e-3, atol=1e-3)
