"""Plans that are timed, and planned again where the profile was wrong; the timer is made up."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from hf_vitcompress.architectures.merging import merging_blocks
from hf_vitcompress.errors import BudgetError, BudgetWarning
from hf_vitcompress.evaluation.costs import count_costs
from hf_vitcompress.evaluation.latency import Latency, LatencyReport
from hf_vitcompress.planning import latency as module
from hf_vitcompress.planning.latency import EXCEEDED, TOLERANCE, best_of, plan_for_latency, share_of
from hf_vitcompress.planning.plan import CompressionPlan
from hf_vitcompress.planning.planner import Planner
from hf_vitcompress.profiling.profile import LatencyProfile
from hf_vitcompress.statistics.loss_correction import LossCorrection
from hf_vitcompress.statistics.statistics import Merging
from support.groups import config_of, prepared
from support.profiles import even_profile
from support.stages import quiet

DENSE = 4.5e-4
"""Seconds of the dense model."""

REST = 0.1
"""Share of it that no plan changes."""


def latency_of(ratio: float, dense: float = DENSE, batch_size: int = 1) -> Latency:
    return Latency(dense, dense * ratio, ratio, ratio, ratio, batch_size, 15, 1, "a CPU (1 thread)")


def profile_for(planner: Planner) -> LatencyProfile:
    rows = {operation.rows for group in planner.groups for operation in group.spanning(1)}
    return even_profile(rows, dense=DENSE)


Timed = list[float]


@pytest.fixture
def by_macs(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Timed]:
    """Time a model takes by its multiplications, to the power of `bent`; returns the ratios that were measured."""

    def install(bent: float = 1.0, rest: float = REST, noise: tuple[float, ...] = (0.0,)) -> Timed:
        seen: Timed = []
        wrong = itertools.cycle(noise)

        def alternate(
            dense: functools.partial[float], compressed: functools.partial[float], batch_size: int, *_: Any
        ) -> Latency:
            before, after = (count_costs(one.args[0]).macs for one in (dense, compressed))
            seen.append(rest + (1 - rest) * (after / before) ** bent * (1 + next(wrong)))
            return latency_of(seen[-1], batch_size=batch_size)

        monkeypatch.setattr(module, "alternate_latency", alternate)
        return seen

    return install


def settings(**own: Any) -> dict[str, Any]:
    return {"rank_multiple": 1, "tokens": "none", **own}


@pytest.mark.parametrize("bent", [0.5, 1.0, 1.6])
@pytest.mark.parametrize("speedup", [1.15, 1.3])
def test_a_profile_that_is_wrong_is_corrected_by_what_was_measured(
    speedup: float, bent: float, by_macs: Callable[..., Timed]
) -> None:
    seen, ready = by_macs(bent), prepared()
    plan = plan_for_latency(ready, quiet(config_of(**settings(speedup=speedup))), profile_for(ready))
    assert plan.latency is not None
    assert plan.latency.asked == pytest.approx(1 / speedup)
    assert plan.latency.excess <= EXCEEDED
    assert plan.latency.measured.ratio in seen
    assert len(seen) <= module.ATTEMPTS
    assert plan.budget == {"speedup": speedup}


def test_a_prediction_that_holds_is_timed_once(by_macs: Callable[..., Timed], monkeypatch: pytest.MonkeyPatch) -> None:
    seen, ready = by_macs(), prepared()
    monkeypatch.setattr(module, "alternate_latency", lambda *_: seen.append(0.0) or latency_of(0.8))
    plan = plan_for_latency(ready, quiet(config_of(**settings(speedup=1.25))), profile_for(ready))
    assert len(seen) == 1
    assert plan.latency is not None
    assert plan.latency.error <= TOLERANCE


def test_no_speed_up_at_all_is_the_dense_model(by_macs: Callable[..., Timed]) -> None:
    by_macs()
    ready = prepared()
    plan = plan_for_latency(ready, quiet(config_of(**settings(speedup=1))), profile_for(ready))
    assert plan.layers == {}
    assert plan.latency is not None
    assert plan.latency.asked == 1


@pytest.mark.parametrize("budget", [{"speedup": 50.0}, {"max_latency_ms": 1e-6}])
def test_what_no_plan_can_reach_is_refused_with_the_least_there_is(
    budget: dict[str, float], by_macs: Callable[..., Timed]
) -> None:
    seen, ready = by_macs(), prepared()
    with pytest.raises(BudgetError, match=r"out of reach: the fastest .* ms \(speed-up \d+\.\d\d over the dense"):
        plan_for_latency(ready, quiet(config_of(**settings(**budget))), profile_for(ready))
    assert 1 <= len(seen) <= module.ATTEMPTS, "the fastest plan was timed, for the message to be true"


def test_one_timing_that_went_wrong_is_not_the_end(
    by_macs: Callable[..., Timed], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It makes the clock believe that nothing is fast enough; the fastest plan is timed before that is said."""
    ready, seen = prepared(), by_macs(rest=0.5)
    right, first = module.alternate_latency, iter([latency_of(0.99)])
    monkeypatch.setattr(module, "alternate_latency", lambda *given: next(first, None) or right(*given))
    plan = plan_for_latency(ready, quiet(config_of(**settings(speedup=1.4))), profile_for(ready))
    assert seen
    assert plan.latency is not None
    assert plan.latency.excess <= EXCEEDED


def test_a_plan_that_comes_again_is_timed_once_and_reported_as_it_is_predicted_by_then(
    by_macs: Callable[..., Timed],
) -> None:
    """The keep ratio decides, and the clock was wrong about its plan."""
    seen, ready = by_macs(rest=0.05), prepared()
    config = config_of(**settings(speedup=1.01, keep_ratio=0.5))
    plan = plan_for_latency(ready, quiet(config), profile_for(ready))
    assert len(seen) == 1
    assert plan.latency is not None
    assert plan.latency.predicted == pytest.approx(seen[0])


def test_timings_that_stay_away_from_what_is_predicted_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    ready, ratios = prepared(), itertools.cycle([0.5, 0.9, 0.45, 0.99])
    monkeypatch.setattr(module, "alternate_latency", lambda *_: latency_of(next(ratios)))
    monkeypatch.setattr(module, "ATTEMPTS", 1)
    config = config_of(**settings(speedup=1.1))
    with pytest.warns(BudgetWarning, match=r"predicted to have a speed-up of .*, and timing it gave 2\.00.*other work"):
        plan_for_latency(ready, quiet(config), profile_for(ready))


@pytest.mark.parametrize(("loss", "merges"), [(1e6, False), (0.0, True)])
def test_plans_with_merged_tokens_are_timed_beside_those_with_all_and_the_better_one_is_taken(
    loss: float, merges: bool, by_macs: Callable[..., Timed], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, ready = by_macs(), prepared()
    block = merging_blocks(ready.subject.model)[0]
    monkeypatch.setattr(ready.statistics, "merging", [Merging({block: 4}, loss)])
    measured = LossCorrection(points=[(0.1, 0.1), (1.0, 1.0)])
    monkeypatch.setitem(ready.statistics.corrections, ready.method, measured)
    config = config_of(speedup=1.25, rank_multiple=1)
    plan = plan_for_latency(ready, quiet(config), profile_for(ready))
    assert bool(plan.tokens) is merges
    assert len(seen) >= 2
    assert plan.latency is not None
    assert plan.latency.excess <= EXCEEDED


def test_a_budget_in_milliseconds_is_answered_in_milliseconds(by_macs: Callable[..., Timed]) -> None:
    by_macs()
    ready = prepared()
    config = config_of(**settings(max_latency_ms=1000 * DENSE * 0.8))
    found = plan_for_latency(ready, quiet(config), profile_for(ready)).latency
    assert found is not None
    assert found.origin.startswith(f"asked {800 * DENSE:g} ms, predicted ")
    assert found.wish == f"{800 * DENSE:g} ms for a batch"


def test_a_counted_budget_out_of_reach_is_not_forgotten_beside_one_of_time(by_macs: Callable[..., Timed]) -> None:
    by_macs()
    ready = prepared()
    config = config_of(**settings(speedup=1.1, keep_ratio=0.001))
    with pytest.raises(BudgetError, match="params is out of reach"):
        plan_for_latency(ready, quiet(config), profile_for(ready))


@pytest.mark.parametrize("keep_ratio", [0.5, 0.95])
def test_a_speed_up_and_a_keep_ratio_hold_at_once(keep_ratio: float, by_macs: Callable[..., Timed]) -> None:
    by_macs()
    ready = prepared()
    config = config_of(**settings(speedup=1.25, keep_ratio=keep_ratio))
    plan = plan_for_latency(ready, quiet(config), profile_for(ready))
    assert plan.latency is not None
    assert plan.latency.excess <= EXCEEDED
    assert (plan.keep_ratio or 1) <= keep_ratio
    assert plan.budget == {"keep_ratio": keep_ratio, "speedup": 1.25}


def test_a_plan_that_is_late_by_little_warns_and_one_that_is_late_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ready = prepared()
    monkeypatch.setattr(module, "alternate_latency", lambda *_: latency_of(0.83))
    monkeypatch.setattr(module, "ATTEMPTS", 1)
    config, profile = config_of(**settings(speedup=1.25)), profile_for(ready)
    with pytest.warns(BudgetWarning, match=r"speed-up of 1\.25 was asked for, and .* \(speed-up 1\.20 over the dense"):
        plan_for_latency(ready, quiet(config), profile)
    monkeypatch.setattr(module, "alternate_latency", lambda *_: latency_of(0.9))
    with pytest.raises(BudgetError, match=r"speed-up of 1\.25 is out of reach: .* \(speed-up 1\.11 over the dense"):
        plan_for_latency(ready, quiet(config), profile)


def test_the_tighter_of_two_bounds_of_time_counts() -> None:
    assert share_of(config_of(speedup=2.0), 0.01) == 0.5
    assert share_of(config_of(max_latency_ms=4.0), 0.01) == pytest.approx(0.4)
    assert share_of(config_of(speedup=2.0, max_latency_ms=4.0), 0.01) == pytest.approx(0.4)
    assert share_of(config_of(max_latency_ms=40.0), 0.01) == 1.0


def with_latency(loss: float | None, ratio: float, asked: float = 0.5) -> CompressionPlan:
    plan = CompressionPlan({}, loss)
    plan.latency = LatencyReport(asked, asked, latency_of(ratio))
    return plan


def test_of_plans_that_are_fast_enough_the_one_that_loses_least_is_taken() -> None:
    plans = [with_latency(0.3, 0.40), with_latency(0.2, 0.505), with_latency(0.1, 0.53)]
    assert best_of(plans) is plans[1]
    assert best_of(plans[::-1]) is plans[1]
    late = [with_latency(0.1, 0.6), with_latency(0.3, 0.55)]
    assert best_of(late) is late[1]
    unpredicted = [with_latency(None, 0.40), with_latency(None, 0.49)]
    assert best_of(unpredicted) is unpredicted[1], "the slower one keeps more"


def test_the_timed_models_have_the_plans_shapes_and_leave_the_dense_one_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    ready, seen = prepared(), []
    before = {name: tensor.clone() for name, tensor in ready.subject.model.state_dict().items()}

    def alternate(dense: Callable[[], float], compressed: Callable[[], float], *_: Any) -> Latency:
        assert dense() > 0
        assert compressed() > 0
        seen.append(compressed.args[0])  # type: ignore[attr-defined]
        return latency_of(0.8)

    monkeypatch.setattr(module, "alternate_latency", alternate)
    plan = plan_for_latency(ready, quiet(config_of(**settings(speedup=1.25))), profile_for(ready))
    assert seen[-1].config.compression["layers"] == plan.layers
    after = ready.subject.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
