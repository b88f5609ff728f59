"""One layer, factored by itself."""

from collections.abc import Sequence

from torch import Tensor

from ...model.assembly import Shapes
from ...profiling.operations import Operation
from ..closed_form import Factorization, error_curve, factorize, roots
from ..pareto import ranks_below
from .base import COUNTED, Choice, Cost, LayerGroup, RegressionTarget, factored, refuse


class SingleLayerGroup(LayerGroup):
    """One layer, factored."""

    @property
    def role(self) -> str:  # type: ignore[override]
        return self.layers[0].role

    def solve(self) -> Tensor:
        """Errors (n + 1,)."""
        narrow, wide = self.moments[0].sides
        return self.energy_scale(error_curve(roots(narrow, self.config.damping)[0], wide))

    def _parameters(self, rank: int | None) -> int:
        layer = self.layers[0]
        return layer.parameters if rank is None else rank * layer.parameters_per_rank

    def choice(self, shapes: Shapes) -> Choice:
        rank = shapes.get(self.layers[0].name, {}).get("rank")
        parameters = self._parameters(rank)
        error = 0.0 if rank is None else float(self.solution[rank])
        return Choice(parameters, parameters * self.positions, error, shapes, tuple(self._operations(rank)))

    def _operations(self, rank: int | None) -> list[Operation]:
        layer = self.layers[0]
        return self.products_of(layer, layer.in_features, layer.out_features, rank)

    def _ranks(self, multiple: int) -> range:
        return ranks_below(self.layers[0].in_features, self.layers[0].out_features, multiple)

    def choices(self, multiple: int, costs: Sequence[Cost] = COUNTED) -> list[Choice]:
        name = self.layers[0].name
        return [self.choice({name: {"rank": rank}}) for rank in self._ranks(multiple)] + [self.choice({})]

    def spanning(self, multiple: int) -> list[Operation]:
        ranks = self._ranks(multiple)
        return [one for rank in (*ranks[:1], *ranks[-1:], None) for one in self._operations(rank)]

    def smallest(self, multiple: int) -> int:
        return min(self._parameters(rank) for rank in [*self._ranks(multiple)[:1], None])

    def check(self, shapes: Shapes) -> None:
        for name, shape in shapes.items():
            refuse(name, shape, {"rank": self.layers[0].full_rank})

    def factorization(self) -> Factorization:
        return factorize(self.moments[0], self.config.damping)

    def tensors(self, shapes: Shapes) -> dict[str, Tensor]:
        if not shapes:
            return {}
        layer, linear, rank = self.layers[0], self.linears[0], shapes[self.name]["rank"]
        solution = self.factorization()
        bias = solution.corrected_bias(linear.weight.detach(), linear.bias, rank)
        return factored(layer.name, solution.up[:, :rank], solution.down[:rank], bias)

    def regression_targets(self, shapes: Shapes) -> list[RegressionTarget]:
        if not shapes:
            return []
        own = self.moments[0]
        metric = own.output_side if own.on_output else own.carried_output
        rank = shapes[own.layer.name]["rank"]
        return [
            RegressionTarget((own.layer,), own.weight, own.weight, metric, own.on_output, own.bias, own.centered, rank)
        ]
