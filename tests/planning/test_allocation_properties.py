"""What holds for every plan, whatever the tables and the budget are."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_vitcompress.errors import BudgetError, BudgetWarning
from hf_vitcompress.planning.allocation import COSTS, KEEP_TOLERANCE, Budget, Table, make_plan
from hf_vitcompress.planning.groups.base import Choice
from support.properties import few_examples
from support.tables import hull_steps, least_error, loss, spent

allocations = st.sampled_from(["greedy", "uniform"])
units = st.sampled_from(["params", "macs"])
shares = st.floats(0, 1)


def table(name: str, costs: Sequence[int], errors: Sequence[float], weight: float) -> Table:
    """Each choice but the last, which is the dense one, has a shape of its own."""
    choices = [
        Choice(cost, 3 * cost, float(error), {} if i + 1 == len(costs) else {name: {"rank": i + 1}})
        for i, (cost, error) in enumerate(zip(costs, errors, strict=True))
    ]
    return Table(name, choices, weight)


@st.composite
def any_tables(draw: Any) -> list[Table]:
    """Choices by rising cost; their errors are whatever they are, that of the dense one is none."""
    tables = []
    for number in range(draw(st.integers(1, 4))):
        costs = sorted(draw(st.sets(st.integers(1, 200), min_size=1, max_size=5)))
        errors = draw(st.lists(st.integers(0, 50), min_size=len(costs) - 1, max_size=len(costs) - 1))
        tables.append(table(f"part {number}", costs, [*errors, 0], draw(st.sampled_from([0.5, 1.0, 3.0]))))
    return tables


@st.composite
def convex_tables(draw: Any) -> list[Table]:
    """Each further step gains less per cost than the one before."""
    tables = []
    for number in range(draw(st.integers(1, 4))):
        slopes = sorted(draw(st.sets(st.integers(1, 40), min_size=1, max_size=4)), reverse=True)
        steps = [draw(st.integers(1, 60)) for _ in slopes]
        costs = [1 + sum(steps[:i]) for i in range(len(steps) + 1)]
        gains = [slope * step for slope, step in zip(slopes, steps, strict=True)]
        tables.append(table(f"part {number}", costs, [sum(gains[i:]) for i in range(len(gains) + 1)], 1.0))
    return tables


def room_in(tables: Sequence[Table], share: float, unit: str = "params") -> int:
    """Between the least and the most that the tables can cost."""
    least, most = (
        sum(pick(COSTS[unit](choice) for choice in table.choices) for table in tables) for pick in (min, max)
    )
    return round(least + share * (most - least))


def budget(room: int, tables: Sequence[Table], unit: str = "params", fixed: int = 0, exact: bool = False) -> Budget:
    return Budget(fixed + room, fixed + room_in(tables, 1.0, unit), fixed, unit, exact)


@few_examples
@given(any_tables(), shares, allocations, units)
def test_a_plan_never_exceeds_its_budget(tables: list[Table], share: float, allocation: Any, unit: str) -> None:
    room = room_in(tables, share, unit)
    plan = make_plan(tables, budget(room, tables, unit, fixed=70), allocation)
    assert spent(plan, tables, unit) <= room
    assert set(plan.layers) <= {table.name for table in tables}


@few_examples
@given(any_tables(), st.integers(1, 50), allocations, units)
def test_a_budget_below_the_cheapest_choices_is_refused(
    tables: list[Table], short: int, allocation: Any, unit: str
) -> None:
    with pytest.raises(BudgetError, match="out of reach"):
        make_plan(tables, budget(room_in(tables, 0.0, unit) - short, tables, unit, fixed=70), allocation)


@few_examples
@given(any_tables(), shares)
def test_greedy_is_within_one_step_of_the_optimum(tables: list[Table], share: float) -> None:
    """It loses no more than the best plan for a budget that is smaller by the largest step between useful choices."""
    room = room_in(tables, share)
    found = loss(make_plan(tables, budget(room, tables), "greedy"), tables)
    assert found >= least_error(tables, room) - 1e-9
    largest = max((price for table in tables for _, price in hull_steps(table.choices)), default=0)
    if room - largest >= room_in(tables, 0.0):
        assert found <= least_error(tables, room - largest) + 1e-9


@few_examples
@given(convex_tables(), shares, shares)
def test_a_larger_budget_loses_no_more(tables: list[Table], one: float, other: float) -> None:
    smaller, larger = (
        loss(make_plan(tables, budget(room_in(tables, share), tables), "greedy"), tables)
        for share in sorted((one, other))
    )
    assert larger <= smaller


@few_examples
@given(any_tables(), allocations, units)
def test_the_whole_budget_keeps_everything_that_gains_anything(tables: list[Table], allocation: Any, unit: str) -> None:
    assert (
        loss(make_plan(tables, budget(room_in(tables, 1.0, unit), tables, unit, exact=True), allocation), tables) == 0
    )


@few_examples
@given(any_tables(), shares, allocations, st.integers(0, 20_000))
def test_the_nearest_plan_below_a_budget_is_the_result_and_a_warning_says_how_far_off_it_is(
    tables: list[Table], share: float, allocation: Any, fixed: int
) -> None:
    exact = budget(room_in(tables, share), tables, fixed=fixed, exact=True)
    nearest = make_plan(tables, budget(room_in(tables, share), tables, fixed=fixed), allocation)
    kept = fixed + spent(nearest, tables)
    missed = kept < exact.limit * (1 - KEEP_TOLERANCE) and loss(nearest, tables) > 0
    said = pytest.warns(BudgetWarning, match=f"keeps {kept / exact.original:.4f}") if missed else nullcontext()
    with said:
        assert make_plan(tables, exact, allocation) == nearest
