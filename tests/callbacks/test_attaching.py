"""How a callback gets to know its Trainer, whichever way it is given to it, and to how many."""

import copy
import functools
import gc
import pickle
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import notebook_launcher
from transformers import PreTrainedModel, Trainer, TrainerCallback

from hf_vitcompress.callbacks import CompressionCallback, CompressionMetricsCallback, ProgressiveCompressionCallback
from hf_vitcompress.callbacks.link import TrainerLink
from hf_vitcompress.errors import ConfigError, OutputError
from hf_vitcompress.model.assembly import is_factored
from support import training
from support.models import tiny_config
from support.students import lively
from support.training import CONFIG, DATA, Recorder, Watcher, changing_steps, same_weights, weights_of

CALLBACKS: dict[str, Callable[[], Any]] = {
    "end": lambda: CompressionCallback(CONFIG),
    "midst": lambda: CompressionCallback(CONFIG, at_step=1),
    "stages": lambda: ProgressiveCompressionCallback(CONFIG, [(1, 0.8), (2, 0.5)]),
}


def new_model(seed: int = 0, layers: int = 2) -> PreTrainedModel:
    return lively(config=tiny_config(num_hidden_layers=layers), seed=seed)


def new_trainer(
    folder: Path, *callbacks: TrainerCallback, model: PreTrainedModel | None = None, **more: Any
) -> Trainer:
    settings = {"max_steps": 3, "logging_steps": 1, "without_evaluation": True, **more}
    return training.new_trainer(folder, *callbacks, model=model or new_model(), **settings)


@pytest.fixture
def no_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an implementation of Python that does not show a function's callers."""
    monkeypatch.setattr("inspect.currentframe", lambda: None)


# ---- ways to give it


@pytest.mark.parametrize("name", CALLBACKS)
def test_an_attached_callback_works_without_looking_for_its_trainer(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = new_trainer(tmp_path, CALLBACKS[name]())
    given.train()
    monkeypatch.setattr("inspect.currentframe", lambda: None)
    trainer = new_trainer(tmp_path, recorder := Recorder())
    callback = CALLBACKS[name]().attach(trainer)
    metrics = CompressionMetricsCallback().attach(trainer)
    assert trainer.callback_handler.callbacks[1:4] == [callback, metrics, recorder]
    assert callback.attach(trainer) is callback
    trainer.train()
    assert trainer.callback_handler.callbacks.count(callback) == 1
    assert same_weights(weights_of(trainer), weights_of(given))
    assert [step for step, logs in recorder.logs if "compression_keep_ratio" in logs] == [1, 2, 3]


def test_a_trainer_that_is_not_found_can_be_named(tmp_path: Path, no_frames: None) -> None:
    with pytest.raises(ConfigError, match=r"CompressionCallback\(…\)\.attach\(trainer\)"):
        new_trainer(tmp_path, CompressionCallback(CONFIG))


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator, as others put around the methods of a Trainer."""

    @functools.wraps(function)
    def wrapper(*arguments: Any, **named: Any) -> Any:
        return function(*arguments, **named)

    return wrapper


class LateTrainer(Trainer):
    """Is made by its base class in the midst of its own making, and needs what comes after to make an optimizer."""

    @logged
    def __init__(this, *arguments: Any, **named: Any) -> None:  # noqa: N805
        this.before = True
        super().__init__(*arguments, **named)
        this.rate = 1e-3

    def create_optimizer(self, model: Any = None) -> Any:
        if self.optimizer is None:
            parameters = [p for p in (model or self.model).parameters() if p.requires_grad]
            self.optimizer = torch.optim.SGD(parameters, lr=self.rate)
        return self.optimizer


def test_a_subclass_of_trainer_is_found(tmp_path: Path) -> None:
    usual = new_trainer(tmp_path)
    trainer = LateTrainer(
        new_model(), usual.args, train_dataset=DATA, callbacks=[CompressionCallback(CONFIG, at_step=1)]
    )
    trainer.train()
    assert is_factored(trainer.model)


def test_a_launcher_of_notebooks_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainers = []

    def work() -> None:
        trainers.append(new_trainer(tmp_path, CompressionCallback(CONFIG, at_step=1)))
        trainers[0].train()

    notebook_launcher(work, num_processes=1)
    assert is_factored(trainers[0].model)


class Forwarding(TrainerCallback):
    """A callback around another one, which the Trainer does not know."""

    def __init__(self, inner: TrainerCallback) -> None:
        for event in [name for name in dir(TrainerCallback) if name.startswith("on_")]:
            setattr(self, event, getattr(inner, event))


def test_a_callback_inside_another_one_finds_the_trainer(tmp_path: Path) -> None:
    callback = CompressionCallback(CONFIG, at_step=1)
    trainer = new_trainer(tmp_path, Forwarding(callback))
    trainer.train()
    assert callback.trainer is trainer
    assert is_factored(trainer.model)


def test_figures_of_an_evaluation_need_no_training(tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path, without_evaluation=False)
    trainer.add_callback(CompressionMetricsCallback())
    trainer.evaluate()
    assert trainer.state.log_history[-1]["compression_keep_ratio"] == 1


@pytest.mark.parametrize("way", ["add_callback", "attach"])
@pytest.mark.parametrize("name", CALLBACKS)
def test_a_callback_that_comes_in_the_midst_of_a_training_says_so(tmp_path: Path, way: str, name: str) -> None:
    class Adding(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            late = CALLBACKS[name]()
            trainer.add_callback(late) if way == "add_callback" else late.attach(trainer)

    trainer = new_trainer(tmp_path, Adding())
    with pytest.raises(ConfigError, match=r"added while the training was running\. Attach it before"):
        trainer.train()
    assert trainer.state.global_step == 1


def test_a_training_that_broke_off_may_be_begun_anew(tmp_path: Path) -> None:
    class Breaking(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            raise KeyboardInterrupt

    trainer = new_trainer(tmp_path, breaking := Breaking())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.remove_callback(breaking)
    CompressionCallback(CONFIG, at_step=1).attach(trainer)
    trainer.train()
    assert is_factored(trainer.model)


# ---- several Trainers


@pytest.mark.parametrize("name", CALLBACKS)
def test_a_callback_works_for_the_trainer_that_calls_it(tmp_path: Path, name: str) -> None:
    callback, watchers = CALLBACKS[name](), (Watcher(), Watcher())
    one = new_trainer(tmp_path, callback, watchers[0])
    other = new_trainer(tmp_path, callback, watchers[1], model=new_model(seed=5))
    one.train()
    other.train()
    alone = new_trainer(tmp_path, CALLBACKS[name](), model=new_model(seed=5))
    alone.train()
    assert is_factored(one.model)
    assert same_weights(weights_of(other), weights_of(alone))
    size = one.model.num_parameters()
    one.train()
    assert changing_steps(watchers[0]) == []
    assert one.model.num_parameters() == size


def test_a_callback_goes_on_with_another_trainer_from_a_checkpoint(tmp_path: Path) -> None:
    callback = CompressionCallback(CONFIG, at_step=1)
    saving = {"save_strategy": "steps", "save_steps": 2}
    first = new_trainer(tmp_path, callback, **saving)
    first.train()
    second = new_trainer(tmp_path, callback, model=new_model(seed=9), **saving)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert same_weights(weights_of(first), weights_of(second))


def test_a_model_that_the_callback_has_compressed_stays_as_it_is(tmp_path: Path) -> None:
    callback, watcher = CompressionCallback(CONFIG), Watcher()
    first = new_trainer(tmp_path, callback)
    first.train()
    report = callback.report
    new_trainer(tmp_path, callback, watcher, model=first.model).train()
    assert callback.report is report
    smaller = CompressionCallback(CONFIG.with_budget(keep_ratio=0.4))
    new_trainer(tmp_path, smaller, model=first.model).train()
    assert smaller.report.keep_ratio == pytest.approx(0.4, rel=0.01)


def test_figures_are_those_of_the_trainers_own_model(tmp_path: Path) -> None:
    metrics = CompressionMetricsCallback()
    sizes = []
    for layers in (2, 1):
        trainer = new_trainer(tmp_path, recorder := Recorder(), model=new_model(layers=layers))
        metrics.attach(trainer)
        trainer.train()
        assert [logs["compression_keep_ratio"] for _, logs in recorder.logs if "loss" in logs] == [1, 1, 1]
        sizes.append(recorder.logs[0][1]["compression_parameters"])
    assert sizes[0] > sizes[1]


def test_each_model_of_a_search_over_hyperparameters_is_compressed(tmp_path: Path) -> None:
    """`hyperparameter_search` calls `train` for each trial, with a new model and the same callbacks."""
    plain = new_trainer(tmp_path)
    callback, recorder = CompressionCallback(CONFIG, at_step=1), Recorder()
    trainer = Trainer(model_init=lambda: new_model(), args=plain.args, train_dataset=DATA, callbacks=[recorder])
    callback.attach(trainer)
    CompressionMetricsCallback().attach(trainer)
    CALLBACKS["midst"]().attach(plain)
    plain.train()
    for _ in range(2):
        trainer.train()
        assert same_weights(weights_of(trainer), weights_of(plain))
        ratios = [logs["compression_keep_ratio"] for _, logs in recorder.logs if "loss" in logs]
        assert ratios[-3:] == [callback.report.keep_ratio] * 3
        recorder.closed = False


# ---- copies, and what is kept


def pickled(callback: TrainerLink) -> TrainerLink:
    return pickle.loads(pickle.dumps(callback))


@pytest.mark.parametrize(
    ("name", "copied"),
    [("midst", copy.copy), ("midst", copy.deepcopy), ("midst", pickled), ("stages", pickled), ("end", pickled)],
)
def test_a_copy_meets_a_trainer_of_its_own(
    tmp_path: Path, name: str, copied: Callable[[TrainerLink], TrainerLink]
) -> None:
    trainer = new_trainer(tmp_path, callback := CALLBACKS[name]())
    trainer.train()
    twin = copied(callback)
    with pytest.raises(ConfigError, match="inside a Trainer only"):
        _ = twin.trainer
    other = new_trainer(tmp_path)
    twin.attach(other)
    other.train()
    assert (callback.trainer, twin.trainer) == (trainer, other)
    assert same_weights(weights_of(other), weights_of(trainer))


@pytest.mark.parametrize("name", [*CALLBACKS, "metrics"])
def test_a_callback_keeps_neither_trainer_nor_model(tmp_path: Path, name: str) -> None:
    callback = CALLBACKS[name]() if name in CALLBACKS else CompressionMetricsCallback()
    trainer = new_trainer(tmp_path, callback)
    trainer.train()
    held = weakref.ref(trainer), weakref.ref(trainer.model)
    del trainer
    gc.collect()
    assert [reference() for reference in held] == [None, None]
    with pytest.raises(ConfigError, match="inside a Trainer only"):
        _ = callback.trainer


def test_a_folder_that_it_could_not_save_to_is_refused_before_the_training(tmp_path: Path) -> None:
    new_model().save_pretrained(tmp_path / "dense")
    callback = CompressionCallback(CONFIG, output_dir=tmp_path / "dense")
    with pytest.raises(OutputError, match=r"dense' holds a model .* Choose another folder"):
        callback.attach(new_trainer(tmp_path / "run"))
