"""Plans under two and three budgets that all hold."""

import itertools
from collections.abc import Sequence

import pytest
import torch

from hf_vitcompress.errors import BudgetError
from hf_vitcompress.planning.allocation import NANOSECONDS, Budget, Table, make_plan
from hf_vitcompress.planning.groups.base import Choice, Cost
from support.groups import config_of, prepared
from support.tables import chosen, loss


def nanoseconds(choice: Choice) -> int:
    """Made up: what costs few parameters may take long."""
    return 50 + (choice.parameters * 37 + choice.macs * 11) % 97 + choice.parameters


def tables_of(seed: int, count: int = 4, steps: int = 6) -> list[Table]:
    """Random choices whose costs in parameters and in MACs go apart."""
    generator = torch.Generator().manual_seed(seed)
    tables = []
    for i in range(count):
        costs = (torch.rand((2, steps), generator=generator, dtype=torch.float64) * 90).cumsum(1).long() + 1
        errors = torch.rand(steps - 1, generator=generator, dtype=torch.float64).sort(descending=True).values
        shapes = [*({f"layer.{i}": {"rank": rank}} for rank in range(1, steps)), {}]
        tables.append(
            Table(f"part {i}", [
                Choice(int(a), int(b), float(error), shape)
                for a, b, error, shape in zip(*costs, [*errors, 0.0], shapes, strict=True)
            ])
        )  # fmt: skip
    return tables


def budget_of(tables: Sequence[Table], share: float, unit: str) -> Budget:
    measured = nanoseconds if unit == NANOSECONDS else None
    cost = Budget(1, 1, 0, unit, measured=measured).cost
    least, most = (sum(pick(map(cost, table.choices)) for table in tables) for pick in (min, max))
    return Budget(70 + round(least + share * (most - least)), 70 + most, 70, unit, measured=measured)


def spent(costs: Cost, tables: Sequence[Table], found: Sequence[Choice]) -> int:
    assert len(tables) == len(found)
    return sum(map(costs, found))


def best(tables: Sequence[Table], budgets: Sequence[Budget]) -> float | None:
    """Brute force; `None` where the budgets cannot all hold."""
    found = [
        sum(choice.error for choice in choices)
        for choices in itertools.product(*(table.choices for table in tables))
        if all(spent(budget.cost, tables, choices) <= budget.room for budget in budgets)
    ]
    return min(found, default=None)


UNITS = [("params", "macs"), ("params", NANOSECONDS), ("macs", NANOSECONDS), ("params", "macs", NANOSECONDS)]


@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("seed", range(4))
def test_all_budgets_hold_and_little_is_lost_to_brute_force(seed: int, units: tuple[str, ...]) -> None:
    tables = tables_of(seed)
    worst = sum(table.choices[0].error for table in tables)
    excess = []
    for shares in itertools.product((0.3, 0.55, 0.8), repeat=len(units)):
        budgets = [budget_of(tables, share, unit) for share, unit in zip(shares, units, strict=True)]
        optimum = best(tables, budgets)
        assert optimum is not None, "the test needs budgets that can hold together"
        plan = make_plan(tables, budgets, "greedy", 1)
        found = [chosen(plan, table) for table in tables]
        assert all(spent(budget.cost, tables, found) <= budget.room for budget in budgets)
        excess.append(loss(plan, tables) - optimum)
        assert excess[-1] >= -1e-12
    assert sum(excess) / len(excess) <= 0.08 * worst
    assert max(excess) <= 0.3 * worst


@pytest.mark.parametrize("allocation", ["greedy", "uniform"])
@pytest.mark.parametrize("unit", ["params", "macs", NANOSECONDS])
def test_a_budget_that_does_not_bind_changes_nothing(allocation: str, unit: str) -> None:
    tables = tables_of(7)
    for share in (0.2, 0.5, 0.9):
        own = budget_of(tables, share, unit)
        alone = make_plan(tables, own, allocation, 1)
        others = [budget_of(tables, 1.0, other) for other in ("params", "macs", NANOSECONDS) if other != unit]
        assert make_plan(tables, [own], allocation, 1) == alone
        assert make_plan(tables, [*others, own], allocation, 1) == alone


def test_the_order_of_budgets_and_one_twice_do_not_matter() -> None:
    tables = tables_of(3)
    one, other = budget_of(tables, 0.5, "params"), budget_of(tables, 0.6, "macs")
    plans = [make_plan(tables, budgets, "greedy", 1) for budgets in ([one, other], [other, one])]
    assert loss(plans[0], tables) == pytest.approx(loss(plans[1], tables))
    tighter = budget_of(tables, 0.4, "params")
    assert make_plan(tables, [one, tighter], "greedy", 1) == make_plan(tables, tighter, "greedy", 1)


def test_budgets_that_cannot_hold_together_are_refused() -> None:
    shapes = ({"layer": {"rank": 1}}, {"layer": {"rank": 2}}, {})
    table = Table("part", [Choice(10, 90, 2.0, shapes[0]), Choice(90, 10, 1.0, shapes[1]), Choice(99, 99, 0, {})])
    budgets = [Budget(20, 99, 0), Budget(20, 99, 0, "macs")]
    for budget in budgets:
        assert make_plan([table], budget, "greedy", 1).layers
    with pytest.raises(BudgetError, match="not 20 params and 20 macs together"):
        make_plan([table], budgets, "greedy", 1)


def test_of_several_budgets_the_one_out_of_reach_is_named() -> None:
    tables = tables_of(0)
    with pytest.raises(BudgetError, match="The budget of 71 macs is out of reach"):
        make_plan(tables, [budget_of(tables, 0.9, "params"), Budget(71, 900, 70, "macs")], "greedy", 1)


def test_a_time_out_of_reach_names_the_least_and_the_speed_up() -> None:
    choices = [Choice(1, 1, 1.0, {"layer": {"rank": 1}}), Choice(9, 9, 0.0, {})]

    def milliseconds(choice: Choice) -> int:
        return choice.parameters * 1_000_000

    bound = Budget(2_000_000, 12_000_000, 3_000_000, NANOSECONDS, measured=milliseconds)
    with pytest.raises(BudgetError, match=r"budget of 2 ms .* takes 4 ms \(speed-up 3\.00 over the dense 12 ms\)"):
        make_plan([Table("part", choices)], bound, "greedy", 1)


def test_a_planner_holds_a_keep_ratio_and_macs_at_once() -> None:
    ready = prepared()
    macs = int(0.75 * ready.costs.macs)
    both = ready.plan(config_of(keep_ratio=0.7, max_macs=macs, rank_multiple=1, tokens="none"), exact=False)
    assert both.budget == {"keep_ratio": 0.7, "max_macs": macs}
    assert (both.keep_ratio or 1) <= 0.7
    fixed = ready.costs.macs - sum(group.choice({}).macs for group in ready.groups)
    assert fixed + sum(choice.macs for choice in ready.taken(both)) <= macs
