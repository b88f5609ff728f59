"""Budgets over choices of any form."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch

from hf_vitcompress.errors import BudgetError, BudgetWarning
from hf_vitcompress.planning.allocation import COSTS, Budget, Table, make_plan
from hf_vitcompress.planning.groups.base import Choice
from support.tables import chosen, hull_steps, least_error, loss, spent


def steps(seed: int, count: int, falling: bool = True) -> list[Choice]:
    """Random choices by rising cost and falling error, on no curve of any kind, the dense one last."""
    generator = torch.Generator().manual_seed(seed)
    costs = (torch.rand(count, generator=generator, dtype=torch.float64) * 100).cumsum(0).long() + 1
    errors = torch.rand(count - 1, generator=generator, dtype=torch.float64)
    errors = errors.sort(descending=True).values if falling else errors
    return [
        Choice(int(cost), 3 * int(cost), float(error), {} if i + 1 == count else {f"layer.{seed}": {"rank": i + 1}})
        for i, (cost, error) in enumerate(zip(costs, [*errors, 0.0], strict=True))
    ]


@pytest.mark.parametrize("unit", ["params", "macs"])
@pytest.mark.parametrize("seed", range(12))
def test_greedy_is_near_brute_force_on_any_table(seed: int, unit: str) -> None:
    tables = [Table(f"part {i}", steps(10 * seed + i, 6), 1.0 + i) for i in range(4)]
    lowest = sum(COSTS[unit](table.choices[0]) for table in tables)
    highest = sum(COSTS[unit](table.choices[-1]) for table in tables)
    worst = sum(table.choices[0].error * table.weight for table in tables)
    excess = []
    for room in torch.linspace(lowest, highest, 15).long().tolist():
        plan = make_plan(tables, Budget(room, highest, 0, unit), "greedy", 1)
        assert spent(plan, tables, unit) <= room
        excess.append(loss(plan, tables) - least_error(tables, room, unit))
        assert excess[-1] >= -1e-12
    assert excess[0] == excess[-1] == 0
    assert max(excess) <= 0.3 * worst
    assert sum(excess) / len(excess) <= 0.08 * worst


@pytest.mark.parametrize("seed", range(6))
def test_greedy_is_optimal_where_the_budget_ends_on_the_hull(seed: int) -> None:
    tables = [Table(f"part {i}", steps(10 * seed + i, 7)) for i in range(3)]
    room = sum(table.choices[0].parameters for table in tables)
    highest = sum(table.choices[-1].parameters for table in tables)
    for _, price in sorted(step for table in tables for step in hull_steps(table.choices)):
        room += price
        plan = make_plan(tables, Budget(room, highest, 0), "greedy", 1)
        assert loss(plan, tables) == pytest.approx(least_error(tables, room), abs=1e-12)
    assert room == highest


@pytest.mark.parametrize("seed", range(6))
def test_no_step_is_taken_that_raises_the_error(seed: int) -> None:
    """Choices need not fall: without repair, fewer features may leave a smaller error."""
    tables = [Table(f"part {i}", steps(10 * seed + i, 6, falling=False)) for i in range(3)]
    lowest = sum(table.choices[0].parameters for table in tables)
    highest = sum(table.choices[-1].parameters for table in tables)
    start = sum(table.choices[0].error for table in tables)
    for room in range(lowest, highest + 1, 9):
        plan = make_plan(tables, Budget(room, highest, 0), "greedy", 1)
        assert loss(plan, tables) <= start + 1e-12


@pytest.mark.parametrize("allocation", ["greedy", "uniform"])
def test_choices_that_are_out_of_order_in_macs_are_no_obstacle(allocation: str) -> None:
    """Fewer values save attention's own products too, so that more parameters may cost fewer multiplications."""

    def choice(parameters: int, macs: int, error: float) -> Choice:
        shapes = {} if error == 0 else {"layer": {"rank": parameters}}
        return Choice(parameters, macs, error, shapes)

    tables = [Table("part", [choice(10, 200, 3.0), choice(11, 100, 2.5), choice(12, 150, 2.0), choice(20, 400, 0.0)])]
    for room, expected in ((100, 11), (149, 11), (150, 12), (399, 12), (400, 20)):
        plan = make_plan(tables, Budget(room, 400, 0, "macs"), allocation, 1)
        assert chosen(plan, tables[0]).parameters == expected, room
    with pytest.raises(BudgetError, match="has 100"):
        make_plan(tables, Budget(99, 400, 0, "macs"), allocation, 1)


@pytest.mark.parametrize("seed", range(4))
def test_uniform_shares_hold_on_any_table(seed: int) -> None:
    tables = [Table(f"part {i}", steps(10 * seed + i, 30)) for i in range(4)]
    lowest = sum(table.choices[0].parameters for table in tables)
    highest = sum(table.choices[-1].parameters for table in tables)
    for room in torch.linspace(0.3 * highest, highest, 12).long().tolist():
        if room < lowest:
            continue
        plan = make_plan(tables, Budget(room, highest, 0), "uniform", 1)
        assert spent(plan, tables) <= room
        for table in tables:
            own, dense = chosen(plan, table), table.choices[-1]
            gaps = [b.parameters - a.parameters for a, b in itertools.pairwise(table.choices)]
            assert abs(own.parameters / dense.parameters - room / highest) <= 2 * max(gaps) / dense.parameters


def even(name: str, count: int, cost: int) -> Table:
    """Choices of `cost` parameters more each, the dense one last."""
    shapes: list[Any] = [*({name: {"rank": i}} for i in range(1, count)), {}]
    return Table(name, [Choice(i * cost, i * cost, float(count - i), own) for i, own in enumerate(shapes, start=1)])


@pytest.mark.parametrize("share", [0.8, 0.93, 0.947, 0.95, 0.96, 0.97, 0.98, 0.99, 0.9999, 1.0])
def test_uniform_keeps_coarse_parts_dense_where_nothing_else_is_left_to_buy(share: float) -> None:
    """Heads are few and neurons many: with one head less in every block, 0.948 is the most."""
    heads, neurons = (
        [even(f"{kind} {i}", *size) for i in range(6)] for kind, size in (("h", (8, 400)), ("n", (64, 100)))
    )
    full = 6 * (3200 + 6400)
    plan = make_plan([*heads, *neurons], Budget(int(share * full), full, 0), "uniform", 1)
    assert share * full - 100 - 1 < spent(plan, [*heads, *neurons]) <= share * full
    widths = [chosen(plan, table).parameters // 100 for table in neurons]
    assert max(widths) - min(widths) <= 1
    if share < 0.948:
        assert len(plan.layers) == 12
    assert {chosen(plan, table).parameters // 400 for table in heads} <= ({6, 7} if share < 0.948 else {7, 8})


def test_uniform_lets_a_part_be_that_is_too_large_to_stay_dense() -> None:
    tables = [even("giant", 2, 900), even("small", 10, 10)]
    for room, widths in (
        (980, [1, 8]),
        (999, [1, 9]),
        (1500, [1, 10]),
        (1810, [2, 1]),
        (1895, [2, 9]),
        (1900, [2, 10]),
    ):
        plan = make_plan(tables, Budget(room, 1900, 0), "uniform", 1)
        assert [chosen(plan, table).parameters // size for table, size in zip(tables, (900, 10), strict=True)] == widths


def test_a_weight_of_a_part_is_a_factor_on_its_errors() -> None:
    """Three times the weight is three times the errors."""
    first, second = steps(0, 5), steps(1, 5)
    larger = [replace(choice, error=3 * choice.error) for choice in second]
    most = first[-1].parameters + second[-1].parameters
    plans = [
        [
            make_plan([Table("a", first), Table("b", choices, weight)], Budget(room, most, 0), "greedy", 1).layers
            for room in range(first[0].parameters + second[0].parameters, most + 1, 3)
        ]
        for choices, weight in ((second, 3.0), (larger, 1.0), (second, 1.0))
    ]
    assert plans[0] == plans[1] != plans[2]


def test_what_costs_no_loss_need_not_be_kept_to_meet_a_budget_exactly() -> None:
    """As of blocks that the head does not read."""
    shapes = ({"free": {"rank": 1}}, {})
    free = Table("free", [Choice(10, 10, 0.0, shapes[0]), Choice(500, 500, 0.0, shapes[1])])
    read = Table("read", [Choice(10, 10, 1.0, {"read": {"rank": 1}}), Choice(300, 300, 0.0, {})])
    plan = make_plan([free, read], Budget(400, 800, 0, exact=True), "greedy")
    assert plan.layers == {"free": {"rank": 1}}
    with pytest.warns(BudgetWarning, match="has 20 params, 93.1% fewer than the 290 asked for"):
        make_plan([free, read], Budget(290, 800, 0, exact=True), "greedy")
