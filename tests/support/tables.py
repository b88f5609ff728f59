"""Tables of choices, and what plans over them cost."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hf_vitcompress.architectures.layers import LayerInfo
from hf_vitcompress.compressor import ViTCompressor
from hf_vitcompress.config import CompressionConfig
from hf_vitcompress.planning.allocation import Table
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
        return self.choice(rank).cost(unit)

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
        if sum(choice.cost(unit) for choice in choices) <= room
    )


def compressor(**changes: Any) -> ViTCompressor:
    settings = {"precision": "float32", "rank_multiple": 1, "measuring_images": 0, **changes}
    return ViTCompressor(CompressionConfig(**settings), progress=False)
