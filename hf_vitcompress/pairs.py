"""Two layers with features between them: fewer features, and what is left of both layers maybe factored as well.

Three terms make the predicted error: of the features that are gone (`pruning`), and of each layer's limited rank given
the features that stay. The planner sees all combinations; pruned and factored together often beat either alone.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .errors import CalibrationError, ConfigError
from .factorization import (
    as_matrix,
    error_curve,
    gradient_of,
    input_metric,
    is_centered,
    output_metric,
    roots,
    solve,
)
from .families import head_dim
from .heads import learned_scores
from .parts import Choice, Part, Shapes, Target, factored, ranks_below, refuse, shifted
from .pruning import cut_errors, fisher_order, magnitude_order, repaired, repaired_errors, value_rotation

FACTORED_WIDTHS = 8
"""Widths at which the planner also sees both layers factored, evenly spaced up to the full one."""


@dataclass
class PairSolution:
    """Attributes:
    order: (m,) features, the one to keep longest first.
    rotation: (m, m) of the features before they are ordered, or `None`.
    pruned: (m + 1,) errors with the first 0 … m features.
    factored: by width, the errors (n + 1,) of the first and the second layer at every rank.
    """

    order: Tensor
    rotation: Tensor | None
    pruned: Tensor
    factored: dict[int, tuple[Tensor, Tensor]]


@dataclass
class _Problem:
    """Both layers in the coordinates of the rotated features, float64."""

    first: Tensor
    first_bias: Tensor | None
    second: Tensor
    output_side: Tensor
    covariance: Tensor
    mean: Tensor
    gradient: Tensor | None


class PairPart(Part):
    """fc1 and fc2, or v and o."""

    @property
    def role(self) -> str:  # type: ignore[override]
        return "vo" if self.layers[0].role == "v" else "mlp"

    @property
    def name(self) -> str:
        return self.layers[0].parent if self.role == "mlp" else self.layers[0].name

    @property
    def width(self) -> int:
        """Features between the layers."""
        return self.layers[0].out_features

    @cached_property
    def heads(self) -> int:
        """Groups that keep the same number of features: values pass through attention head by head."""
        return self.width // head_dim(self.model, self.layers[0].parent) if self.role == "vo" else 1

    @property
    def may_factor(self) -> bool:
        """Whether the layers may be factored, too."""
        return self.role == "vo" or self.config.mlp == "auto"

    @property
    def dense_parameters(self) -> int:
        return super().dense_parameters + self._biases(self.width)

    def _biases(self, width: int) -> int:
        """Of the first layer, at that width."""
        return 0 if self.linears[0].bias is None else width

    @property
    def work(self) -> float:
        return super().work + 4.0 * self.width**3

    def _problem(self, rotation: Tensor | None) -> _Problem:
        (first, second), (linear, last) = self.layers, self.linears
        config = self.config
        gradient = gradient_of(first, self.statistics, config) if config.needs_gradients else None
        side = None if gradient is None else as_matrix(output_metric(config.metric, gradient, first, linear.weight))
        if side is not None and len(side) != first.out_features:
            raise CalibrationError(
                f"The statistics hold too little about {first.name!r} to prune its outputs; calibrate again with the "
                "mlp and attention settings you plan with."
            )
        problem = _Problem(
            first=linear.weight.detach().double(),
            first_bias=None if linear.bias is None else linear.bias.detach().double(),
            second=last.weight.detach().double(),
            output_side=self._output_side,
            covariance=as_matrix(input_metric(self.statistics, second, last, config)),
            mean=self.statistics.inputs[second.input_name].mean,
            gradient=side,
        )
        if rotation is None:
            return problem
        inverse = torch.linalg.inv(rotation)
        problem.first = rotation @ problem.first
        problem.first_bias = None if problem.first_bias is None else rotation @ problem.first_bias
        problem.second = problem.second @ inverse
        problem.covariance = rotation @ problem.covariance @ rotation.T
        problem.mean = rotation @ problem.mean
        problem.gradient = None if problem.gradient is None else inverse.T @ problem.gradient @ inverse
        return problem

    def solve(self) -> PairSolution:
        rotation, problem = None, self._problem(None)
        if self.role == "vo":
            rotation = value_rotation(problem.second, problem.output_side, problem.covariance, self.heads)
            problem = self._problem(rotation)
            order = torch.arange(self.width).reshape(self.heads, -1).T.flatten()  # every head's best, then the next
        else:
            order = self._order(problem)
        curve = repaired_errors if self.config.repair else cut_errors
        pruned = curve(problem.second, problem.output_side, problem.covariance, order.to(problem.second.device))
        solution = PairSolution(order.cpu(), rotation, self.energy_scale(pruned), {})
        self.solution = solution
        if self.may_factor:
            smallest = self.step(self.config.rank_multiple)
            step = smallest * max(1, round(self.width / FACTORED_WIDTHS / smallest))
            for width in [*range(step, self.width, step), self.width]:
                self._factored_errors(width, problem)
        return solution

    def _order(self, problem: _Problem) -> Tensor:
        if self.config.selector == "magnitude":
            return magnitude_order(problem.first, problem.second)
        if self.config.selector == "gates":
            scores = learned_scores(self.importance, self.layers[1].name, self.width)
            return scores.argsort(descending=True, stable=True)
        return fisher_order(problem.second, problem.output_side, problem.covariance)

    def step(self, multiple: int) -> int:
        """The smallest step of widths that is a multiple of `multiple` and leaves all heads alike."""
        return math.lcm(multiple, self.heads)

    def kept(self, width: int) -> Tensor:
        """Which (rotated) features remain, in the order in which the layers have them."""
        return self.solution.order[:width].sort().values.to(self.model.device)

    def _second_weight(self, width: int, problem: _Problem) -> Tensor:
        kept = self.kept(width)
        if width == self.width or not self.config.repair:
            return problem.second[:, kept]
        return repaired(problem.second, problem.covariance, kept)

    def _carried(self, width: int, problem: _Problem) -> tuple[Tensor, Tensor]:
        """Of both layers at that width, the metric carried through the weight to the outer side."""
        kept = self.kept(width)
        first, second = problem.first[kept], self._second_weight(width, problem)
        behind = first if problem.gradient is None else problem.gradient[kept][:, kept] @ first
        return first.T @ behind, second @ problem.covariance[kept][:, kept] @ second.T

    def _factored_errors(self, width: int, problem: _Problem | None = None) -> tuple[Tensor, Tensor]:
        """Error curves of both layers' ranks at that width."""
        known = self.solution.factored
        if width not in known:
            problem = problem or self._problem(self._rotation(width))
            carried = self._carried(width, problem)
            first, second = (
                self.energy_scale(error_curve(root, wide)).cpu()
                for (root, _), wide in zip(self._roots, carried, strict=True)
            )
            known[width] = (first, second)
        return known[width]

    @property
    def _output_side(self) -> Tensor:
        second, config = self.layers[1], self.config
        gradient = gradient_of(second, self.statistics, config)
        return as_matrix(output_metric(config.metric, gradient, second, self.linears[1].weight).double())

    @cached_property
    def _roots(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Of the metrics on the outer sides, which no width and no rotation changes."""
        input_side = input_metric(self.statistics, self.layers[0], self.linears[0], self.config)
        return roots(input_side, self.config.damping), roots(self._output_side, self.config.damping)

    def _rotation(self, width: int) -> Tensor | None:
        """None where all features stay: then the layers are as they were."""
        rotation = self.solution.rotation
        return None if rotation is None or width == self.width else rotation.to(self.model.device)

    def _read(self, shapes: Shapes) -> tuple[int, int | None, int | None]:
        """Width and both ranks."""
        first, second = (shapes.get(layer.name, {}) for layer in self.layers)
        return first.get("out_features", self.width), first.get("rank"), second.get("rank")

    def _shapes(self, width: int, first: int | None, second: int | None) -> Shapes:
        shapes: Shapes = {}
        for layer, key, rank in zip(self.layers, ("out_features", "in_features"), (first, second), strict=True):
            shape = {} if width == self.width else {key: width}
            if rank is not None:
                shape["rank"] = rank
            if shape:
                shapes[layer.name] = shape
        return shapes

    def _choice(self, weights: int, error: float, width: int, shapes: Shapes) -> Choice:
        attention = self.positions**2 * width if self.role == "vo" else 0
        return Choice(weights + self._biases(width), weights * self.positions + attention, error, shapes)

    def choice(self, shapes: Shapes) -> Choice:
        width, *ranks = self._read(shapes)
        outer = (self.layers[0].in_features, self.layers[1].out_features)
        weights = sum(width * o if r is None else r * (width + o) for o, r in zip(outer, ranks, strict=True))
        error = float(self.solution.pruned[width]) if width < self.width else 0.0
        for curve, rank in zip(self._factored_errors(width) if any(ranks) else (), ranks, strict=False):
            error += 0.0 if rank is None else float(curve[min(rank, len(curve) - 1)])
        return self._choice(weights, error, width, shapes)

    def choices(self, multiple: int) -> list[Choice]:
        """Those that no other beats in error and parameters, or in error and multiplications; and the dense one."""
        step = self.step(multiple)
        found: list[tuple[int, float, tuple[int, int | None, int | None]]] = []
        outer = (self.layers[0].in_features, self.layers[1].out_features)
        for width in [*range(step, self.width, step), self.width]:
            error = float(self.solution.pruned[width]) if width < self.width else 0.0
            found.append((width * sum(outer), error, (width, None, None)))
        for width, curves in self.solution.factored.items():
            if width % step and width < self.width:
                continue
            error = float(self.solution.pruned[width]) if width < self.width else 0.0
            options = []
            for side, curve in zip(outer, curves, strict=True):
                ranks = list(ranks_below(side, width, multiple))
                errors = curve[ranks].tolist()
                options.append(
                    [(r * (side + width), e, r) for r, e in zip(ranks, errors, strict=True)]
                    + [(side * width, 0.0, None)]
                )
            found += [(a + b, error + e + f, (width, r, s)) for a, e, r in options[0] for b, f, s in options[1]]
        choices = [self._choice(w, e, width, self._shapes(width, *ranks)) for w, e, (width, *ranks) in found]
        best: dict[int, Choice] = {}
        for unit in ("params", "macs"):
            least = math.inf
            for i in sorted(range(len(choices)), key=lambda i: (choices[i].cost(unit), choices[i].error)):
                if choices[i].shapes and choices[i].error < least:
                    best[i], least = choices[i], choices[i].error
        return [*sorted(best.values(), key=lambda one: (one.parameters, one.macs)), self.choice({})]

    def check(self, shapes: Shapes) -> None:
        (first, second), keys = self.layers, ("out_features", "in_features")
        for layer, key in zip(self.layers, keys, strict=True):
            refuse(layer.name, shapes.get(layer.name, {}), {"rank": layer.full_rank, key: self.width})
        widths = [shapes.get(layer.name, {}).get(key, self.width) for layer, key in zip(self.layers, keys, strict=True)]
        if widths[0] != widths[1] or widths[0] % self.heads:
            alike = f", a multiple of the {self.heads} heads" if self.heads > 1 else ""
            raise ConfigError(
                f"The plan gives {first.name!r} {widths[0]} out_features and {second.name!r} {widths[1]} in_features; "
                f"they must be the same{alike}."
            )

    def tensors(self, shapes: Shapes) -> dict[str, Tensor]:
        if not shapes:
            return {}
        config = self.config
        width, first_rank, second_rank = self._read(shapes)
        problem, kept = self._problem(self._rotation(width)), self.kept(width)
        weights = problem.first[kept], self._second_weight(width, problem)
        biases = None if problem.first_bias is None else problem.first_bias[kept], self.linears[1].bias
        means = self.statistics.inputs[self.layers[0].input_name].mean, problem.mean[kept]
        wanted = weights[0] @ means[0], problem.second @ problem.mean
        carried = self._carried(width, problem) if first_rank or second_rank else (None, None)
        tensors: dict[str, Tensor] = {}
        for i, (layer, rank) in enumerate(zip(self.layers, (first_rank, second_rank), strict=True)):
            if layer.name not in shapes:
                continue
            weight, bias, wide = weights[i], biases[i], carried[i]
            factors = None
            if rank is not None and wide is not None:
                up, down, _ = solve(weight, self._roots[i], wide, on_output=i == 1)
                factors = up[:, :rank], down[:rank]
                weight = factors[0] @ factors[1]
            if is_centered(self.linears[i], config):
                bias = shifted(bias, wanted[i] - weight @ means[i])
            if factors is not None:
                tensors |= factored(layer.name, *factors, bias)
            else:
                tensors[f"{layer.name}.weight"] = weight
                if bias is not None:
                    tensors[f"{layer.name}.bias"] = bias
        return tensors

    def targets(self, shapes: Shapes) -> list[Target]:
        (first, second), (linear, last) = self.layers, self.linears
        width, first_rank, second_rank = self._read(shapes)
        problem, kept = self._problem(self._rotation(width)), self.kept(width)
        weight, targets = problem.first[kept], []
        if first.name in shapes:
            on_output = width <= first.in_features
            side = problem.gradient
            if side is None:
                side = torch.eye(self.width, dtype=weight.dtype, device=weight.device)
            metric = side[kept][:, kept] if on_output else self._carried(width, problem)[0]
            bias = None if problem.first_bias is None else problem.first_bias[kept]
            centered = is_centered(linear, self.config)
            targets.append(Target((first,), weight, weight, metric, on_output, bias, centered, first_rank))
        if second.name in shapes:
            bias = None if last.bias is None else last.bias.detach().double()
            dense, start = last.weight.detach().double(), self._second_weight(width, problem)
            centered = is_centered(last, self.config)
            targets.append(Target((second,), dense, start, problem.output_side, True, bias, centered, second_rank))
        return targets

    def describe(self, shapes: Shapes) -> str:
        width, *ranks = self._read(shapes)
        words = [] if width == self.width else [f"{width // self.heads} a head" if self.heads > 1 else f"width {width}"]
        if any(ranks):
            words.append("ranks " + ", ".join("dense" if rank is None else str(rank) for rank in ranks))
        return "; ".join(words) or "dense"
