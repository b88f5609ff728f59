"""A Trainer that holds a wrapper of timm compresses it in place, and goes on from any checkpoint."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForImageClassification,
    PreTrainedModel,
    TimmWrapperForImageClassification,
    Trainer,
    TrainerCallback,
)

from hf_vitcompress import CompressionConfig
from hf_vitcompress.callbacks import (
    CompressionCallback,
    CompressionMetricsCallback,
    ImportanceGateCallback,
    ProgressiveCompressionCallback,
)
from hf_vitcompress.errors import ConfigError, DataError
from hf_vitcompress.importance.gates import gates_of
from hf_vitcompress.model.assembly import is_factored
from hf_vitcompress.model.restructure import adopt, carry_optimizer, parameter_roles

pytest.importorskip("timm", reason="timm is not installed here; `make test-torchvision` runs this part")

from support.timm_models import EVA, VIT, factored, images, logits, wrapper
from support.training import CONFIG, new_trainer, same_weights, weights_of

# Each rank is a large part of so small a model.
pytestmark = pytest.mark.filterwarnings("ignore::hf_vitcompress.errors.BudgetWarning")

TINY = {"depth": 1, "embed_dim": 16, "patch_size": 4, "img_size": 8}
RECIPE = replace(CONFIG, keep_ratio=0.8, num_images=16)
GATED = CompressionConfig.preset(
    "vtp",
    keep_ratio=0.8,
    attention="joint",
    compensation="none",
    rank_multiple=1,
    num_images=16,
    precision="float32",
    measuring_images=0,
)
RUNS: dict[str, Callable[[], Any]] = {
    "compressed": lambda: CompressionCallback(RECIPE, at_step=3, evaluate=False),
    "stages": lambda: ProgressiveCompressionCallback(RECIPE, [(3, 0.9), (5, 0.8)]),
    "scores": lambda: ImportanceGateCallback(GATED, at_step=3, evaluate=False),
}
EVERY_SECOND = {"save_strategy": "steps", "save_steps": 2}


def tiny(seed: int = 0, **arguments: Any) -> PreTrainedModel:
    return wrapper(VIT, seed, **{**TINY, **arguments})


def trainer_of(
    folder: Path, *callbacks: TrainerCallback, model: PreTrainedModel | None = None, **settings: Any
) -> Trainer:
    model = model or tiny()
    data = [{"pixel_values": image, "labels": i % 10} for i, image in enumerate(images(model, 16))]
    values = {"max_steps": 6, "learning_rate": 1e-3, "without_evaluation": True, **settings}
    trainer = new_trainer(folder, *callbacks, model=model, **values)
    trainer.train_dataset, trainer.eval_dataset = data, data[:4]
    return trainer


def held(trainer: Trainer) -> set[nn.Parameter]:
    return {parameter for group in trainer.optimizer.param_groups for parameter in group["params"]}


@pytest.fixture(scope="module", params=RUNS)
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Trainer]:
    folder = tmp_path_factory.mktemp(request.param)
    trainer = trainer_of(folder, RUNS[request.param](), weight_decay=0.1, **EVERY_SECOND)
    trainer.train()
    return request.param, folder, trainer


def test_the_wrapper_is_a_compressed_model_afterwards(finished: tuple[str, Path, Trainer]) -> None:
    _, folder, trainer = finished
    assert is_factored(trainer.model)
    assert held(trainer) == set(trainer.model.parameters())
    reloaded = AutoModelForImageClassification.from_pretrained(folder / "checkpoint-6").eval()
    pixels = images(tiny())
    assert torch.equal(logits(reloaded, pixels), logits(trainer.model.eval(), pixels))


def test_a_checkpoint_from_before_is_one_of_timm(finished: tuple[str, Path, Trainer]) -> None:
    _, folder, _ = finished
    content = json.loads((folder / "checkpoint-2" / "config.json").read_text())
    assert content["architectures"] == ["TimmWrapperForImageClassification"]
    assert content["architecture"] == VIT
    loaded, info = AutoModelForImageClassification.from_pretrained(folder / "checkpoint-2", output_loading_info=True)
    assert type(loaded) is TimmWrapperForImageClassification
    assert not info["missing_keys"]


@pytest.mark.parametrize("step", [2, 4])
def test_a_resumed_training_ends_with_the_same_bits(finished: tuple[str, Path, Trainer], step: int) -> None:
    name, folder, expected = finished
    trainer = trainer_of(folder, RUNS[name](), model=tiny(seed=9), weight_decay=0.1)
    trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
    assert same_weights(weights_of(trainer), weights_of(expected))


def test_a_model_with_gated_feed_forwards_is_trained(tmp_path: Path) -> None:
    model = wrapper(EVA, **TINY)
    trainer = trainer_of(tmp_path, RUNS["compressed"](), model=model, max_steps=4)
    trainer.train()
    assert is_factored(model)
    assert held(trainer) == set(model.parameters())


def test_a_training_without_the_callback_can_be_resumed_with_it(tmp_path: Path) -> None:
    trainer_of(tmp_path, **EVERY_SECOND, max_steps=2).train()
    trainer = trainer_of(tmp_path, CompressionCallback(RECIPE, at_step=3, evaluate=False), model=tiny(seed=9))
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert is_factored(trainer.model)


def test_a_model_that_is_never_compressed_stays_as_it_was(tmp_path: Path) -> None:
    model = tiny()
    before = dict(model.named_parameters())
    missing = torch.zeros(0)
    trainer = trainer_of(
        tmp_path, CompressionCallback(RECIPE, images=missing), CompressionMetricsCallback(), model=model
    )
    with pytest.raises(DataError):
        trainer.train()
    assert type(model) is TimmWrapperForImageClassification
    assert dict(model.named_parameters()) == before


def test_scores_that_are_refused_leave_the_wrapper_as_it_is(tmp_path: Path) -> None:
    model = tiny()
    with pytest.raises(ConfigError, match="prune neither heads nor neurons"):
        trainer_of(tmp_path, ImportanceGateCallback(replace(GATED, mlp="none")), model=model)
    assert type(model) is TimmWrapperForImageClassification
    assert not gates_of(model)


def test_figures_of_a_dense_wrapper_and_of_what_becomes_of_it(tmp_path: Path) -> None:
    metrics = CompressionMetricsCallback(dense=tiny())
    trainer = trainer_of(tmp_path, metrics, CompressionCallback(RECIPE, at_step=3, evaluate=False), logging_steps=1)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert logs[0]["compression_keep_ratio"] == 1
    assert logs[0]["compression_rank_mean_q"] == 16
    assert logs[-1]["compression_keep_ratio"] < 0.8
    assert logs[-1]["compression_macs"] < logs[0]["compression_macs"]


class Best(TrainerCallback):
    """The model of the second step scores best."""

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        kwargs["metrics"]["eval_score"] = float(state.global_step == 2)


def test_a_better_dense_model_may_win_and_is_saved_as_timm_has_it(tmp_path: Path) -> None:
    callback = CompressionCallback(RECIPE, at_step=3, evaluate=False, reset_best=False)
    settings = {
        "eval_strategy": "steps",
        "eval_steps": 2,
        "metric_for_best_model": "score",
        "without_evaluation": False,
    }
    trainer = trainer_of(tmp_path, Best(), callback, load_best_model_at_end=True, **settings, **EVERY_SECOND)
    trainer.train()
    assert not is_factored(trainer.model)
    assert held(trainer) == set(trainer.model.parameters())
    trainer.save_model(str(tmp_path / "best"))
    best, saved = (AutoModelForImageClassification.from_pretrained(tmp_path / n) for n in ("checkpoint-2", "best"))
    assert type(saved) is TimmWrapperForImageClassification
    assert same_weights(saved.state_dict(), best.state_dict())


# ---- an optimizer that was given to the Trainer


def test_parts_of_a_fused_layer_keep_their_share_of_its_state() -> None:
    model, small = tiny(), factored(VIT, 1, **TINY)
    fused = {name: parameter for name, parameter in model.named_parameters() if "qkv" in name}
    others = [parameter for name, parameter in model.named_parameters() if "qkv" not in name]
    optimizer = torch.optim.AdamW([{"params": [*fused.values()], "lr": 1e-3}, {"params": others, "lr": 1e-2}])
    model(images(model), labels=torch.arange(8)).loss.backward()
    optimizer.step()
    moments = {name: optimizer.state[parameter]["exp_avg"].chunk(3) for name, parameter in fused.items()}

    before = parameter_roles(model)
    adopt(model, small)
    carry_optimizer(optimizer, before, model)

    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = [[names[parameter] for parameter in group["params"]] for group in optimizer.param_groups]
    assert sorted(groups[0] + groups[1]) == sorted(names.values())
    assert groups[0] == [name for name in names.values() if "qkv" in name]
    attention = model.timm_model.blocks[0].attn
    bias = moments["timm_model.blocks.0.attn.qkv.bias"]
    for place, part in enumerate((attention.qkv.q, attention.qkv.k)):
        assert torch.equal(optimizer.state[part.bias]["exp_avg"], bias[place])
    assert attention.qkv.q.weight not in optimizer.state, "the queries have another basis"
    assert "exp_avg" in optimizer.state[attention.proj.o.bias], "this parameter is the same object"
    assert set(optimizer.state) <= set(names)


def test_a_given_optimizer_goes_on(tmp_path: Path) -> None:
    model = tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    trainer = trainer_of(tmp_path, CompressionCallback(RECIPE, at_step=1, evaluate=False), model=model)
    trainer.optimizer = optimizer
    trainer.args.max_steps = 2
    trainer.train()
    assert held(trainer) == set(model.parameters())
