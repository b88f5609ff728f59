"""A dense model made ready for planning: costs that add up, and what is said about every part."""

from dataclasses import replace

import pytest

from hf_vitcompress import CompressionPlan, ViTCompressor
from hf_vitcompress.errors import BudgetError
from hf_vitcompress.evaluation.costs import count_costs
from hf_vitcompress.planning.building import build_model
from hf_vitcompress.planning.planner import Planner
from hf_vitcompress.report.report import group_reports
from hf_vitcompress.statistics.loss_correction import LossCorrection
from support.groups import calibrated, config_of, prepared
from support.students import METHODS
from support.zoo import HEADS

every_method = pytest.mark.parametrize("method", METHODS)
SHARES = (0.45, 0.6, 0.8, 0.95)


def built_costs(ready: Planner, plan: CompressionPlan) -> tuple[int, int]:
    costs = count_costs(build_model(ready.subject.model, plan, ready.groups, share_memory=True))
    return costs.parameters, costs.macs


def correct(ready: Planner, weights: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """As if these weights of roles had been found, and losses measured."""
    measured = LossCorrection(weights, [(0.01, 0.02), (0.1, 0.15)])
    monkeypatch.setitem(ready.statistics.corrections, ready.method, measured)


@every_method
@pytest.mark.parametrize("unit", ["max_params", "max_macs"])
@pytest.mark.parametrize("allocation", ["greedy", "uniform"])
def test_budgets_are_kept_and_spent(method: str, unit: str, allocation: str) -> None:
    ready = prepared(**METHODS[method], allocation=allocation)
    full = {"max_params": ready.costs.parameters, "max_macs": ready.costs.macs}[unit]
    gaps = []
    for share in SHARES:
        limit = int(share * full)
        config = config_of(**METHODS[method], allocation=allocation, rank_multiple=1, **{unit: limit})
        cost = built_costs(ready, ready.plan(config, exact=False))[unit == "max_macs"]
        assert cost <= limit
        gaps.append((limit - cost) / full)
    assert max(gaps) < 0.1
    assert sum(gaps) / len(gaps) < 0.06 if allocation == "uniform" or "pruned" in method else max(gaps) < 0.02


@every_method
def test_costs_of_any_plan_are_those_of_the_built_model(method: str) -> None:
    ready = prepared(**METHODS[method])
    for share in SHARES:
        config = config_of(**METHODS[method], keep_ratio=share, rank_multiple=1)
        plan = ready.plan(config, exact=False)
        parameters, macs = built_costs(ready, plan)
        assert plan.keep_ratio == pytest.approx(parameters / ready.costs.parameters, abs=1e-12)
        chosen = [group.choice(plan.shapes_of(group)) for group in ready.groups]
        full = [group.choice({}) for group in ready.groups]
        assert macs == ready.costs.macs - sum(one.macs for one in full) + sum(one.macs for one in chosen)


@every_method
@pytest.mark.parametrize("multiple", [1, 8])
def test_the_lowest_keep_ratio_can_be_had_and_nothing_below(method: str, multiple: int) -> None:
    ready = prepared(**METHODS[method], rank_multiple=multiple)
    lowest = ready.lowest_keep_ratio(multiple)
    fewest = [min(choice.parameters for choice in group.choices(multiple)) for group in ready.groups]
    assert [group.smallest(multiple) for group in ready.groups] == fewest, "known without solving anything"
    settings = {**METHODS[method], "rank_multiple": multiple}
    plan = ready.plan(config_of(**settings, keep_ratio=lowest * 1.0001), exact=False)
    assert plan.keep_ratio == pytest.approx(lowest)
    with pytest.raises(BudgetError, match=f"keep ratio {lowest:.4f}"):
        ready.plan(config_of(**settings, keep_ratio=lowest * 0.999), exact=False)


@every_method
def test_predicted_losses_rise_as_budgets_fall(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ready = prepared(**METHODS[method])
    correct(ready, {}, monkeypatch)
    curve = ready.budget_curve(config_of(**METHODS[method], rank_multiple=1))
    assert len(curve) >= 5
    assert [ratio for ratio, _ in curve] == sorted((ratio for ratio, _ in curve), reverse=True)
    assert [loss for _, loss in curve] == sorted(loss for _, loss in curve)


@every_method
def test_the_shares_of_the_parts_add_up(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ready = prepared(**METHODS[method])
    correct(ready, {ready.groups[0].role: 3.0}, monkeypatch)
    plan = ready.plan(config_of(**METHODS[method], keep_ratio=0.6, rank_multiple=1), exact=False)
    reports = group_reports(ready, plan)
    assert sum(report.predicted_loss for report in reports) == pytest.approx(plan.predicted_loss)  # type: ignore[misc]
    assert {name: shape for report in reports for name, shape in report.shapes.items()} == plan.layers
    named = sorted(name for report in reports for name in report.layers)
    assert named == sorted(layer.name for layer in ready.layers)
    for report, group in zip(reports, ready.groups, strict=True):
        choice = group.choice(report.shapes)
        weight = ready.correction.weights.get(group.role, 1.0)
        assert (report.name, report.role, report.block) == (group.name, group.role, group.block)
        assert report.predicted_loss == pytest.approx(
            plan.predicted_loss * choice.error * weight / ready.predicted(plan, ready.correction.weights), abs=1e-12
        )
        assert (report.kept == "dense") is (report.shapes == {})


def test_a_weight_of_a_role_moves_the_budget_there() -> None:
    ready = prepared()
    config = config_of(keep_ratio=0.6, rank_multiple=1)

    def kept(weights: dict[str, float]) -> int:
        plan = ready.plan(config, weights, exact=False)
        return sum(group.choice(plan.shapes_of(group)).parameters for group in ready.groups if group.role == "vo")

    assert kept({"vo": 10.0}) > kept({}) > kept({"vo": 0.1})


def test_more_kinds_of_shapes_predict_no_more_loss() -> None:
    """Everything that pruning alone, or low rank of the feed-forward layers alone, can have is offered by `auto`."""
    losses = {}
    for mlp in ("auto", "prune", "low_rank"):
        ready = prepared(mlp=mlp, attention="none")
        plan = ready.plan(config_of(mlp=mlp, attention="none", keep_ratio=0.7, rank_multiple=1), exact=False)
        losses[mlp] = ready.predicted(plan, {})
    assert losses["auto"] <= min(losses.values()) * 1.02


def test_the_dense_model_and_the_statistics_stay_as_they_were() -> None:
    model, statistics = calibrated("fisher")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    moments = {name: moment.second.clone() for name, moment in statistics.inputs.items() if moment.second is not None}
    ready = prepared()
    build_model(model, ready.plan(config_of(keep_ratio=0.6, rank_multiple=1), exact=False), ready.groups)
    assert all(before[name].equal(tensor) for name, tensor in model.state_dict().items())
    assert all(statistics.inputs[name].second.equal(second) for name, second in moments.items())


@pytest.mark.parametrize("size", [16, 56])
def test_costs_are_for_the_images_that_the_model_was_calibrated_on(size: int) -> None:
    """Not for those that its config names: DINOv2's says 518, and its processor crops to 224."""
    head = next(head for head in HEADS if head.name == "Dinov2ForImageClassification")
    model = replace(head, settings={**head.settings, "image_size": size}).dense()
    compressor = ViTCompressor(config_of(keep_ratio=0.5, rank_multiple=1), progress=False)
    statistics = compressor.calibrate(model, head.pixels())
    ready = compressor.planner(model, statistics)
    assert ready.costs == count_costs(model, (3, 16, 16))
    limit = int(0.7 * ready.costs.macs)
    compressor = ViTCompressor(config_of(max_macs=limit, rank_multiple=1), progress=False)
    small = compressor.compress(model, statistics=statistics)
    assert 0.9 * limit < count_costs(small, (3, 16, 16)).macs <= limit
    assert compressor.report is not None
    assert compressor.report.dense == ready.costs
    assert compressor.report.compressed == count_costs(small, (3, 16, 16))


def test_statistics_from_before_shapes_were_noted_leave_it_to_the_config() -> None:
    head = next(head for head in HEADS if head.name == "Dinov2ForImageClassification")
    model = head.dense()
    compressor = ViTCompressor(config_of(keep_ratio=0.5), progress=False)
    statistics = compressor.calibrate(model, head.pixels())
    del statistics.settings["image_shape"]
    assert compressor.planner(model, statistics).costs == count_costs(model)
