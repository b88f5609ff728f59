"""Latencies predicted from a profile, and corrected by one measurement."""

from dataclasses import replace

import pytest

from hf_vitcompress.planning.clock import Clock
from hf_vitcompress.planning.groups.base import Choice
from hf_vitcompress.planning.planner import Planner
from hf_vitcompress.profiling.operations import Activation, Attention, Product, macs_of_operation
from support.groups import config_of, prepared
from support.profiles import even_profile, even_seconds
from support.students import METHODS

WHOLE = [Choice(0, 0, 0.0, {}, (Product(17, 32, 32), Product(17, 32, 64))) for _ in range(4)]
HALF = [Choice(0, 0, 0.0, {}, (Product(17, 32, 8), Product(17, 8, 64))) for _ in range(4)]


def clock_of(dense: float, limit: float = 0.5) -> Clock:
    return Clock.of(even_profile([17], dense=dense), WHOLE, limit)


@pytest.mark.parametrize("dense", [1.0, 1e-3, 1e-5])
def test_the_dense_model_takes_as_long_as_it_was_measured(dense: float) -> None:
    """Also where its operations by themselves take longer than all of it."""
    clock = clock_of(dense)
    assert clock.ratio(WHOLE) == pytest.approx(1.0)
    assert clock.rest >= -1e-15
    assert 0 < clock.ratio(HALF) < 1


def test_a_plan_saves_the_seconds_of_its_operations() -> None:
    clock = clock_of(1e-3)
    saved = 4 * (sum(map(even_seconds, WHOLE[0].operations)) - sum(map(even_seconds, HALF[0].operations)))
    assert clock.ratio(HALF) == pytest.approx(1 - saved / 1e-3)


def test_the_budget_has_the_clocks_costs() -> None:
    budget = clock_of(1e-3, limit=0.25).budget()
    assert (budget.limit, budget.original) == (250_000, 1_000_000)
    assert budget.fixed + sum(map(budget.cost, WHOLE)) == pytest.approx(1_000_000, abs=10)
    assert budget.amount(250_000) == "0.25 ms"


def test_a_device_that_has_become_slower_changes_times_and_no_ratio() -> None:
    """So that a bound in milliseconds is named as it was asked for."""
    before, after = clock_of(1e-3, limit=0.25), replace(clock_of(1e-3, limit=0.25), pace=2.0)
    assert (after.budget().limit, after.budget().original) == (500_000, 2_000_000)
    assert after.cost(HALF[0]) == pytest.approx(2 * before.cost(HALF[0]), abs=1)
    assert after.ratio(HALF) == before.ratio(HALF)


@pytest.mark.parametrize("measured", [0.55, 0.9, 0.99])
def test_a_correction_meets_the_plan_that_was_measured_and_the_dense_model(measured: float) -> None:
    clock = clock_of(1e-4).corrected(HALF, measured)
    assert clock.ratio(HALF) == pytest.approx(measured)
    assert clock.ratio(WHOLE) == pytest.approx(1.0)


def test_nothing_is_learned_from_a_plan_that_saves_nothing() -> None:
    clock = clock_of(1e-3)
    assert clock.corrected(WHOLE, 0.97) == clock
    assert clock.corrected(HALF, 1.05) == clock


# ---- what the groups say that they run


def operations_of(planner: Planner, multiple: int) -> list[Choice]:
    return [choice for group in planner.groups for choice in group.choices(multiple)]


@pytest.mark.parametrize("method", METHODS)
def test_the_operations_of_every_choice_add_up_to_its_macs(method: str) -> None:
    ready = prepared(**METHODS[method])
    for group in ready.groups:
        dense = group.choice({})
        for choice in group.choices(4):
            assert choice.operations, group.name
            operations = [one for one in choice.operations if not isinstance(one, Activation)]
            whole = [one for one in dense.operations if not isinstance(one, Activation)]
            # A group counts of attention what it changes; what an attention module runs is in one piece.
            counted = sum(map(macs_of_operation, operations)) - sum(map(macs_of_operation, whole))
            assert counted == choice.macs - dense.macs, (group.name, choice.shapes)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("multiple", [1, 8])
def test_the_profiled_sizes_span_those_of_all_choices(method: str, multiple: int) -> None:
    for group in prepared(**METHODS[method], rank_multiple=multiple).groups:
        spanning = group.spanning(multiple)
        for choice in group.choices(multiple):
            for operation in choice.operations:
                alike = [one for one in spanning if type(one) is type(operation) and one.rows == operation.rows]
                if isinstance(operation, Attention):
                    alike = [one for one in alike if one.head_dim == operation.head_dim]  # type: ignore[union-attr]
                assert alike, operation
                for sizes, size in zip(zip(*alike, strict=True), operation, strict=True):
                    assert min(sizes) <= size <= max(sizes), (group.name, operation)


def test_a_clock_finds_choices_that_are_best_for_their_time() -> None:
    """Of a pair of layers, what has fewer parameters need not be faster."""
    ready = prepared()
    profile = even_profile({op.rows for group in ready.groups for op in group.spanning(1)}, dense=4.5e-4)
    clock = Clock.of(profile, [group.choice({}) for group in ready.groups], 0.7)
    plan = ready.plan(config_of(speedup=1.4, rank_multiple=1, tokens="none"), exact=False, clock=clock)
    assert clock.ratio(ready.taken(plan)) <= 0.7 + 1e-9
    slower = replace(clock, limit=0.9)
    larger = ready.plan(config_of(speedup=1.1, rank_multiple=1, tokens="none"), exact=False, clock=slower)
    weights = ready.correction.weights
    assert ready.predicted(larger, weights) < ready.predicted(plan, weights)
