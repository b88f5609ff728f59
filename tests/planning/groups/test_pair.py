"""Two layers with features between them: what the planner is offered, and that the built layers do what it was told."""

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_vitcompress import CompressionPlan
from hf_vitcompress.architectures.layers import find_layers
from hf_vitcompress.architectures.subject import Subject
from hf_vitcompress.errors import CalibrationError, ConfigError
from hf_vitcompress.evaluation.costs import count_costs
from hf_vitcompress.images.sources import open_images
from hf_vitcompress.model.assembly import Shapes
from hf_vitcompress.planning.building import build_model
from hf_vitcompress.planning.groups.base import Choice, Given
from hf_vitcompress.planning.groups.pair import PairGroup
from hf_vitcompress.planning.planner import Planner, make_planner
from hf_vitcompress.statistics.calibration import calibrate
from hf_vitcompress.statistics.moments import Moment
from support.groups import IMAGES, WIDTH, calibrated, config_of, flow, kl, prepared, weight_of
from support.stages import quiet
from support.students import LOW_RANK, METHODS, lively, logits, random_images

HIDDEN, HEADS = 96, 4
FC1, FC2 = "vit.layers.0.mlp.fc1", "vit.layers.0.mlp.fc2"
V, O = "vit.layers.0.attention.v_proj", "vit.layers.0.attention.o_proj"  # noqa: E741


def pair(role: str = "mlp", metric: str = "fisher", **settings: Any) -> PairGroup:
    """Of the first block."""
    return next(group for group in prepared(metric, **settings).groups if group.role == role)  # type: ignore[return-value]


def shapes_of(
    first: str, second: str, width: int | None, ranks: tuple[int | None, int | None] = (None, None)
) -> Shapes:
    shapes: Shapes = {}
    for name, key, rank in zip((first, second), ("out_features", "in_features"), ranks, strict=True):
        shape = {} if width is None else {key: width}
        shape |= {} if rank is None else {"rank": rank}
        if shape:
            shapes[name] = shape
    return shapes


def mlp(width: int | None, *ranks: int | None) -> Shapes:
    return shapes_of(FC1, FC2, width, ranks or (None, None))  # type: ignore[arg-type]


def values(width: int | None, *ranks: int | None) -> Shapes:
    return shapes_of(V, O, width, ranks or (None, None))  # type: ignore[arg-type]


def applied(tensors: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """A compressed layer by its tensors."""
    if f"{name}.up.weight" in tensors:
        low = x @ tensors[f"{name}.down.weight"].double().T @ tensors[f"{name}.up.weight"].double().T
        return low + tensors[f"{name}.up.bias"].double()
    return x @ tensors[f"{name}.weight"].double().T + tensors[f"{name}.bias"].double()


def dense(metric: str, name: str, x: Tensor) -> Tensor:
    model, _ = calibrated(metric)
    return x @ weight_of(model, name).T + model.get_submodule(name).bias.detach().double()


def loss(lost: Tensor, side: Tensor) -> float:
    return float(((lost @ side) * lost).sum() / len(lost) / 2)


# ---- what the planner is offered


@pytest.mark.parametrize("role", ["mlp", "vo"])
@pytest.mark.parametrize("metric", ["fisher", "activation", "weight"])
def test_no_choice_is_beaten_by_another(role: str, metric: str) -> None:
    group = pair(role, metric)
    choices = group.choices(4)
    for one, other in itertools.permutations(choices, 2):
        beaten = other.parameters <= one.parameters and other.macs <= one.macs and other.error <= one.error
        assert not beaten, (one, other)
    assert choices[-1] == group.choice({})


def everything(group: PairGroup, multiple: int) -> list[Choice]:
    """All widths with all ranks at the factored widths."""
    found = []
    first, second = (layer.name for layer in group.layers)
    for width in range(group.step(multiple), group.width + 1, group.step(multiple)):
        ranks: list[int | None] = [None]
        if width in group.solution.factored:
            ranks += list(range(multiple, width, multiple))
        own = None if width == group.width else width
        found += [group.choice(shapes_of(first, second, own, pair)) for pair in itertools.product(ranks, ranks)]
    return found


@pytest.mark.parametrize("role", ["mlp", "vo"])
@pytest.mark.parametrize("metric", ["fisher", "activation"])
def test_nothing_that_may_be_had_beats_the_choices(role: str, metric: str) -> None:
    group = pair(role, metric)
    choices = group.choices(8)
    for other in everything(group, 8):
        assert any(one.parameters <= other.parameters and one.error <= other.error + 1e-12 for one in choices), (
            other.shapes
        )


@pytest.mark.parametrize("multiple", [1, 4, 8])
@pytest.mark.parametrize("role", ["mlp", "vo"])
def test_widths_and_ranks_are_multiples(role: str, multiple: int) -> None:
    group = pair(role, rank_multiple=multiple)
    shapes = [shape for choice in group.choices(multiple) for shape in choice.shapes.values()]
    assert shapes
    for shape in shapes:
        for key, value in shape.items():
            assert value % multiple == 0, shape
            assert key == "rank" or role == "mlp" or value % HEADS == 0


def test_pruned_and_factored_and_both_are_offered() -> None:
    kinds = {
        (width != HIDDEN, any(ranks)) for choice in pair().choices(4) for width, ranks in [pair()._read(choice.shapes)]
    }
    assert kinds >= {(True, False), (True, True), (False, False)}


def test_prune_alone_offers_no_ranks() -> None:
    group = pair(mlp="prune")
    assert all("rank" not in shape for choice in group.choices(4) for shape in choice.shapes.values())
    assert [group._read(choice.shapes)[0] for choice in group.choices(8)] == list(range(8, HIDDEN + 1, 8))


@pytest.mark.parametrize("role", ["mlp", "vo"])
def test_built_choices_cost_what_the_table_says(role: str) -> None:
    ready = prepared()
    group = next(group for group in ready.groups if group.role == role)
    choices = group.choices(4)
    full = group.choice({})
    for choice in choices[:: max(1, len(choices) // 6)]:
        small = build_model(ready.subject.model, CompressionPlan(choice.shapes), ready.groups, share_memory=True)
        costs = count_costs(small)
        assert costs.macs == ready.costs.macs - full.macs + choice.macs
        assert costs.parameters == ready.costs.parameters - full.parameters + choice.parameters


# ---- what the errors mean


@pytest.mark.parametrize("repair", [True, False])
@pytest.mark.parametrize("width", [8, 48, 90])
def test_the_error_of_a_width_is_that_of_the_output_on_the_data(width: int, repair: bool) -> None:
    group = pair(mlp="prune", repair=repair)
    model, statistics = calibrated("fisher")
    a, tensors = flow(model, FC2), group.tensors(mlp(width))
    kept = group.kept(width)
    assert torch.equal(tensors[f"{FC1}.weight"].float(), model.get_submodule(FC1).weight[kept])
    assert torch.equal(tensors[f"{FC1}.bias"].float(), model.get_submodule(FC1).bias[kept])
    lost = dense("fisher", FC2, a) - applied(tensors, FC2, a[:, kept])
    assert lost.mean(0).norm() < 1e-4 * lost.norm(dim=1).mean()
    measured = loss(lost, statistics.gradients[FC2].moment)
    assert group.choice(mlp(width)).error == pytest.approx(measured, rel=2e-3, abs=1e-6 * group.choice(mlp(8)).error)


@pytest.mark.parametrize("width", [None, 48])
@pytest.mark.parametrize("ranks", [(5, None), (None, 6), (7, 9)])
def test_the_error_of_ranks_is_that_of_both_outputs_on_the_data(
    width: int | None, ranks: tuple[int | None, int | None]
) -> None:
    group = pair()
    model, statistics = calibrated("fisher")
    shapes = mlp(width, *ranks)
    tensors, plain = group.tensors(shapes), group.tensors(mlp(width or HIDDEN))
    kept = group.kept(width or HIDDEN)
    x, a = flow(model, FC1), flow(model, FC2)
    terms = [group.choice(mlp(width)).error]
    if ranks[0] is not None:
        lost = (dense("fisher", FC1, x))[:, kept] - applied(tensors, FC1, x)
        terms.append(loss(lost, statistics.gradients[FC1].moment[kept][:, kept]))
    if ranks[1] is not None:
        lost = applied(plain, FC2, a[:, kept]) - applied(tensors, FC2, a[:, kept])
        terms.append(loss(lost, statistics.gradients[FC2].moment))
    assert group.choice(shapes).error == pytest.approx(sum(terms), rel=2e-3)


def test_ranks_of_a_full_width_are_those_of_layers_by_themselves() -> None:
    group = pair()
    alone = {group.name: group for group in prepared(**LOW_RANK).groups}
    for rank in (3, 11, 20):
        assert group.choice(mlp(None, rank, None)).error == pytest.approx(float(alone[FC1].solution[rank]), rel=1e-3)
        assert group.choice(mlp(None, None, rank)).error == pytest.approx(float(alone[FC2].solution[rank]), rel=1e-3)
        ours, theirs = group.tensors(mlp(None, rank, rank)), {}
        for name in (FC1, FC2):
            theirs |= alone[name].tensors({name: {"rank": rank}})
        assert ours.keys() == theirs.keys()
        for name in (FC1, FC2):
            products = [t[f"{name}.up.weight"].double() @ t[f"{name}.down.weight"].double() for t in (ours, theirs)]
            assert (products[0] - products[1]).norm() < 1e-3 * products[1].norm()


def test_other_widths_than_those_planned_with_can_be_asked_for() -> None:
    group = pair()
    assert 41 not in group.solution.factored
    asked = group.choice(mlp(41, 5, 6))
    assert asked.error > group.choice(mlp(41)).error
    assert asked.parameters == 5 * (41 + WIDTH) + 6 * (41 + WIDTH) + 41  # and its biases
    assert group.choice(mlp(41, 5, 7)).error < asked.error


@pytest.mark.parametrize("metric", ["fisher", "row_fisher", "activation", "weight"])
@pytest.mark.parametrize("criterion", ["fisher", "magnitude"])
def test_every_metric_and_criterion_orders_and_repairs(metric: str, criterion: str) -> None:
    group = pair("mlp", metric, criterion=criterion)
    assert sorted(group.solution.order.tolist()) == list(range(HIDDEN))
    assert (group.solution.pruned[1:] <= group.solution.pruned[:-1] + 1e-12).all()
    assert torch.isfinite(group.solution.pruned).all()
    tensors = group.tensors(mlp(40, 5, 6))
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())


def test_the_criterion_of_least_loss_loses_less_than_magnitudes() -> None:
    found = {criterion: pair(criterion=criterion).solution.pruned for criterion in ("fisher", "magnitude")}
    assert (found["fisher"][8:-8] < found["magnitude"][8:-8]).all()


def test_learned_scores_are_the_order() -> None:
    scores = torch.randn(HIDDEN, generator=torch.Generator().manual_seed(0))
    importance = {f"vit.layers.{block}.mlp.fc2": scores for block in (0, 1)}
    group = pair(mlp="prune", criterion="gates", attention="none", importance=importance)
    assert group.solution.order.tolist() == scores.abs().argsort(descending=True).tolist()
    with pytest.raises(ConfigError, match=r"needs learned scores of what flows into 'vit\.layers\.0\.mlp\.fc2'"):
        pair(mlp="prune", criterion="gates", attention="none")


# ---- values


def without_mixing(group: PairGroup) -> tuple[PairGroup, Tensor]:
    """The part of a model whose attention passes each token's values on to that token; and its hidden states."""
    model, statistics = calibrated("activation")
    x = flow(model, V)
    a = dense("activation", V, x)
    statistics = copy.deepcopy(statistics)
    name = group.layers[1].input_name
    statistics.inputs[name] = Moment.empty(WIDTH, 2, model.device)
    statistics.inputs[name].update(a.float(), None)
    twin = PairGroup(group.layers, Given(model, statistics, group.config))
    twin.solution = twin.solve()
    return twin, x


@pytest.mark.parametrize("repair", [True, False])
def test_the_error_of_cut_values_is_that_of_the_output(repair: bool) -> None:
    group, x = without_mixing(pair("vo", "activation", repair=repair))
    wanted = dense("activation", O, dense("activation", V, x))
    energy = float((wanted - wanted.mean(0)).square().sum(1).mean())
    for width in range(HEADS, WIDTH, HEADS):
        tensors = group.tensors(values(width))
        found = applied(tensors, O, applied(tensors, V, x))
        measured = float((found - wanted).square().sum(1).mean()) / energy
        assert group.choice(values(width)).error == pytest.approx(measured, rel=5e-3, abs=1e-5)


def test_all_values_of_every_head_are_the_layers_as_they_were() -> None:
    group = pair("vo")
    tensors = group.tensors(values(WIDTH))
    model, _ = calibrated("fisher")
    for name in (V, O):
        assert torch.equal(tensors[f"{name}.weight"].float(), model.get_submodule(name).weight)
        torch.testing.assert_close(tensors[f"{name}.bias"].float(), model.get_submodule(name).bias.detach())


@pytest.mark.parametrize("metric", ["fisher", "row_fisher", "activation", "weight"])
def test_one_value_less_in_every_head_costs_least(metric: str) -> None:
    group = pair("vo", metric)
    errors = [group.choice(values(width)).error for width in range(HEADS, WIDTH + 1, HEADS)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == 0 < errors[0]


def test_heads_that_use_few_directions_lose_nothing_with_the_others() -> None:
    """Weights of v of rank 3 in every head."""
    model = lively(seed=5)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        weight = model.get_submodule(V).weight
        for head in weight.split(WIDTH // HEADS):
            head.copy_(torch.randn(8, 3, generator=generator) @ torch.randn(3, WIDTH, generator=generator) * 0.1)
    config = config_of(damping=1e-6)
    statistics = calibrate(Subject.alone(model), find_layers(model), open_images(IMAGES), quiet(config))
    ready = make_planner(Subject.alone(model), statistics, quiet(config))
    group = ready.groups[1]
    assert group.choice(values(3 * HEADS)).error < 1e-4 * group.choice(values(2 * HEADS)).error
    small = build_model(model, CompressionPlan(values(3 * HEADS)), ready.groups)
    torch.testing.assert_close(logits(small, IMAGES), logits(model, IMAGES), rtol=1e-3, atol=2e-3)


# ---- repair, on images that calibration has not seen


def block_errors(ready: Planner, shapes: Shapes, images: Tensor) -> float:
    """Mean squared error of the first block's output."""
    outputs = []
    for model in (ready.subject.model, build_model(ready.subject.model, CompressionPlan(shapes), ready.groups)):
        outputs.append(flow(model, "vit.layers.1.layernorm_before", images))
    return float((outputs[0] - outputs[1]).square().sum(1).mean())


@pytest.mark.parametrize("metric", ["activation", "fisher"])
@pytest.mark.parametrize("width", [24, 48, 72])
def test_repair_brings_a_block_nearer_to_the_dense_one_on_held_out_images(metric: str, width: int) -> None:
    others = random_images(48, seed=77)
    repaired, cut = (
        block_errors(prepared(metric, mlp="prune", repair=repair), mlp(width), others) for repair in (True, False)
    )
    assert repaired < 0.95 * cut


@pytest.mark.parametrize("width", [8, 16, 24])
def test_repair_of_values_brings_a_block_no_farther_from_the_dense_one_on_held_out_images(width: int) -> None:
    others = random_images(48, seed=77)
    repaired, cut = (
        block_errors(prepared("activation", repair=repair), values(width), others) for repair in (True, False)
    )
    assert repaired <= cut * 1.001


@pytest.mark.parametrize("method", ["pruned", "joint and pruned"])
def test_a_repaired_model_diverges_less_on_held_out_images(method: str) -> None:
    others, found = random_images(64, seed=78), []
    for repair in (True, False):
        ready = prepared(rank_multiple=4, repair=repair, **METHODS[method])
        plan = ready.plan(config_of(keep_ratio=0.6, rank_multiple=4, **METHODS[method]), exact=False)
        small = build_model(ready.subject.model, plan, ready.groups)
        found.append(kl(logits(ready.subject.model, others), logits(small, others)))
    assert found[0] < found[1]


# ---- statistics that hold too little


def test_statistics_without_hidden_features_say_so() -> None:
    model = calibrated("fisher")[0]
    narrow = config_of(mlp="low_rank")
    statistics = calibrate(Subject.alone(model), find_layers(model), open_images(IMAGES[:32]), quiet(narrow))
    for method in ("auto", "prune"):
        message = rf"neurons before 'vit.layers.0.mlp.fc2', which mlp='{method}' may prune.*mlp=\"low_rank\""
        with pytest.raises(CalibrationError, match=message):
            make_planner(Subject.alone(model), statistics, quiet(config_of(mlp=method)))


@pytest.mark.parametrize("metric", ["fisher", "row_fisher", "activation", "weight"])
def test_statistics_of_hidden_features_serve_low_rank_too(metric: str) -> None:
    """With the same errors as those collected for it, but for the tokens left out."""
    model, wide = calibrated(metric)
    narrow = calibrate(
        Subject.alone(model),
        find_layers(model),
        open_images(IMAGES),
        quiet(config_of(metric=metric, mlp="low_rank", fisher_probes=8)),
    )
    found = [
        make_planner(Subject.alone(model), statistics, quiet(config_of(metric=metric, **LOW_RANK)))
        for statistics in (wide, narrow)
    ]
    for ours, theirs in zip(found[0].groups, found[1].groups, strict=True):
        loose = ours.role == "fc1" and metric == "fisher"
        assert torch.allclose(ours.solution, theirs.solution, rtol=0.2 if loose else 1e-3, atol=1e-4), ours.name
