"""Modules that may be removed, in the planner's tables: attention goes as a whole, so its two groups share one table.

Of queries and keys and of values each group offers its own forms, which combine freely, but nothing of one comes only
with nothing of the other. Their table holds the pairs that no other beats.
"""

from collections.abc import Sequence

import numpy as np

from ..config import CompressionConfig
from ..metrics import METRICS
from .allocation import Table
from .groups.base import COUNTED, Choice, Cost, LayerGroup
from .groups.removal import left_parameters
from .pareto import undominated


def removable(groups: Sequence[LayerGroup], config: CompressionConfig) -> list[bool]:
    """Of each group, whether the planner may remove it.

    Only where all errors are losses, which compare, and each group gets what it needs: not where all keep one share.
    """
    if config.allocation != "greedy" or not METRICS[config.metric].is_loss:
        return [False] * len(groups)
    able = {(group.block, group.role) for group in groups if group.removal is not None}

    def goes(group: LayerGroup) -> bool:
        together = ("qk", "vo") if group.role in ("qk", "vo") else (group.role,)
        return all((group.block, role) in able for role in together)

    return [goes(group) for group in groups]


def smallest_parameters(groups: Sequence[LayerGroup], config: CompressionConfig) -> int:
    """Fewest parameters of all groups together; known before they are solved."""
    return sum(
        left_parameters(group) if gone else group.smallest(config.rank_multiple)
        for group, gone in zip(groups, removable(groups, config), strict=True)
    )


def with_removals(
    tables: Sequence[Table],
    groups: Sequence[LayerGroup],
    config: CompressionConfig,
    costs: Sequence[Cost] = COUNTED,
) -> list[Table]:
    """The tables of the groups, in which those that may be removed can be; one for the two of a block's attention.

    Args:
        costs: a pair of forms stays that is best in any of them.
    """
    found: list[Table] = []
    queries: dict[int, tuple[Table, Choice]] = {}
    for table, group, goes in zip(tables, groups, removable(groups, config), strict=True):
        if not goes or group.removal is None:
            found.append(table)
            continue
        nothing = group.choice(group.removal)
        if group.role == "qk":
            queries[group.block] = table, nothing
        elif group.role == "vo":
            first, gone = queries.pop(group.block)
            found.append(joined(first, table, (gone, nothing), costs))
        else:
            found.append(Table(table.name, [nothing, *table.choices], table.weight))
    return found


def joined(first: Table, second: Table, nothing: tuple[Choice, Choice], costs: Sequence[Cost] = COUNTED) -> Table:
    """One table of two: nothing of both, and the pairs of choices that no other beats in any cost; dense last.

    Args:
        nothing: of each, which come together.
    """
    errors = np.add.outer(*(np.array([one.error for one in own.choices]) * own.weight for own in (first, second)))
    best: set[int] = {errors.size - 1}  # both dense
    for cost in costs:
        sums = np.add.outer(*(np.array([cost(one) for one in own.choices]) for own in (first, second)))
        best |= set(undominated(sums.ravel().tolist(), errors.ravel().tolist()))
    weights = first.weight, second.weight
    pairs = [(first.choices[i], second.choices[j]) for i, j in (divmod(at, errors.shape[1]) for at in sorted(best))]
    *choices, dense = [_together(pair, weights) for pair in pairs]
    choices.sort(key=lambda one: (one.parameters, one.macs))
    return Table(second.name, [_together(nothing, weights), *choices, dense])


def _together(pair: tuple[Choice, Choice], weights: tuple[float, float]) -> Choice:
    """Their sum; of the errors the weighted one."""
    one, other = pair
    return Choice(
        one.parameters + other.parameters,
        one.macs + other.macs,
        one.error * weights[0] + other.error * weights[1],
        {**one.shapes, **other.shapes},
        one.operations + other.operations,
    )
