"""Layers that are one product, whose rank is all that may change."""

from abc import abstractmethod
from collections.abc import Sequence

from ...model.assembly import Shapes
from ...profiling.operations import Operation
from .base import COUNTED, Choice, Cost, LayerGroup


class RankedGroup(LayerGroup):
    """One layer, or several on one `down`.

    Attributes:
        shape_key: what the shape of the module `name` calls the rank.
    """

    shape_key: str

    @abstractmethod
    def ranks(self, multiple: int) -> range:
        """Multiples below break-even."""

    @abstractmethod
    def parameters_at(self, rank: int | None) -> int:
        """As `dense_parameters` counts them; `None` is dense."""

    @abstractmethod
    def operations_at(self, rank: int | None) -> list[Operation]:
        """What runs for one image."""

    def choice(self, shapes: Shapes) -> Choice:
        rank = shapes.get(self.name, {}).get(self.shape_key)
        error = 0.0 if rank is None else float(self.solution[rank])
        return Choice.of(self.parameters_at(rank), error, shapes, self.operations_at(rank))

    def choices(self, multiple: int, costs: Sequence[Cost] = COUNTED) -> list[Choice]:
        ranks = self.ranks(multiple)
        return [*(self.choice({self.name: {self.shape_key: rank}}) for rank in ranks), self.choice({})]

    def spanning(self, multiple: int) -> list[Operation]:
        ranks = self.ranks(multiple)
        return [one for rank in (*ranks[:1], *ranks[-1:], None) for one in self.operations_at(rank)]

    def smallest(self, multiple: int) -> int:
        return min(self.parameters_at(rank) for rank in [*self.ranks(multiple)[:1], None])
