"""Tables of choices, what plans over them cost, and the best that there could be."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hf_vitcompress.architectures.layers import LayerInfo
from hf_vitcompress.compressor import ViTCompressor
from hf_vitcompress.config import CompressionConfig
from hf_vitcompress.planning.allocation import COSTS, Table
from hf_vitcompress.planning.groups.base import Choice
from hf_vitcompress.planning.plan import CompressionPlan


@dataclass
class Curve:
    """A layer to be factored, in the place of a part: errors by rank."""

    layer: LayerInfo
    errors: Tensor
    positions: int = 1

    def choice(self, rank: int | None) -> Choice:
        layer = self.layer
        parameters = layer.parameters if rank is None else rank * layer.parameters_per_rank
        shapes = {} if rank is None else {layer.name: {"rank": rank}}
        error = 0.0 if rank is None else float(self.errors[rank])
        return Choice(parameters, parameters * self.positions, error, shapes)

    def ranks(self, multiple: int) -> list[int | None]:
        return [*range(multiple, self.layer.break_even_rank, multiple), None]

    def cost(self, rank: int | None, unit: str) -> int:
        return COSTS[unit](self.choice(rank))

    def table(self, multiple: int, weight: float = 1.0) -> Table:
        return Table(self.layer.name, [self.choice(rank) for rank in self.ranks(multiple)], weight)


def rank_of(plan: CompressionPlan, c: Curve) -> int | None:
    return plan.layers.get(c.layer.name, {}).get("rank")


def error(curves: Sequence[Curve], plan: CompressionPlan) -> float:
    return sum(c.choice(rank_of(plan, c)).error for c in curves)


def least_error(tables: Sequence[Table], room: int, unit: str = "params") -> float:
    """Brute force over every combination of choices."""
    return min(
        sum(choice.error * table.weight for choice, table in zip(choices, tables, strict=True))
        for choices in itertools.product(*(table.choices for table in tables))
        if sum(COSTS[unit](choice) for choice in choices) <= room
    )


def chosen(plan: CompressionPlan, table: Table) -> Choice:
    shapes = {name: plan.layers[name] for choice in table.choices for name in choice.shapes if name in plan.layers}
    return next(choice for choice in table.choices if choice.shapes == shapes)


def spent(plan: CompressionPlan, tables: Sequence[Table], unit: str = "params") -> int:
    return sum(COSTS[unit](chosen(plan, table)) for table in tables)


def loss(plan: CompressionPlan, tables: Sequence[Table]) -> float:
    return sum(chosen(plan, table).error * table.weight for table in tables)


def hull_steps(choices: Sequence[Choice]) -> list[tuple[float, int]]:
    """(slope, price) of the lower convex hull's segments, each the steepest from where the last ended."""
    now, found = 0, []
    while now < len(choices) - 1:
        slopes = {
            then: (choices[then].error - choices[now].error) / (choices[then].parameters - choices[now].parameters)
            for then in range(now + 1, len(choices))
        }
        then = min(slopes, key=lambda i: (slopes[i], i))
        found.append((slopes[then], choices[then].parameters - choices[now].parameters))
        now = then
    return found


def compressor(**changes: Any) -> ViTCompressor:
    settings = {"precision": "float32", "rank_multiple": 1, "measuring_images": 0, **changes}
    return ViTCompressor(CompressionConfig(**settings), progress=False)
