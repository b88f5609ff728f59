"""The budget: what each group of layers offers + a bound → a `CompressionPlan`, which module gets which shape."""

import bisect
import heapq
import math
import operator
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from ..config import Allocation
from ..errors import BudgetError, BudgetWarning
from .groups.base import Choice, Cost, macs_of, parameters_of
from .plan import CompressionPlan
from .settling import settled

KEEP_TOLERANCE = 0.005
"""How far below a budget a plan may stay without a warning, as a fraction of the budget."""

PRECISION, PRICE_STEPS, SETTLED = 10**9, 40, 5
"""Of several budgets: what the whole of each counts, how often their prices are corrected, and how many of the nearest
plans are brought within all of them."""

COSTS: dict[str, Cost] = {"params": parameters_of, "macs": macs_of}
"""What is counted, by its unit; time is measured, and comes with its budget."""

NANOSECONDS = "ns"
"""Unit of time, so that costs are whole numbers."""


@dataclass
class Table:
    """What one group of layers offers the planner.

    Attributes:
        name: of the group.
        choices: by rising cost and falling error, the dense one last.
        weight: factor on the errors.
    """

    name: str
    choices: list[Choice]
    weight: float = 1.0


@dataclass(frozen=True)
class Budget:
    """A bound on the whole model.

    Attributes:
        limit: parameters, MACs per image or nanoseconds per batch that the compressed model may have.
        original: the dense model's.
        fixed: the part of it that no plan changes (embeddings, norms, heads, skipped layers; for MACs, attention).
        unit: `"params"`, `"macs"` or `NANOSECONDS`.
        exact: whether to warn of a result that stays further than `KEEP_TOLERANCE` below the limit, unless more would
            gain nothing.
        measured: what a choice costs, where that is measured; otherwise it is counted in the unit.
    """

    limit: int
    original: int
    fixed: int
    unit: str = "params"
    exact: bool = False
    measured: Cost | None = None

    @property
    def cost(self) -> Cost:
        return self.measured or COSTS[self.unit]

    @property
    def room(self) -> int:
        """What all groups together may cost."""
        return self.limit - self.fixed

    def amount(self, count: int) -> str:
        """For messages."""
        return f"{count / 1e6:,.4g} ms" if self.unit == NANOSECONDS else f"{count:,} {self.unit}"

    def least(self, lowest: int) -> tuple[str, str]:
        """For the message that a bound is out of reach: what the smallest model has, and what to ask for."""
        if self.unit == NANOSECONDS:
            gain = f"speed-up {self.original / max(lowest, 1):.2f} over the dense {self.amount(self.original)}"
            return f"the fastest model with these settings takes {self.amount(lowest)} ({gain})", "more time"
        share = f"keep ratio {lowest / self.original:.4f} of {self.original:,}"
        return f"the smallest model with these settings has {self.amount(lowest)} ({share})", "more"


def make_plan(
    tables: Sequence[Table], budgets: Budget | Sequence[Budget], allocation: Allocation, rank_multiple: int = 8
) -> CompressionPlan:
    """Spend a budget, or several that all hold.

    `"greedy"` starts every group at its cheapest choice and takes, again and again, the step that gains most per cost,
    which is optimal up to one step (see `_greedy`). `"uniform"` gives every group the same share of its dense cost.

    Args:
        rank_multiple: that the choices were made with, for messages.

    Raises:
        BudgetError: no plan is small enough; the message names the bound that stands in the way.
    """
    several = [budgets] if isinstance(budgets, Budget) else list(budgets)
    for budget in several:
        smallest = sum(min(budget.cost(choice) for choice in table.choices) for table in tables)
        check_reachable(budget, smallest, len(tables), rank_multiple)
    levels = spent_together(tables, several, allocation)
    _warn_of_missed(tables, several, levels, allocation, rank_multiple)
    chosen = [table.choices[level] for table, level in zip(tables, levels, strict=True)]
    return CompressionPlan({name: shape for choice in chosen for name, shape in choice.shapes.items()})


def spent_together(tables: Sequence[Table], budgets: Sequence[Budget], allocation: Allocation) -> list[int]:
    """Which choice of each table is taken.

    A plan for one budget that meets the others as well is the best for all. Otherwise costs are added up, each as a
    share of its budget, and those that are exceeded count more and more: at the prices of the optimum all that bind
    are met (Lagrange multipliers), but for the last step, which `settled` takes group by group.

    Raises:
        BudgetError: the budgets are within reach, but not together.
    """
    costs = [[[budget.cost(choice) for choice in table.choices] for table in tables] for budget in budgets]
    errors = [[choice.error * table.weight for choice in table.choices] for table in tables]

    def spend(prices: Sequence[float], room: int) -> list[int]:
        total = [
            [round(sum(map(operator.mul, prices, one))) for one in zip(*own, strict=True)]
            for own in zip(*costs, strict=True)
        ]
        return spent([list(zip(*own, strict=True)) for own in zip(total, errors, strict=True)], room, allocation)

    def used(levels: list[int]) -> list[float]:
        return [
            sum(own[level] for own, level in zip(cost, levels, strict=True)) / max(budget.room, 1)
            for cost, budget in zip(costs, budgets, strict=True)
        ]

    def lost(levels: list[int]) -> float:
        return sum(own[level] for own, level in zip(errors, levels, strict=True))

    for i, budget in enumerate(budgets):
        levels = spend([float(i == j) for j in range(len(budgets))], budget.room)
        if len(budgets) == 1 or max(used(levels)) <= 1:
            return levels
    near, shares = [], [1.0 / len(budgets)] * len(budgets)
    for attempt in range(PRICE_STEPS):
        prices = [PRECISION * share / max(one.room, 1) for share, one in zip(shares, budgets, strict=True)]
        levels = spend(prices, PRECISION)
        exceeded = used(levels)
        near.append((max(1.0, *exceeded), lost(levels), levels))
        step = 4.0 / (1 + attempt) ** 0.5
        shares = [share * math.exp(step * (own - 1)) for share, own in zip(shares, exceeded, strict=True)]
        shares = [share / sum(shares) for share in shares]
    rooms = [budget.room for budget in budgets]
    attempts = (settled(costs, errors, rooms, levels) for *_, levels in sorted(near)[:SETTLED])
    if not (found := [levels for levels in attempts if levels is not None]):
        asked = " and ".join(budget.amount(budget.limit) for budget in budgets)
        raise BudgetError(f"Each of the budgets is within reach, but not {asked} together. Ask for more of one.")
    return min(found, key=lost)


def spent(entries: "Entries", room: int, allocation: Allocation) -> list[int]:
    """Which choice of each table is taken for one cost.

    Args:
        entries: in any order.
    """
    useful = [_useful(table) for table in entries]
    kept = [[table[i] for i in indices] for table, indices in zip(entries, useful, strict=True)]
    levels = (_greedy if allocation == "greedy" else _uniform)(kept, room)
    return [indices[level] for indices, level in zip(useful, levels, strict=True)]


def _warn_of_missed(
    tables: Sequence[Table], budgets: Sequence[Budget], levels: list[int], allocation: Allocation, rank_multiple: int
) -> None:
    """Say where a plan stays further than `KEEP_TOLERANCE` below every budget, unless more would gain nothing."""
    if not all(budget.exact for budget in budgets):
        return
    pairs = list(zip(tables, levels, strict=True))
    reached = [budget.fixed + sum(budget.cost(table.choices[level]) for table, level in pairs) for budget in budgets]
    missed = all(
        budget.limit - own > KEEP_TOLERANCE * budget.limit for budget, own in zip(budgets, reached, strict=True)
    )
    # Where only layers that nothing reads are left to buy, more would gain nothing.
    if missed and any(table.choices[level].error > table.choices[-1].error for table, level in pairs):
        warnings.warn(_missed(budgets[0], reached[0], allocation, rank_multiple), BudgetWarning, stacklevel=3)


def _missed(budget: Budget, reached: int, allocation: Allocation, rank_multiple: int) -> str:
    """By how much, why, and what comes nearer."""
    kept, asked = (count / budget.original for count in (reached, budget.limit))
    causes = {}
    if rank_multiple > 1:
        causes[f"ranks and widths are multiples of rank_multiple={rank_multiple}"] = "a smaller rank_multiple"
    if allocation == "uniform":
        causes["every group gets the same share"] = 'allocation="greedy"'
    why = " and ".join(causes) or "each rank or width is a large part of this model"
    remedy = f" To come nearer, use {' or '.join(causes.values())}." if causes else ""
    return (
        f"The nearest plan below the budget has {budget.amount(reached)}, {1 - reached / budget.limit:.1%} fewer than "
        f"the {budget.limit:,} asked for (it keeps {kept:.4f} of the original, not {asked:.4f}), because "
        f"{why}.{remedy}"
    )


def check_reachable(budget: Budget, smallest: int, groups: int, rank_multiple: int) -> None:
    """Refuse a bound below the smallest model there is.

    Args:
        smallest: what all groups need at their cheapest choices.
        groups: how many there are.
        rank_multiple: that the choices were made with.

    Raises:
        BudgetError: naming the smallest model, and what is in the way of a smaller one.
    """
    lowest = budget.fixed + smallest
    if lowest <= budget.limit:
        return
    what, more = budget.least(lowest)
    smaller = "lower rank_multiple, or let" if smallest else "or let"
    raise BudgetError(
        f"The budget of {budget.amount(budget.limit)} is out of reach: {what}. {budget.amount(budget.fixed)} of them "
        f"lie outside the {groups} groups of layers that may be compressed, and these need {budget.amount(smallest)} "
        f"at the lowest ranks and widths (multiples of {rank_multiple}). Ask for {more}, {smaller} "
        "more layers be compressed (skip_modules, target_modules, mlp, attention)."
    )


Entries = list[list[tuple[int, float]]]
"""By group, the (cost, error) of its choices, by rising cost."""


def _useful(table: list[tuple[int, float]]) -> list[int]:
    """Choices by rising cost that no cheaper one equals, and the dense one (the last)."""
    useful: list[int] = []
    for i in sorted(range(len(table)), key=lambda i: table[i]):
        if not useful or i == len(table) - 1 or table[i][1] < table[useful[-1]][1]:
            useful.append(i)
    return useful


def _greedy(entries: Entries, room: int) -> list[int]:
    """Along the convex hulls first, where taking the best step each time is optimal; then whatever still fits."""
    hulls = [_hull(table) for table in entries]
    on_hull = _ascend([[table[i] for i in hull] for table, hull in zip(entries, hulls, strict=True)], room)
    levels = [hull[level] for hull, level in zip(hulls, on_hull, strict=True)]
    return _ascend(entries, room, levels)


def _hull(table: list[tuple[int, float]]) -> list[int]:
    """Indices of the lower convex hull, the first and the last included."""
    hull: list[int] = []
    for i, (cost, error) in enumerate(table):
        while len(hull) > 1:
            (a, x), (b, y) = table[hull[-2]], table[hull[-1]]
            if (y - x) * (cost - a) < (error - x) * (b - a):
                break
            hull.pop()
        hull.append(i)
    return hull


def _ascend(entries: Entries, room: int, start: list[int] | None = None) -> list[int]:
    """From `start`, or the cheapest choices, take the step up that gains most per cost until none fits."""
    levels = list(start or [0] * len(entries))
    room -= _cost(entries, levels)

    def best_step(i: int) -> tuple[float, int, int, int] | None:
        table, now = entries[i], levels[i]
        cost, error = table[now]
        best = None
        for then in range(now + 1, len(table)):
            above, left = table[then]
            if (price := above - cost) > room:
                break
            if left <= error:
                gain = (left - error) / max(price, 1)
                if best is None or gain < best[0]:
                    best = gain, i, then, price
        return best

    queue = [step for i in range(len(entries)) if (step := best_step(i)) is not None]
    heapq.heapify(queue)
    while queue:
        _, i, then, price = heapq.heappop(queue)
        if price <= room:
            room -= price
            levels[i] = then
        if (step := best_step(i)) is not None:
            heapq.heappush(queue, step)
    return levels


def _uniform(entries: Entries, room: int) -> list[int]:
    """One share of the dense cost for all.

    Where every share below 1 leaves room, some groups stay dense, those first whose other choices end furthest below.
    """
    below = [table[-2:][0][0] for table in entries]
    highest, floors = sum(below), [[0] * len(entries)]
    for i in sorted(range(len(entries)), key=lambda i: below[i] / entries[i][-1][0]):
        floor = [*floors[-1][:i], len(entries[i]) - 1, *floors[-1][i + 1 :]]
        if highest < room and _cost(entries, floor) <= room:
            floors.append(floor)
            highest += entries[i][-1][0] - below[i]
    # The last of them may be at the expense of the others' share: it has to spend more.
    return max((_common_share(entries, room, floor) for floor in floors[-2:]), key=lambda own: _cost(entries, own))


def _common_share(entries: Entries, room: int, floor: list[int]) -> list[int]:
    """The largest share that fits; what rounding leaves over goes where it lost most, but makes no group dense.

    Args:
        floor: levels to begin at; where some of them are dense, the rest may make others so.
    """

    def at_share(share: float) -> list[int]:
        return [
            max(least, bisect.bisect_right(table, share * table[-1][0], key=lambda e: e[0]) - 1)
            for table, least in zip(entries, floor, strict=True)
        ]

    low, high = 0.0, 1.0
    if _cost(entries, at_share(high)) <= room:
        return at_share(high)
    for _ in range(40):  # the cost jumps where the share passes a choice: bisection finds the last that fits
        middle = (low + high) / 2
        low, high = (middle, high) if _cost(entries, at_share(middle)) <= room else (low, middle)
    levels = at_share(low)
    left = room - _cost(entries, levels)
    kept_back = 0 if any(floor) else 1
    shortfall = [high * table[-1][0] - table[level][0] for table, level in zip(entries, levels, strict=True)]
    for i in sorted(range(len(entries)), key=lambda i: -shortfall[i] / entries[i][-1][0]):
        if levels[i] + 1 < len(entries[i]) - kept_back:
            price = entries[i][levels[i] + 1][0] - entries[i][levels[i]][0]
            if price <= left:
                levels[i], left = levels[i] + 1, left - price
    return levels


def _cost(entries: Entries, levels: list[int]) -> int:
    return sum(table[level][0] for table, level in zip(entries, levels, strict=True))
