"""What the layers of a whole model are solved on: inputs that come from the compressed layers before them."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DeiTConfig, DeiTForImageClassification, PreTrainedModel, ViTModel

from hf_vitcompress.architectures.inputs import model_inputs
from hf_vitcompress.compensation.cross_moments import CrossMoments, targets_output
from hf_vitcompress.compensation.residual import RIDGE, ResidualCompensation
from hf_vitcompress.images.images import ImageSource
from hf_vitcompress.planning.groups.base import RegressionTarget
from support.models import TINY, tiny_config
from support.residuals import FAMILIES, NEVER_WORSE, judged, some_ranks
from support.students import (
    LOW_RANK,
    METHODS,
    Case,
    changed,
    checkpoint,
    compressed,
    lively,
    logits,
    random_images,
    state_of,
)
from support.zoo import Head

THREE_BLOCKS = tiny_config(num_hidden_layers=3)


def record(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, ...], CrossMoments]:
    """The moments that layers are solved with, alone or together."""
    seen: dict[tuple[str, ...], CrossMoments] = {}
    solve = ResidualCompensation._solve

    def recording(self: ResidualCompensation, target: RegressionTarget, moments: CrossMoments) -> Any:
        seen[tuple(layer.name for layer in target.layers)] = moments
        return solve(self, target, moments)

    monkeypatch.setattr(ResidualCompensation, "_solve", recording)
    return seen


def changed_layers(case: Case) -> set[tuple[str, ...]]:
    """The layers that the plan changes, q and k together where they share a `down`; of removed ones nothing is left."""
    names = {(layer.parent, layer.role): layer.name for layer in case.prepared.layers}
    return {
        (names[name, "q"], names[name, "k"]) if "qk_rank" in shape else (name,)
        for name, shape in case.plan.layers.items()
        if 0 not in shape.values()
    }


def flow(model: PreTrainedModel, names: set[str], images: ImageSource, batch_size: int = 16) -> dict[str, Tensor]:
    """What every one of these layers reads in a forward pass of the whole model, (tokens, d) float64."""
    model = copy.deepcopy(model).double()
    seen: dict[str, list[Tensor]] = {name: [] for name in names}

    def keep(name: str) -> Any:
        return lambda _, inputs: seen[name].append(inputs[0].flatten(0, -2))

    for name in names:
        model.get_submodule(name).register_forward_pre_hook(keep(name))
    with torch.no_grad():
        for batch in images.batches(None, batch_size):
            model(**model_inputs(model, batch.pixel_values))
    return {name: torch.cat(tokens) for name, tokens in seen.items()}


def close(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).norm() <= 1e-4 * expected.norm() + 1e-7)


CASES: dict[str, dict[str, Any]] = {
    **METHODS,
    "skipped block": {"skip_modules": ["layers.1.*"], "keep_ratio": 0.6},
    "skipped first block": {"skip_modules": ["layers.0.*"], "keep_ratio": 0.6},
    "some layers": {"ranks": some_ranks(THREE_BLOCKS)},
    "one kind of layer": {"target_modules": ["o_proj"], "keep_ratio": 0.95},
    "ragged batches": {"batch_size": 7, "metric": "activation"},
    "uncorrected": {"correct_bias": False},
}


def assert_inputs_are_those_of_a_full_pass(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer's inputs depend on the layers before it only, and these are final when it is solved."""
    judged(monkeypatch, NEVER_WORSE)
    student, seen = case.student(), record(monkeypatch)
    case.residual(student).run(checkpoint())
    names = changed_layers(case)
    assert set(seen) == names
    readers = {name: name[0] if len(name) == 1 else f"{name[0].rpartition('.')[0]}.qk_down" for name in names}
    dense = flow(case.dense, {name[0] for name in names}, case.train, case.config.batch_size)
    compressed_ = flow(student, set(readers.values()), case.train, case.config.batch_size)
    differ = [dense[name[0]].shape != compressed_[readers[name]].shape for name in names]
    assert any(differ) or not all(
        torch.allclose(dense[name[0]], compressed_[readers[name]], atol=1e-2) for name in names
    )
    for name, moments in seen.items():
        layer = next(layer for layer in case.prepared.layers if layer.name == name[0])
        x_hat, target = compressed_[readers[name]], dense[name[0]]
        if targets_output(layer):
            target = target @ case.dense.get_submodule(name[0]).weight.detach().double().T
        centred, centred_target = x_hat - x_hat.mean(0), target - target.mean(0)
        assert close(moments.input_mean, x_hat.mean(0))
        assert close(moments.covariance, centred.T @ centred / len(x_hat))
        assert close(moments.target_mean, target.mean(0))
        assert close(moments.cross, centred_target.T @ centred / len(x_hat))


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_inputs_really_come_from_the_compressed_prefix(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_inputs_are_those_of_a_full_pass(compressed(lively(config=THREE_BLOCKS), **settings), monkeypatch)


@pytest.mark.parametrize("head", FAMILIES, ids=str)
@pytest.mark.parametrize("method", ["default", "low rank"])
def test_they_do_in_every_family(head: Head, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = compressed(head.dense(), head.pixels(60), keep_ratio=0.6, **METHODS[method])
    assert_inputs_are_those_of_a_full_pass(case, monkeypatch)


@pytest.mark.parametrize("head", FAMILIES, ids=str)
def test_no_family_ends_worse_than_it_began(head: Head) -> None:
    case = compressed(head.dense(), head.pixels(60), keep_ratio=0.6)
    student = case.student()
    before = state_of(student)
    points = case.residual(student).run(checkpoint())
    best = min(point.loss for point in points)
    assert case.reference.loss_of(student) == pytest.approx(best, rel=1e-4)
    assert bool(changed(before, student)) == (best < points[0].loss)


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_layer_by_layer_the_error_of_the_output_falls(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    case = compressed(lively(config=THREE_BLOCKS), metric="activation", residual_share=share, **LOW_RANK)
    judged(monkeypatch, NEVER_WORSE)
    student, closed_form = case.student(), case.student()
    case.residual(student).run(checkpoint())
    names = set(case.plan.layers)
    assert len(names) == 18
    dense_inputs, inputs = (flow(model, names, case.train) for model in (case.dense, student))
    for name in names:
        linear = copy.deepcopy(case.dense.get_submodule(name)).double().requires_grad_(False)
        x_hat = inputs[name]
        ridge = RIDGE * float(x_hat.var(0, correction=0).mean())
        errors, losses = [], []
        for model in (closed_form, student):
            module = copy.deepcopy(model.get_submodule(name)).double().requires_grad_(False)
            difference = linear.weight - module.up.weight @ module.down.weight
            errors.append(float((linear(dense_inputs[name]) - module(x_hat)).square().sum(-1).mean()))
            losses.append(errors[-1] + ridge * float(difference.square().sum()))
        assert losses[1] <= losses[0] * (1 + 1e-5), name
        if "layers.0.attention.q" not in name and ".0.attention.k" not in name and ".0.attention.v" not in name:
            assert errors[1] < errors[0], name


def full_shapes(method: str) -> dict[str, dict[str, int]]:
    """Every layer in a form of the method that loses nothing."""
    layers: dict[str, dict[str, int]] = {}
    for block in ("vit.layers.0", "vit.layers.1"):
        attention = {f"{block}.attention.{letter}_proj": letter for letter in "qkvo"}
        if method == "low rank":
            layers |= {name: {"rank": 32} for name in (*attention, f"{block}.mlp.fc1", f"{block}.mlp.fc2")}
            continue
        layers |= {f"{block}.mlp.fc1": {"out_features": 96}, f"{block}.mlp.fc2": {"in_features": 96}}
        if method == "pruned":
            layers |= {n: {"in_features" if key == "o" else "out_features": 32} for n, key in attention.items()}
        else:
            layers |= {f"{block}.attention": {"qk_rank": 32}}
            layers |= {
                n: {"in_features" if key == "o" else "out_features": 32} for n, key in attention.items() if key in "vo"
            }
    return layers


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("metric", ["activation", "fisher"])
def test_what_has_lost_nothing_has_nothing_to_win_back(
    method: str, metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = compressed(layers=full_shapes(method), metric=metric, **METHODS[method])
    judged(monkeypatch, NEVER_WORSE)
    student, pixels = case.student(), random_images(16, seed=9)
    case.residual(student).run(checkpoint())
    torch.testing.assert_close(logits(student, pixels), logits(case.dense, pixels), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("method", METHODS)
def test_the_output_of_the_blocks_comes_nearer_on_held_out_images(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = compressed(images=random_images(160), metric="activation", keep_ratio=0.6, **METHODS[method])
    judged(monkeypatch, NEVER_WORSE)
    student, closed_form = case.student(), case.student()
    case.residual(student).run(checkpoint())
    others = ImageSource(list(random_images(64, seed=9)), None, "others")
    dense, *errors = (
        flow(model, {"vit.layernorm"}, others)["vit.layernorm"] for model in (case.dense, closed_form, student)
    )
    before, after = (float((found - dense).square().sum(1).mean()) for found in errors)
    assert after < before


OTHERS: dict[str, Any] = {
    "DeiT": lambda: lively(DeiTForImageClassification, DeiTConfig(**TINY)),
    "headless": lambda: lively(ViTModel),
    "without bias": lambda: lively(config=tiny_config(qkv_bias=False)),
    "one block": lambda: lively(config=tiny_config(num_hidden_layers=1)),
    "five blocks": lambda: lively(config=tiny_config(num_hidden_layers=5)),
    "narrow hidden layer": lambda: lively(config=tiny_config(intermediate_size=24)),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make_dense", OTHERS.values(), ids=OTHERS)
def test_other_models_work(make_dense: Any, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = compressed(make_dense(), **METHODS[method])
    student, seen = case.student(), record(monkeypatch)
    before = state_of(student)
    points = case.residual(student).run(checkpoint())
    assert set(seen) == changed_layers(case)
    assert len(points) == 1 + min(4, case.dense.config.num_hidden_layers)
    assert bool(changed(before, student)) == (min(point.loss for point in points) < points[0].loss)
