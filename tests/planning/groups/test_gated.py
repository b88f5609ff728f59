"""Gated feed-forward networks, `fc2(act(gate(x)) · fc1(x))`: pruned, factored and both, against what they compute."""

import functools
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    Dinov2Config,
    Dinov2ForImageClassification,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    PreTrainedModel,
)

from hf_vitcompress import CompressionPlan, Statistics
from hf_vitcompress.architectures.layers import find_layers
from hf_vitcompress.architectures.subject import Subject
from hf_vitcompress.errors import ConfigError
from hf_vitcompress.evaluation.costs import count_costs
from hf_vitcompress.images.sources import open_images
from hf_vitcompress.model.assembly import Shapes
from hf_vitcompress.planning.building import build_model
from hf_vitcompress.planning.groups.pair import PairGroup
from hf_vitcompress.planning.planner import Planner, make_planner
from hf_vitcompress.statistics.calibration import calibrate
from support.groups import IMAGES, config_of, flow, weight_of
from support.residuals import judged
from support.stages import quiet
from support.students import HELD_OUT, checkpoint, compressed, lively, random_images

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 4,
}
HIDDEN = 64
BLOCK = {"dinov2": "dinov2.encoder.layer.0", "dinov3": "model.layer.0"}
GATE, FC1, FC2 = (f"{BLOCK['dinov2']}.mlp.{name}_proj" for name in ("gate", "up", "down"))
MAKERS = (GATE, FC1)
METRICS = ("fisher", "row_fisher", "activation", "weight")


def gated(family: str = "dinov2") -> PreTrainedModel:
    """A classifier whose layers have biases; or a model without a head, whose feed-forward layers have none."""
    if family == "dinov2":
        config = Dinov2Config(**SHAPE, mlp_ratio=3, use_swiglu_ffn=True, num_labels=5)
        return lively(Dinov2ForImageClassification, config)
    config = DINOv3ViTConfig(**SHAPE, intermediate_size=HIDDEN, use_gated_mlp=True, mlp_bias=False)
    return lively(DINOv3ViTModel, config)


@functools.cache
def calibrated(metric: str = "fisher", family: str = "dinov2") -> tuple[PreTrainedModel, Statistics]:
    model, config = gated(family), config_of(metric=metric, fisher_probes=8)
    return model, calibrate(Subject.alone(model), find_layers(model), open_images(IMAGES), quiet(config))


def prepared(metric: str = "fisher", family: str = "dinov2", **settings: Any) -> Planner:
    model, statistics = calibrated(metric, family)
    importance = settings.pop("importance", None)
    config = config_of(metric=metric, **settings)
    return make_planner(Subject.alone(model), statistics, quiet(config), importance)


def mlp_of(ready: Planner) -> PairGroup:
    """Of the first block."""
    return next(group for group in ready.groups if isinstance(group, PairGroup) and group.role == "mlp")


def part_of(metric: str = "fisher", **settings: Any) -> PairGroup:
    return mlp_of(prepared(metric, **settings))


def shapes_of(width: int | None = None, *ranks: int | None) -> Shapes:
    shapes: Shapes = {}
    keys = ("out_features", "out_features", "in_features")
    for name, key, rank in zip((*MAKERS, FC2), keys, ranks or (None,) * 3, strict=True):
        shape = ({} if width is None else {key: width}) | ({} if rank is None else {"rank": rank})
        if shape:
            shapes[name] = shape
    return shapes


def dense(name: str, x: Tensor) -> Tensor:
    model, _ = calibrated()
    return x @ weight_of(model, name).T + model.get_submodule(name).bias.detach().double()


def applied(tensors: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """A compressed layer by its tensors."""
    if f"{name}.up.weight" in tensors:
        low = x @ tensors[f"{name}.down.weight"].double().T @ tensors[f"{name}.up.weight"].double().T
        return low + tensors[f"{name}.up.bias"].double()
    return x @ tensors[f"{name}.weight"].double().T + tensors[f"{name}.bias"].double()


def loss(lost: Tensor, side: Tensor) -> float:
    return float(((lost @ side) * lost).sum() / len(lost) / 2)


def output(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(pixel_values=IMAGES)[0]


# ---- which parts there are


@pytest.mark.parametrize("family", ["dinov2", "dinov3"])
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ["mlp"]),
        ({"mlp": "prune"}, ["mlp"]),
        ({"mlp": "low_rank"}, ["gate", "fc1", "fc2"]),
        ({"skip_modules": ["down_proj"]}, ["gate", "fc1"]),
        ({"skip_modules": ["gate_proj"]}, ["fc1", "fc2"]),
        ({"skip_modules": ["up_proj"]}, ["gate", "fc2"]),
        ({"mlp": "none", "attention": "low_rank", "skip_modules": ["q_proj", "k_proj", "v_proj"]}, ["o"]),
    ],
)
def test_gate_and_fc1_go_together_with_fc2(settings: dict[str, Any], expected: list[str], family: str) -> None:
    ready = prepared("weight", family, **{"attention": "none", **settings})
    assert [group.role for group in ready.groups] == expected * 2
    assert ready.fixed_parameters == ready.costs.parameters - sum(group.dense_parameters for group in ready.groups)


def test_the_part_is_the_feed_forward_module() -> None:
    group = part_of()
    assert group.name == f"{BLOCK['dinov2']}.mlp"
    assert group.module_names == (GATE, FC1, FC2)
    assert (group.width, group.heads) == (HIDDEN, 1)
    assert group.dense_parameters == 3 * 32 * HIDDEN + 2 * HIDDEN  # weights, and biases that pruning removes


# ---- what the planner is offered


@pytest.mark.parametrize("metric", ["fisher", "activation"])
@pytest.mark.parametrize("method", ["auto", "prune"])
def test_no_choice_is_beaten_by_another(metric: str, method: str) -> None:
    group = part_of(metric, mlp=method)
    choices = group.choices(8)
    for one, other in itertools.permutations(choices, 2):
        assert not (other.parameters <= one.parameters and other.macs <= one.macs and other.error <= one.error)
    assert choices[-1] == group.choice({})
    assert choices[-1].error == 0
    assert choices[-1].parameters == group.dense_parameters


@pytest.mark.parametrize("metric", ["fisher", "activation"])
def test_nothing_that_may_be_had_beats_the_choices(metric: str) -> None:
    group = part_of(metric)
    choices = group.choices(8)
    for width in range(8, HIDDEN + 1, 8):
        ranks: list[int | None] = [None, *range(8, width, 8)] if width in group.solution.factored else [None]
        own = None if width == HIDDEN else width
        for three in itertools.product(ranks, repeat=3):
            other = group.choice(shapes_of(own, *three))
            assert any(one.parameters <= other.parameters and one.error <= other.error + 1e-12 for one in choices)


def test_every_layer_has_a_rank_of_its_own() -> None:
    found = {part_of()._read(choice.shapes)[1] for choice in part_of().choices(4)}
    assert any(len({rank or 0 for rank in ranks}) == 3 for ranks in found)
    assert any(None in ranks and any(ranks) for ranks in found)


def test_prune_alone_offers_no_ranks() -> None:
    group = part_of(mlp="prune")
    assert [choice.shapes for choice in group.choices(8)] == [shapes_of(width) for width in range(8, HIDDEN, 8)] + [{}]


@pytest.mark.parametrize("family", ["dinov2", "dinov3"])
@pytest.mark.parametrize("method", ["auto", "prune"])
def test_built_choices_cost_what_the_table_says_and_are_as_their_tensors(family: str, method: str) -> None:
    ready = prepared(family=family, mlp=method, attention="none")
    group = mlp_of(ready)
    choices, full = group.choices(4), group.choice({})
    for choice in choices[:: max(1, len(choices) // 6)]:
        group.check(choice.shapes)
        assert group.choice(choice.shapes) == choice
        assert group.describe(choice.shapes)
        small = build_model(ready.subject.model, CompressionPlan(choice.shapes), ready.groups, share_memory=True)
        costs, state = count_costs(small), small.state_dict()
        assert costs.macs == ready.costs.macs - full.macs + choice.macs
        assert costs.parameters == ready.costs.parameters - full.parameters + choice.parameters
        for name, tensor in group.tensors(choice.shapes).items():
            assert state[name].shape == tensor.shape
        assert output(small).isfinite().all()


def test_uneven_shapes_are_refused() -> None:
    group = part_of()
    group.check(shapes_of(40, 5, None, 6))
    uneven = shapes_of(40)
    uneven[GATE] = {"out_features": 48}
    with pytest.raises(ConfigError, match=rf"{GATE}' 48 out_features and .*{FC1}' 40 .*{FC2}' 40 in_features; they"):
        group.check(uneven)
    with pytest.raises(ConfigError, match=f"{GATE}' the rank 33; it must be a whole number in 1 … 32"):
        group.check({GATE: {"rank": 33}})


# ---- what the errors mean


@pytest.mark.parametrize("repair", [True, False])
@pytest.mark.parametrize("width", [8, 32, 60])
def test_the_error_of_a_width_is_that_of_the_output_on_the_data(width: int, repair: bool) -> None:
    group = part_of(mlp="prune", repair=repair)
    model, statistics = calibrated()
    a, tensors, kept = flow(model, FC2), group.tensors(shapes_of(width)), group.kept(width)
    for name in MAKERS:
        assert torch.equal(tensors[f"{name}.weight"].float(), model.get_submodule(name).weight[kept])
        assert torch.equal(tensors[f"{name}.bias"].float(), model.get_submodule(name).bias[kept])
    lost = dense(FC2, a) - applied(tensors, FC2, a[:, kept])
    assert lost.mean(0).norm() < 1e-4 * lost.norm(dim=1).mean()
    measured = loss(lost, statistics.gradients[FC2].moment)
    assert group.choice(shapes_of(width)).error == pytest.approx(measured, rel=2e-3)


@pytest.mark.parametrize("width", [None, 32])
@pytest.mark.parametrize("ranks", [(5, None, None), (None, 4, None), (7, 3, None), (6, 11, 9)])
def test_the_error_of_ranks_is_the_sum_over_the_layers_outputs(
    width: int | None, ranks: tuple[int | None, int | None, int | None]
) -> None:
    group = part_of()
    model, statistics = calibrated()
    shapes = shapes_of(width, *ranks)
    tensors, plain, kept = group.tensors(shapes), group.tensors(shapes_of(width or HIDDEN)), group.kept(width or HIDDEN)
    x, a = flow(model, FC1), flow(model, FC2)
    terms = [group.choice(shapes_of(width)).error]
    for name, rank in zip(MAKERS, ranks, strict=False):
        if rank is not None:
            lost = dense(name, x)[:, kept] - applied(tensors, name, x)
            assert lost.mean(0).norm() < 1e-4 * lost.norm(dim=1).mean()  # each bias takes up its own mean
            terms.append(loss(lost, statistics.gradients[name].moment[kept][:, kept]))
    if ranks[2] is not None:
        lost = applied(plain, FC2, a[:, kept]) - applied(tensors, FC2, a[:, kept])
        terms.append(loss(lost, statistics.gradients[FC2].moment))
    assert group.choice(shapes).error == pytest.approx(sum(terms), rel=2e-3)


def test_ranks_of_a_full_width_are_those_of_layers_by_themselves() -> None:
    group = part_of()
    alone = {one.name: one for one in prepared(mlp="low_rank", attention="none").groups}
    for i, name in enumerate((*MAKERS, FC2)):
        for rank in (3, 11, 20):
            ranks = [None if j != i else rank for j in range(3)]
            assert group.choice(shapes_of(None, *ranks)).error == pytest.approx(
                float(alone[name].solution[rank]), rel=1e-3
            )


@pytest.mark.parametrize("metric", METRICS)
def test_full_width_and_full_rank_are_the_layers_as_they_were(metric: str) -> None:
    group = part_of(metric)
    model, _ = calibrated(metric)
    tensors = group.tensors(shapes_of(None, 32, 32, 32))
    for name in (*MAKERS, FC2):
        product = tensors[f"{name}.up.weight"].double() @ tensors[f"{name}.down.weight"].double()
        torch.testing.assert_close(product, weight_of(model, name), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            tensors[f"{name}.up.bias"].double(), model.get_submodule(name).bias.detach().double(), rtol=1e-4, atol=1e-4
        )
    for name, tensor in group.tensors(shapes_of(HIDDEN)).items():
        torch.testing.assert_close(tensor.float(), model.get_parameter(name).detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("useless", ["twins", "closed gates", "not read"])
@pytest.mark.parametrize("family", ["dinov2", "dinov3"])
def test_features_that_say_nothing_of_their_own_go_without_a_trace(useless: str, family: str) -> None:
    model, count = gated(family), 16
    gate, fc1, fc2 = (model.get_submodule(f"{BLOCK[family]}.mlp.{name}_proj") for name in ("gate", "up", "down"))
    with torch.no_grad():
        for layer in (gate, fc1):
            tensors = layer.weight, layer.bias
            for tensor in (one for one in tensors if one is not None and useless == "twins"):
                tensor[:count] = tensor[count : 2 * count]
        if useless == "closed gates":
            gate.weight[:count] = 0  # silu(0) = 0
            if gate.bias is not None:
                gate.bias[:count] = 0
        if useless == "not read":
            fc2.weight[:, :count] = 0
    config = config_of(mlp="prune", attention="none")
    statistics = calibrate(Subject.alone(model), find_layers(model), open_images(IMAGES), quiet(config))
    ready = make_planner(Subject.alone(model), statistics, quiet(config))
    group = mlp_of(ready)
    errors = group.solution.pruned
    assert errors[HIDDEN - count] < 1e-3 * errors[HIDDEN - count - 1]
    names = [layer.name for layer in group.layers]
    shapes = {name: {"out_features": HIDDEN - count} for name in names[:2]} | {
        names[2]: {"in_features": HIDDEN - count}
    }
    small = build_model(model, CompressionPlan(shapes), ready.groups)
    torch.testing.assert_close(output(small), output(model), rtol=1e-3, atol=1e-3)


# ---- which features


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("criterion", ["fisher", "magnitude"])
@pytest.mark.parametrize("family", ["dinov2", "dinov3"])
def test_every_metric_and_criterion_orders_and_repairs(metric: str, criterion: str, family: str) -> None:
    group = mlp_of(prepared(metric, family, criterion=criterion))
    assert sorted(group.solution.order.tolist()) == list(range(HIDDEN))
    assert (group.solution.pruned[1:] <= group.solution.pruned[:-1] + 1e-12).all()
    choice = group.choices(8)[3]
    assert all(torch.isfinite(tensor).all() for tensor in group.tensors(choice.shapes).values())


def test_magnitude_is_the_product_over_all_three_layers() -> None:
    group = part_of(criterion="magnitude")
    model, _ = calibrated()
    norms = weight_of(model, FC2).norm(dim=0)
    for name in MAKERS:
        norms = norms * weight_of(model, name).norm(dim=1)
    assert group.solution.order.tolist() == norms.argsort(descending=True).tolist()


def test_learned_scores_are_the_order() -> None:
    scores = torch.randn(HIDDEN, generator=torch.Generator().manual_seed(0))
    importance = {FC2: scores, FC2.replace("layer.0", "layer.1"): scores}
    group = part_of(mlp="prune", criterion="gates", attention="none", importance=importance)
    assert group.solution.order.tolist() == scores.abs().argsort(descending=True).tolist()


def test_the_criterion_of_least_loss_loses_less_than_magnitudes() -> None:
    found = {criterion: part_of(criterion=criterion).solution.pruned for criterion in ("fisher", "magnitude")}
    assert (found["fisher"][8:-8] < found["magnitude"][8:-8]).all()


# ---- solving again behind a compressed prefix


@pytest.mark.parametrize("width", [None, 40])
def test_targets_are_the_layers_in_their_order(width: int | None) -> None:
    group = part_of()
    model, _ = calibrated()
    shapes = shapes_of(width, 6, None, 9) | (shapes_of(width) if width is None else {FC1: {"out_features": 40}})
    regression_targets = group.regression_targets(shapes)
    names = [layer.name for target in regression_targets for layer in target.layers]
    assert names == ([GATE, FC2] if width is None else [GATE, FC1, FC2])
    assert (
        [target.rank for target in regression_targets] == [6, None, 9][: len(regression_targets)] if width else [6, 9]
    )
    kept = group.kept(width or HIDDEN)
    for target in regression_targets[:-1]:
        assert torch.equal(target.weight, weight_of(model, target.layers[0].name)[kept])
        assert target.bias is not None
        assert len(target.bias) == len(kept)
        assert target.metric.shape == (len(target.metric),) * 2
        assert len(target.metric) == (len(kept) if target.on_output else 32)
    assert torch.equal(regression_targets[-1].weight, weight_of(model, FC2))
    assert regression_targets[-1].start.shape == (32, len(kept))
    assert group.regression_targets({}) == []


@pytest.mark.parametrize("ranks", [(None, None, None), (6, 9, 5)])
@pytest.mark.parametrize("family", ["dinov2", "dinov3"])
def test_residuals_lower_the_error_of_each_output_behind_a_compressed_prefix(
    family: str, ranks: tuple[int | None, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    block = BLOCK[family].replace("layer.0", "layer.1")
    names = [f"{block}.mlp.{name}_proj" for name in ("gate", "up", "down")]
    shapes = {old.replace(BLOCK["dinov2"], block): shape for old, shape in shapes_of(40, *ranks).items()}
    layers = {f"{BLOCK[family]}.attention.v_proj": {"rank": 3}} | shapes
    case = compressed(
        gated(family), layers=layers, metric="activation", attention="low_rank", residual_share=1.0, damping=1e-12
    )
    judged(monkeypatch, [3.0, 2.0, 1.0])
    student, closed_form = case.student(), case.student()
    case.residual(student).run(checkpoint())
    kept = next(group for group in case.prepared.groups if group.module_names == tuple(names)).kept(40)
    images = random_images(96)[:-HELD_OUT]
    for name in names:
        rows = slice(None) if name == names[2] else kept
        linear = case.dense.get_submodule(name)
        wanted = linear(flow(case.dense, name, images).float()).double()[:, rows]
        read = name if ranks[0] is None else f"{name}.down"
        errors = []
        for model in (closed_form, student):
            x_hat = flow(student, read, images).float()
            errors.append(float((wanted - model.get_submodule(name)(x_hat).double()).detach().square().sum(1).mean()))
        assert errors[1] < errors[0], name
