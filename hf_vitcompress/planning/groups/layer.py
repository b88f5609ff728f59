"""One layer, factored by itself."""

from torch import Tensor

from ...model.assembly import Shapes
from ..closed_form import (
    Factorization,
    carried_gradient,
    error_curve,
    factorize,
    gradient_of,
    is_centered,
    output_metric,
    roots,
    sides,
)
from ..pareto import ranks_below
from .base import Choice, Part, Target, factored, refuse


class LayerPart(Part):
    """One layer, factored."""

    @property
    def role(self) -> str:  # type: ignore[override]
        return self.layers[0].role

    def solve(self) -> Tensor:
        """Errors (n + 1,)."""
        narrow, wide = sides(self.layers[0], self.linears[0], self.statistics, self.config)
        return self.energy_scale(error_curve(roots(narrow, self.config.damping)[0], wide))

    def choice(self, shapes: Shapes) -> Choice:
        layer = self.layers[0]
        rank = shapes.get(layer.name, {}).get("rank")
        parameters = layer.parameters if rank is None else rank * layer.parameters_per_rank
        error = 0.0 if rank is None else float(self.solution[rank])
        return Choice(parameters, parameters * self.positions, error, shapes)

    def choices(self, multiple: int) -> list[Choice]:
        layer = self.layers[0]
        ranks = ranks_below(layer.in_features, layer.out_features, multiple)
        return [self.choice({layer.name: {"rank": rank}}) for rank in ranks] + [self.choice({})]

    def check(self, shapes: Shapes) -> None:
        for name, shape in shapes.items():
            refuse(name, shape, {"rank": self.layers[0].full_rank})

    def factorization(self) -> Factorization:
        return factorize(self.layers[0], self.linears[0], self.statistics, self.config)

    def tensors(self, shapes: Shapes) -> dict[str, Tensor]:
        if not shapes:
            return {}
        layer, linear, rank = self.layers[0], self.linears[0], shapes[self.name]["rank"]
        solution = self.factorization()
        bias = solution.corrected_bias(linear.weight.detach(), linear.bias, rank)
        return factored(layer.name, solution.up[:, :rank], solution.down[:rank], bias)

    def targets(self, shapes: Shapes) -> list[Target]:
        if not shapes:
            return []
        layer, linear = self.layers[0], self.linears[0]
        weight = linear.weight.detach().double()
        gradient = gradient_of(layer, self.statistics, self.config)
        on_output = layer.out_features <= layer.in_features
        if on_output:
            metric = output_metric(self.config.metric, gradient, layer, weight)
        else:
            metric = carried_gradient(self.config.metric, gradient, weight)
        bias = None if linear.bias is None else linear.bias.detach().double()
        centered = is_centered(linear, self.config)
        return [Target((layer,), weight, weight, metric, on_output, bias, centered, shapes[layer.name]["rank"])]
