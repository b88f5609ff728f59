"""Importance gates: on a model and off it, and their penalty."""

import copy

import pytest
import torch
from torch import Tensor
from transformers import DeiTConfig, DeiTForImageClassification, PreTrainedModel, ViTModel

from hf_vitcompress import CompressionConfig, CompressionPlan, ViTCompressor
from hf_vitcompress.architectures.layers import find_layers
from hf_vitcompress.architectures.subject import Subject
from hf_vitcompress.errors import ConfigError
from hf_vitcompress.importance.gates import (
    add_penalty_gradient,
    attach_gates,
    detach_gates,
    fold_gates,
    gates_of,
    gates_off,
    penalty,
    scores,
)
from hf_vitcompress.planning.building import build_model
from hf_vitcompress.planning.planner import make_planner
from hf_vitcompress.statistics.calibration import calibrate
from support.gated import CONFIG, ELSEWHERE, FC2, OUT, PIXELS, SMALL, images, small
from support.models import seeded
from support.stages import quiet
from support.students import lively, logits

pytestmark = pytest.mark.filterwarnings("ignore::hf_vitcompress.errors.BudgetWarning")  # heads come whole


def randomly_gated(model: PreTrainedModel) -> PreTrainedModel:
    generator = torch.Generator().manual_seed(0)
    for gate in attach_gates(model, CONFIG).values():
        gate.data.copy_(torch.rand(gate.shape, generator=generator) * 2 - 0.5)
    return model


# ---- on a model and off it


def test_new_gates_change_nothing_and_leave_no_trace() -> None:
    model = small()
    before, names, state = logits(model, PIXELS), set(vars(model.get_submodule(FC2))), set(model.state_dict())
    gates = attach_gates(model, CONFIG)
    assert {name: tuple(gate.shape) for name, gate in gates.items()} == {OUT: (2,), FC2: (24,)}
    assert set(gates.values()) <= set(model.parameters())
    assert torch.equal(logits(model, PIXELS), before)
    assert attach_gates(model, CONFIG)[FC2] is gates[FC2]
    detach_gates(model)
    assert set(vars(model.get_submodule(FC2))) == names
    assert set(model.state_dict()) == state
    assert not model.get_submodule(FC2)._forward_pre_hooks


def test_a_score_multiplies_what_its_neuron_or_head_says() -> None:
    model, cut = small(), small()
    gates = attach_gates(model, CONFIG)
    gates[FC2].data[3], gates[OUT].data[1] = 0.0, 2.0
    cut.get_submodule(FC2).weight.data[:, 3] = 0
    cut.get_submodule(OUT).weight.data[:, 8:] *= 2
    torch.testing.assert_close(logits(model, PIXELS), logits(cut, PIXELS))


@pytest.mark.parametrize("kind", ["vit", "deit", "headless"])
def test_folding_changes_nothing(kind: str) -> None:
    if kind == "deit":
        model = seeded(DeiTForImageClassification, DeiTConfig(**{**SMALL.to_dict(), "model_type": "deit"}))
    else:
        model = small() if kind == "vit" else lively(ViTModel, SMALL)
    model = randomly_gated(model.double())
    with torch.no_grad():
        expected = model(pixel_values=PIXELS.double())[0]
        values = scores(model)
        assert all(own.dtype == torch.float64 for own in values.values())
        folded = fold_gates(model)
        torch.testing.assert_close(model(pixel_values=PIXELS.double())[0], expected, rtol=1e-12, atol=1e-12)
    assert folded.keys() == values.keys()
    assert not gates_of(model)


def test_pruning_without_repair_is_gates_at_zero() -> None:
    model = randomly_gated(small().double())
    importance = scores(model)
    expected = copy.deepcopy(model)
    fold_gates(model)
    compressor = ViTCompressor(CONFIG, importance=importance, progress=False)
    statistics = compressor.calibrate(model, PIXELS)
    pruned = compressor.build(model, statistics, plan := compressor.plan(model, statistics))
    kept = {name: plan.layers[name]["in_features"] if name in plan.layers else 10**6 for name in (FC2, OUT)}
    assert kept[FC2] < 24
    for name, gate in gates_of(expected).items():
        left = min(kept[name] * len(gate) // expected.get_submodule(name).in_features, len(gate))
        gate.data[gate.abs().argsort(descending=True)[left:]] = 0
    with torch.no_grad():
        torch.testing.assert_close(
            pruned(pixel_values=PIXELS.double()).logits,
            expected(pixel_values=PIXELS.double()).logits,
            rtol=1e-10,
            atol=1e-10,
        )


def test_gates_can_be_turned_off_for_a_while() -> None:
    model = small()
    dense = logits(model, PIXELS)
    gated = logits(randomly_gated(model), PIXELS)
    with gates_off(model):
        assert torch.equal(logits(model, PIXELS), dense)
    assert torch.equal(logits(model, PIXELS), gated)


def test_a_copy_can_be_folded_by_itself() -> None:
    model = randomly_gated(small())
    twin = copy.deepcopy(model)
    fold_gates(twin)
    assert not twin.get_submodule(FC2)._forward_pre_hooks
    assert set(gates_of(model)) == {FC2, OUT}
    torch.testing.assert_close(logits(twin, PIXELS), logits(model, PIXELS))


def test_scores_of_half_precision_models_are_not() -> None:
    model = randomly_gated(small().bfloat16())
    assert {gate.dtype for gate in gates_of(model).values()} == {torch.float32}
    assert logits(model, PIXELS.bfloat16()).dtype == torch.bfloat16


def test_nothing_to_gate_is_refused() -> None:
    config = CompressionConfig(attention="low_rank", mlp="low_rank")
    with pytest.raises(ConfigError, match="prune neither heads nor neurons"):
        attach_gates(small(), config)
    assert set(attach_gates(small(), CompressionConfig(skip_modules=["o_proj"]))) == {FC2}


# ---- other architectures

elsewhere = pytest.mark.parametrize("kind", ELSEWHERE)


def hidden(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(pixel_values=PIXELS.to(model.dtype))[0]


@elsewhere
def test_gates_of_other_architectures(kind: str) -> None:
    model_class, config, fc2, out = ELSEWHERE[kind]
    model = lively(model_class, config)
    before, neurons = hidden(model), model.get_submodule(fc2).in_features
    gates = attach_gates(model, CONFIG)
    assert {name: len(gate) for name, gate in gates.items()} == {fc2: neurons, out: 2}
    assert torch.equal(hidden(model), before)
    assert penalty(model) == pytest.approx(1.0)
    gates[fc2].data.zero_()
    # Two heads of 4 · 8 rows and columns, and neurons with a row or column of two layers, or of three.
    own = neurons * (3 if kind == "gated" else 2)
    assert penalty(model) == pytest.approx(64 / (64 + own))
    randomly_gated(model)
    gated = hidden(model)
    fold_gates(model)
    torch.testing.assert_close(hidden(model), gated, rtol=1e-4, atol=1e-4)


@elsewhere
def test_pruning_without_repair_is_gates_at_zero_elsewhere(kind: str) -> None:
    model_class, own, *_ = ELSEWHERE[kind]
    model = lively(model_class, own).double()
    importance = {name: torch.rand(len(gate)) for name, gate in attach_gates(model, CONFIG).items()}
    detach_gates(model)
    config = CompressionConfig(
        attention="prune", mlp="prune", criterion="gates", metric="weight", repair=False, correct_bias=False
    )
    statistics = calibrate(Subject.alone(model), find_layers(model), images(), quiet(config))
    ready = make_planner(Subject.alone(model), statistics, quiet(config), importance)
    heads, mlp = ready.groups
    plan = CompressionPlan({**heads.choices(1)[0].shapes, **mlp.choices(1)[9].shapes})
    small_model = build_model(model, plan, ready.groups)
    for name, gate in attach_gates(model, CONFIG).items():
        left = plan.layers[name]["in_features"] * len(gate) // model.get_submodule(name).in_features
        assert 0 < left < len(gate)
        gate.data[importance[name].argsort(descending=True)[left:]] = 0
    torch.testing.assert_close(hidden(small_model), hidden(model), rtol=1e-9, atol=1e-9)


# ---- the penalty


def test_the_penalty_is_a_mean_by_weights() -> None:
    model = small()
    gates = attach_gates(model, CONFIG)
    assert penalty(model) == pytest.approx(1.0)
    gates[FC2].data.zero_()
    # Two heads of dimension 8 have as many weights as 32 neurons.
    assert penalty(model) == pytest.approx(32 / (32 + 24))


def test_its_subgradient_is_that_of_autograd_and_adds_up() -> None:
    model = randomly_gated(small())
    gates = gates_of(model)
    gates[FC2].data[0] = 0.0
    total = 32 + 24
    mean = (gates[FC2].abs().sum() + 16 * gates[OUT].abs().sum()) / total
    expected = torch.autograd.grad(0.7 * mean, list(gates.values()))
    gates[OUT].grad = torch.ones(2)
    add_penalty_gradient(model, 0.7)
    torch.testing.assert_close(gates[OUT].grad - 1, expected[list(gates).index(OUT)])
    torch.testing.assert_close(gates[FC2].grad, expected[list(gates).index(FC2)])
    assert gates[FC2].grad[0] == 0
