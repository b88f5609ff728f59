"""One layer, factored by itself."""

from torch import Tensor

from ...model.assembly import Shapes
from ...profiling.operations import Operation
from ..closed_form import Factorization, error_curve, factorize, roots
from ..pareto import ranks_below
from .base import RegressionTarget, factored, refuse
from .ranked import RankedGroup


class SingleLayerGroup(RankedGroup):
    """One layer, factored."""

    shape_key = "rank"

    @property
    def role(self) -> str:  # type: ignore[override]
        return self.layers[0].role

    def solve(self) -> Tensor:
        """Errors (n + 1,)."""
        narrow, wide = self.moments[0].sides
        return self.energy_scale(error_curve(roots(narrow, self.config.damping)[0], wide))

    def parameters_at(self, rank: int | None) -> int:
        layer = self.layers[0]
        return layer.parameters if rank is None else rank * layer.parameters_per_rank

    def operations_at(self, rank: int | None) -> list[Operation]:
        layer = self.layers[0]
        return self.products_of(layer, layer.in_features, layer.out_features, rank)

    def ranks(self, multiple: int) -> range:
        return ranks_below(self.layers[0].in_features, self.layers[0].out_features, multiple)

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
