"""Importance scores: gates on a model and off it, and how they are learned."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from matplotlib.figure import Figure
from torch import Tensor
from transformers import (
    DeiTConfig,
    DeiTForImageClassification,
    Dinov2Config,
    Dinov2Model,
    DPTConfig,
    DPTModel,
    PreTrainedModel,
    ViTModel,
    YolosConfig,
    YolosModel,
)

from hf_vitcompress import CompressionConfig, CompressionPlan, Statistics, ViTCompressor
from hf_vitcompress.architectures.layers import find_layers
from hf_vitcompress.errors import CompensationError, ConfigError, DataError
from hf_vitcompress.gate_plots import sparsity_by_layer, sparsity_over_seconds, spread
from hf_vitcompress.images.images import ImageSource
from hf_vitcompress.importance.gates import (
    GATE_LEARNING_RATE,
    add_penalty_gradient,
    attach_gates,
    detach_gates,
    fold_gates,
    gates_of,
    gates_off,
    penalty,
    scores,
)
from hf_vitcompress.importance.learning import _Learning, gate_checkpoint, learn_gates
from hf_vitcompress.planning.building import build_model
from hf_vitcompress.planning.planner import prepare_model
from hf_vitcompress.planning.selection import selection_method
from hf_vitcompress.runtime.checkpoints import Checkpoint
from hf_vitcompress.statistics.calibration import calibrate
from support.models import seeded, tiny_config
from support.students import lively, logits, random_images, state_of

PIXELS = random_images(48)
SMALL = tiny_config(num_hidden_layers=1, hidden_size=16, intermediate_size=24, num_attention_heads=2)
WIDE: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
FAST = {"precision": "float32", "rank_multiple": 1, "measuring_images": 0}
# Of 3,149 parameters; a neuron has 32 and a head 512, so that ratios would be met by chance only.
CONFIG = CompressionConfig.preset("vtp", max_params=2400, compensation="none", gate_duration="2 epochs", **FAST)
FC2, OUT = "vit.layers.0.mlp.fc2", "vit.layers.0.attention.o_proj"
RISING = {FC2: torch.arange(24.0), OUT: torch.tensor([1.0, 2.0])}
FALLING = {name: own.flip(0) for name, own in RISING.items()}


def small() -> PreTrainedModel:
    return lively(config=SMALL)


def images() -> ImageSource:
    return ImageSource(list(PIXELS), None, "the images")


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_vitcompress.importance.learning.BATCH_SIZE", 12)


def learned(
    model: PreTrainedModel | None = None, learning_rate: float = GATE_LEARNING_RATE, **changes: Any
) -> tuple[dict[str, Tensor], Any]:
    config = CompressionConfig.from_dict({**CONFIG.to_dict(), **changes})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hf_vitcompress.importance.learning.GATE_LEARNING_RATE", learning_rate)
        return learn_gates(model or small(), images(), config, progress=False)


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


# ---- other architectures: gated feed-forward networks, and an output projection outside of the attention module

ELSEWHERE: dict[str, tuple[type[PreTrainedModel], Any, str, str]] = {
    "gated": (
        Dinov2Model,
        Dinov2Config(**WIDE, mlp_ratio=3, use_swiglu_ffn=True),
        "encoder.layer.0.mlp.down_proj",
        "encoder.layer.0.attention.o_proj",
    ),
    "yolos": (
        YolosModel,
        YolosConfig(**{**WIDE, "image_size": [16, 16]}, intermediate_size=24, num_detection_tokens=3),
        "encoder.layer.0.output.dense",
        "encoder.layer.0.attention.output.dense",
    ),
    "dpt": (
        DPTModel,
        DPTConfig(**WIDE, intermediate_size=24, backbone_out_indices=[0, 0, 0, 0]),
        "encoder.layer.0.output.dense",
        "encoder.layer.0.attention.output.dense",
    ),
}
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
    statistics = calibrate(model, find_layers(model), images(), config, progress=False)
    ready = prepare_model(model, statistics, config, progress=False, importance=importance)
    heads, mlp = ready.parts
    plan = CompressionPlan({**heads.choices(1)[0].shapes, **mlp.choices(1)[9].shapes})
    small_model = build_model(model, plan, ready.parts)
    for name, gate in attach_gates(model, CONFIG).items():
        left = plan.layers[name]["in_features"] * len(gate) // model.get_submodule(name).in_features
        assert 0 < left < len(gate)
        gate.data[importance[name].argsort(descending=True)[left:]] = 0
    torch.testing.assert_close(hidden(small_model), hidden(model), rtol=1e-9, atol=1e-9)


@elsewhere
def test_scores_of_other_architectures_are_learned(kind: str) -> None:
    model_class, config, fc2, out = ELSEWHERE[kind]
    model = lively(model_class, config)
    model.get_submodule(fc2).weight.data[:, 5] = 0
    values, _ = learned(model, gate_l1=0.01, learning_rate=0.1, gate_duration="4 epochs")
    assert set(values) == {fc2, out}
    assert values[fc2][5] == pytest.approx(float(values[fc2].min()), abs=0.01)
    assert values[fc2].max() > values[fc2].min() + 0.1


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


# ---- learning


def test_a_useless_neuron_gets_the_lowest_score() -> None:
    model = small()
    layer = model.get_submodule(FC2)
    layer.weight.data[:, 5] = 0
    layer.weight.data[:, 7] *= 8
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    values, report = learned(model, gate_l1=0.01, learning_rate=0.1, gate_duration="4 epochs")
    assert int(values[FC2].argmin()) == 5
    assert values[FC2][7] > values[FC2].median()
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert report.points[0].mean > report.points[-1].mean


def test_a_larger_penalty_leaves_fewer() -> None:
    means = [learned(gate_l1=l1, learning_rate=0.1)[1].points[-1].mean for l1 in (0.01, 1.0, 100.0)]
    assert means[0] > means[1] > means[2]


def test_without_classes_and_with_labels() -> None:
    values, report = learn_gates(lively(ViTModel, SMALL), images(), CONFIG, progress=False)
    assert set(values) == {"layers.0.mlp.fc2", "layers.0.attention.o_proj"}
    assert report.points[-1].loss > 0
    labelled = ImageSource(list(PIXELS), [i % 5 for i in range(48)], "the images")
    config = CompressionConfig.from_dict({**CONFIG.to_dict(), "label_weight": 1.0})
    taught = learn_gates(small(), labelled, config, progress=False)[1]
    assert taught.points[0].loss > learned()[1].points[0].loss + 0.5  # the cross entropy


def test_the_course_is_reported(tmp_path: Path) -> None:
    values, report = learned(learning_rate=0.2)
    assert [point.step for point in report.points] == list(range(1, 9))
    assert [point.images for point in report.points] == list(range(12, 97, 12))
    assert report.points[0].loss == pytest.approx(0, abs=1e-6)  # all scores are 1 and the two models are one
    every = torch.cat(list(values.values()))
    assert report.near_zero == pytest.approx(float((every < 0.1).float().mean()))
    assert [layer.name for layer in report.layers] == list(values)
    by_layer = {layer.name: layer for layer in report.layers}
    assert by_layer[FC2].mean == pytest.approx(float(values[FC2].abs().mean()))
    assert by_layer[FC2].count == 24
    axes = Figure().subplots(1, 3)
    sparsity_over_seconds(axes[0], report.points)
    sparsity_by_layer(axes[1], report.layers)
    spread(axes[2], every)
    assert list(axes[0].get_lines()[0].get_ydata()) == [point.below_half for point in report.points]


def test_minutes_bound_the_time() -> None:
    report = learned(gate_duration="0.005 minutes")[1]
    assert report.seconds < 3
    assert report.points[-1].step >= 1


class Killed(Exception):  # noqa: N818 (no error of the package's)
    pass


def test_an_interrupted_learning_ends_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = gate_checkpoint(tmp_path / "stats", small(), images(), CONFIG, Accelerator())
    expected, report = learned()
    monkeypatch.setattr("hf_vitcompress.importance.learning.CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr("hf_vitcompress.importance.learning.SAVE_EVERY", 3)
    original = _Learning._gradients

    def dying(self: _Learning, step: int) -> float:
        if step == 5:
            raise Killed
        return original(self, step)

    monkeypatch.setattr(_Learning, "_gradients", dying)
    model = small()
    with pytest.raises(Killed):
        learn_gates(model, images(), CONFIG, None, kept, progress=False)
    assert not gates_of(model)
    monkeypatch.setattr(_Learning, "_gradients", original)
    values, resumed = learn_gates(small(), images(), CONFIG, None, kept, progress=False)
    assert all(torch.equal(values[name], expected[name]) for name in expected)
    assert [point.loss for point in resumed.points] == [point.loss for point in report.points]
    again, _ = learn_gates(small(), images(), CONFIG, None, kept, progress=False)
    assert all(torch.equal(again[name], expected[name]) for name in expected)


def test_what_cannot_be_learned_from_is_named() -> None:
    model = small()
    model.classifier.weight.data.fill_(torch.nan)
    with pytest.raises(CompensationError, match="The loss became nan"):
        learned(model)
    assert not gates_of(model)
    broken = ImageSource(["nothing.png"] * 12, None, "the images")
    with pytest.raises(DataError, match="None of the 12 images"):
        learn_gates(small(), broken, CONFIG, object(), progress=False)


# ---- in a compression


@pytest.mark.parametrize("preset", ["vtp", "kumar2022"])
def test_presets_compress_by_scores_they_learn(preset: str, tmp_path: Path) -> None:
    settings = {**FAST, "gate_duration": "1 epoch", "max_params": 2400, "held_out_images": 8}
    config = CompressionConfig.preset(preset, compensation_duration="1 epoch", **settings)
    compressor = ViTCompressor(config, progress=False)
    dense = small()
    pruned = compressor.compress(dense, PIXELS, checkpoint=tmp_path / "stats")
    report = compressor.report
    assert report is not None
    assert 2100 < report.compressed.parameters <= 2400
    assert report.gates is not None
    assert [layer.name for layer in report.gates.layers] == list(compressor.importance or {})
    assert (OUT in (compressor.importance or {})) is (preset == "vtp")
    shapes = pruned.config.compression["layers"]
    assert "in_features" in shapes[FC2]
    best = compressor.importance[FC2].abs().argsort(descending=True, stable=True)[: shapes[FC2]["in_features"]]
    config = CompressionConfig.from_dict({**config.to_dict(), "compensation": "none"})
    again = ViTCompressor(config, progress=False, importance=compressor.importance).compress(dense, PIXELS)
    expected = dense.get_submodule(FC2).weight[:, best.sort().values]
    torch.testing.assert_close(again.get_submodule(FC2).weight, expected)
    assert "below 0.5" in str(report)
    report.save(tmp_path)
    saved = json.loads((tmp_path / "compression_report.json").read_text(encoding="utf-8"))["gates"]
    assert saved["points"][-1]["near_zero"] == report.gates.near_zero
    assert [path for path in compressor.checkpoints if ".gates-" in path.name]


def test_scores_are_learned_once_for_a_model() -> None:
    compressor = ViTCompressor(CONFIG, progress=False)
    dense = small()
    statistics = compressor.calibrate(dense, PIXELS)
    first = compressor.importance
    compressor.compress(dense, PIXELS, statistics=statistics)
    assert compressor.importance is first
    fresh = ViTCompressor(CONFIG, progress=False)
    with pytest.raises(DataError, match="learns scores from images"):
        fresh.compress(dense, statistics=statistics)
    fresh.compress(dense, PIXELS, statistics=statistics)
    assert first is not None
    assert all(torch.equal(fresh.importance[name], own) for name, own in first.items())
    other = lively(config=SMALL, seed=3)
    compressor.compress(other, PIXELS)
    assert not torch.equal(compressor.importance[FC2], first[FC2])


def test_given_scores_are_used() -> None:
    compressor = ViTCompressor(CONFIG, importance=RISING, progress=False)
    dense = small()
    pruned = compressor.compress(dense, PIXELS)
    width = pruned.get_submodule(FC2).in_features
    torch.testing.assert_close(pruned.get_submodule(FC2).weight, dense.get_submodule(FC2).weight[:, 24 - width :])
    assert compressor.report is not None
    assert compressor.report.gates is None
    assert compressor.importance is RISING


def test_results_with_other_scores_are_not_taken_over(tmp_path: Path) -> None:
    """Of the same files; shapes are the same whatever the scores."""
    changes = {"measuring_images": 48, "compensation": "distill", "compensation_duration": "1 epoch"}
    config = CompressionConfig.from_dict({**CONFIG.to_dict(), **changes, "held_out_images": 8})
    weights, losses = [], []
    for importance, path in ((FALLING, None), (RISING, tmp_path / "stats"), (FALLING, tmp_path / "stats")):
        compressor = ViTCompressor(config, importance=importance, progress=False)
        weights.append(state_of(compressor.compress(small(), PIXELS, checkpoint=path)))
        losses.append(compressor.report.predicted_loss)
    assert all(torch.equal(own, weights[0][name]) for name, own in weights[2].items())
    assert not torch.equal(weights[1][f"{FC2}.weight"], weights[0][f"{FC2}.weight"])
    assert losses[2] == losses[0] != losses[1]
    assert len(Statistics.load(tmp_path / "stats").scalings) == 2
    assert len(list(tmp_path.glob("stats.distill-*"))) == 2


def test_a_compressor_that_is_given_other_scores_prepares_again() -> None:
    compressor, dense = ViTCompressor(CONFIG, importance=RISING, progress=False), small()
    statistics = compressor.calibrate(dense, PIXELS)
    first = compressor.prepare(dense, statistics)
    assert compressor.prepare(dense, statistics) is first
    compressor.importance = FALLING
    again = compressor.prepare(dense, statistics)
    orders = [next(part for part in ready.parts if part.role == "mlp").solution.order for ready in (first, again)]
    assert torch.equal(orders[0], orders[1].flip(0))


def test_scores_name_what_depends_on_them() -> None:
    method = selection_method(CONFIG, RISING)
    assert re.fullmatch(rf"{CONFIG.method}/[0-9a-f]{{12}}", method)
    assert selection_method(CONFIG, dict(reversed(RISING.items()))) == method
    nearly = RISING[FC2].clone()
    nearly[3] += 1e-5
    for other in (FALLING, {FC2: RISING[FC2]}, {**RISING, FC2: nearly}, {FC2 + "x": RISING[FC2], OUT: RISING[OUT]}):
        assert selection_method(CONFIG, other) != method
    assert selection_method(CONFIG, None) == CONFIG.method
    plain = CompressionConfig(criterion="magnitude")
    assert selection_method(plain, RISING) == plain.method


@pytest.mark.parametrize("metric", ["weight", "activation", "row_fisher", "fisher"])
@pytest.mark.parametrize("repair", [True, False])
def test_every_metric_prunes_by_scores(metric: str, repair: bool) -> None:
    values = {**CONFIG.to_dict(), "metric": metric, "repair": repair, "correct_bias": repair}
    config = CompressionConfig.from_dict(values)
    pruned = ViTCompressor(config, importance=RISING, progress=False).compress(small(), PIXELS)
    assert logits(pruned, PIXELS).isfinite().all()


def test_settings_are_checked() -> None:
    for wrong in ({"gate_duration": "0 minutes"}, {"gate_duration": 2}, {"gate_l1": -1.0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            CompressionConfig.from_dict(wrong)


def test_no_path_keeps_no_checkpoint() -> None:
    kept = gate_checkpoint(None, small(), images(), CONFIG, Accelerator())
    assert isinstance(kept, Checkpoint)
    assert kept.path is None
