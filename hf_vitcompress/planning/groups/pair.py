"""Layers with features between them: fewer features, and what is left of the layers maybe factored as well.

Each term of the predicted error is one thing that is lost: the features that are gone (`pruning`), and what the limited
rank of each layer loses of those that stay. The planner sees all combinations; pruned and factored together often beat
either alone. See `features` for what makes features and what reads them.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ...architectures.layers import LayerInfo, head_dim
from ...errors import ConfigError
from ...model.assembly import Shapes
from ..closed_form import error_curve, input_metric, is_centered, roots, solve
from ..features import Features, features_between, output_side
from ..pareto import rank_options, undominated
from ..pruning import cut_errors, fisher_order, magnitude_order, repaired_errors, value_rotation
from ..selection import learned_scores
from .base import Choice, Part, Target, factored, refuse, shifted

FACTORED_WIDTHS = 8
"""Widths at which the planner also sees the layers factored, evenly spaced up to the full one."""

Ranks = tuple[int | None, ...]
"""Of each layer, the reader last; `None` is dense."""


@dataclass
class PairSolution:
    """Attributes:
    order: (m,) features, the one to keep longest first.
    rotation: (m, m) of the features before they are ordered, or `None`.
    pruned: (m + 1,) errors with the first 0 … m features.
    factored: by width, the errors (n + 1,) of each layer at every rank.
    """

    order: Tensor
    rotation: Tensor | None
    pruned: Tensor
    factored: dict[int, tuple[Tensor, ...]]


class PairPart(Part):
    """fc1 and fc2, or gate, fc1 and fc2, or v and o: the last reads the features that the others make."""

    @property
    def role(self) -> str:  # type: ignore[override]
        return "vo" if self.layers[0].role == "v" else "mlp"

    @property
    def name(self) -> str:
        return self.layers[0].parent if self.role == "mlp" else self.layers[0].name

    @property
    def reader(self) -> LayerInfo:
        return self.layers[-1]

    @property
    def width(self) -> int:
        """Features between the layers."""
        return self.reader.in_features

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
        """Of the layers that make the features, at that width."""
        return width * sum(linear.bias is not None for linear in self.linears[:-1])

    @property
    def _sides(self) -> list[int]:
        """Of each layer, the features that it does not share with the others."""
        return [*(layer.in_features for layer in self.layers[:-1]), self.reader.out_features]

    @property
    def _keys(self) -> list[tuple[LayerInfo, str]]:
        """Each layer and what its shape calls the features."""
        return [*((layer, "out_features") for layer in self.layers[:-1]), (self.reader, "in_features")]

    @property
    def work(self) -> float:
        return super().work + 4.0 * self.width**3

    def _features(self, rotation: Tensor | None = None) -> Features:
        found = features_between(self.layers, self.linears, self.statistics, self.config)
        return found if rotation is None else found.rotated(rotation)

    def solve(self) -> PairSolution:
        rotation, features = None, self._features()
        if self.role == "vo":
            rotation = value_rotation(features.reader, features.output_side, features.covariance, self.heads)
            features = features.rotated(rotation)
            order = torch.arange(self.width).reshape(self.heads, -1).T.flatten()  # every head's best, then the next
        else:
            order = self._order(features)
        curve = repaired_errors if self.config.repair else cut_errors
        pruned = curve(features.reader, features.output_side, features.covariance, order.to(features.reader.device))
        solution = PairSolution(order.cpu(), rotation, self.energy_scale(pruned), {})
        self.solution = solution
        if self.may_factor:
            smallest = self.step(self.config.rank_multiple)
            step = smallest * max(1, round(self.width / FACTORED_WIDTHS / smallest))
            for width in [*range(step, self.width, step), self.width]:
                self._factored_errors(width, features)
        return solution

    def _order(self, features: Features) -> Tensor:
        if self.config.criterion == "magnitude":
            return magnitude_order([maker.weight for maker in features.makers], features.reader)
        if self.config.criterion == "gates":
            scores = learned_scores(self.importance, self.reader.name, self.width)
            return scores.argsort(descending=True, stable=True)
        return fisher_order(features.reader, features.output_side, features.covariance)

    def step(self, multiple: int) -> int:
        """The smallest step of widths that is a multiple of `multiple` and leaves all heads alike."""
        return math.lcm(multiple, self.heads)

    def kept(self, width: int) -> Tensor:
        """Which (rotated) features remain, in the order in which the layers have them."""
        return self.solution.order[:width].sort().values.to(self.model.device)

    def _kept(self, width: int, features: Features | None = None) -> Features:
        """What the layers are at that width, before they are factored."""
        features = features or self._features(self._rotation(width))
        return features.kept(self.kept(width), self.config.repair)

    def _factored_errors(self, width: int, features: Features | None = None) -> tuple[Tensor, ...]:
        """Error curves of each layer's ranks at that width."""
        known = self.solution.factored
        if width not in known:
            carried = self._kept(width, features).carried
            known[width] = tuple(
                self.energy_scale(error_curve(root, wide)).cpu()
                for (root, _), wide in zip(self._roots, carried, strict=True)
            )
        return known[width]

    @cached_property
    def _roots(self) -> list[tuple[Tensor, Tensor]]:
        """Of each layer's metric on its own side, which no width and no rotation changes."""
        config, inputs = self.config, {}
        for layer, linear in zip(self.layers[:-1], self.linears[:-1], strict=True):
            # What makes the features reads one tensor; only a bias makes a difference.
            if (centered := is_centered(linear, config)) not in inputs:
                inputs[centered] = roots(input_metric(self.statistics, layer, linear, config), config.damping)
        makers = [inputs[is_centered(linear, config)] for linear in self.linears[:-1]]
        return [*makers, roots(output_side(self.reader, self.linears[-1], self.statistics, config), config.damping)]

    def _rotation(self, width: int) -> Tensor | None:
        """None where all features stay: then the layers are as they were."""
        rotation = self.solution.rotation
        return None if rotation is None or width == self.width else rotation.to(self.model.device)

    def _read(self, shapes: Shapes) -> tuple[int, Ranks]:
        own = [shapes.get(layer.name, {}) for layer in self.layers]
        return own[-1].get("in_features", self.width), tuple(shape.get("rank") for shape in own)

    def _shapes(self, width: int, ranks: Ranks) -> Shapes:
        shapes: Shapes = {}
        for (layer, key), rank in zip(self._keys, ranks, strict=True):
            shape = {} if width == self.width else {key: width}
            if rank is not None:
                shape["rank"] = rank
            if shape:
                shapes[layer.name] = shape
        return shapes

    def _pruned_error(self, width: int) -> float:
        return float(self.solution.pruned[width]) if width < self.width else 0.0

    def _choice(self, weights: int, error: float, width: int, shapes: Shapes) -> Choice:
        attention = self.products * width if self.role == "vo" else 0
        return Choice(weights + self._biases(width), weights * self.positions + attention, error, shapes)

    def choice(self, shapes: Shapes) -> Choice:
        width, ranks = self._read(shapes)
        weights = sum(width * o if r is None else r * (width + o) for o, r in zip(self._sides, ranks, strict=True))
        error = self._pruned_error(width)
        for curve, rank in zip(self._factored_errors(width) if any(ranks) else (), ranks, strict=False):
            error += 0.0 if rank is None else float(curve[min(rank, len(curve) - 1)])
        return self._choice(weights, error, width, shapes)

    def choices(self, multiple: int) -> list[Choice]:
        """Those that no other beats in error and parameters, or in error and multiplications; and the dense one."""
        step, choices = self.step(multiple), []
        for width in [*range(step, self.width, step), self.width]:
            curves, error = self.solution.factored.get(width), self._pruned_error(width)
            for weights, own, ranks in rank_options(self._sides, width, curves, multiple, error):
                if shapes := self._shapes(width, ranks):
                    choices.append(self._choice(weights, own, width, shapes))
        best: set[int] = set()
        for unit in ("params", "macs"):
            best |= set(undominated([one.cost(unit) for one in choices], [one.error for one in choices]))
        return [
            *sorted((choices[i] for i in sorted(best)), key=lambda one: (one.parameters, one.macs)),
            self.choice({}),
        ]

    def check(self, shapes: Shapes) -> None:
        for layer, key in self._keys:
            refuse(layer.name, shapes.get(layer.name, {}), {"rank": layer.full_rank, key: self.width})
        widths = [shapes.get(layer.name, {}).get(key, self.width) for layer, key in self._keys]
        if len(set(widths)) > 1 or widths[0] % self.heads:
            given = [f"{layer.name!r} {width} {key}" for (layer, key), width in zip(self._keys, widths, strict=True)]
            alike = f", a multiple of the {self.heads} heads" if self.heads > 1 else ""
            raise ConfigError(f"The plan gives {' and '.join(given)}; they must be the same{alike}.")

    def tensors(self, shapes: Shapes) -> dict[str, Tensor]:
        if not shapes:
            return {}
        width, ranks = self._read(shapes)
        whole = self._features(self._rotation(width))
        small = self._kept(width, whole)
        weights = [*(maker.weight for maker in small.makers), small.reader]
        biases = [*(maker.bias for maker in small.makers), self.linears[-1].bias]
        carried = small.carried if any(ranks) else [None] * len(ranks)
        mean = self.statistics.inputs[self.layers[0].input_name].mean
        tensors: dict[str, Tensor] = {}
        for i, (layer, rank) in enumerate(zip(self.layers, ranks, strict=True)):
            if layer.name not in shapes:
                continue
            reads, weight, bias, wide = layer is self.reader, weights[i], biases[i], carried[i]
            wanted = whole.reader @ whole.mean if reads else weight @ mean
            factors = None
            if rank is not None and wide is not None:
                up, down, _ = solve(weight, self._roots[i], wide, on_output=reads)
                factors = up[:, :rank], down[:rank]
                weight = factors[0] @ factors[1]
            if is_centered(self.linears[i], self.config):
                bias = shifted(bias, wanted - weight @ (small.mean if reads else mean))
            if factors is not None:
                tensors |= factored(layer.name, *factors, bias)
            else:
                tensors[f"{layer.name}.weight"] = weight
                if bias is not None:
                    tensors[f"{layer.name}.bias"] = bias
        return tensors

    def targets(self, shapes: Shapes) -> list[Target]:
        if not shapes:
            return []
        width, ranks = self._read(shapes)
        small, targets = self._kept(width), []
        for layer, linear, maker, rank in zip(self.layers, self.linears, small.makers, ranks, strict=False):
            if layer.name in shapes:
                weight, on_output = maker.weight, width <= layer.in_features
                metric = maker.metric if on_output else maker.carried
                centered = is_centered(linear, self.config)
                targets.append(Target((layer,), weight, weight, metric, on_output, maker.bias, centered, rank))
        if self.reader.name in shapes:
            linear = self.linears[-1]
            bias = None if linear.bias is None else linear.bias.detach().double()
            dense, centered = linear.weight.detach().double(), is_centered(linear, self.config)
            side = small.output_side
            targets.append(Target((self.reader,), dense, small.reader, side, True, bias, centered, ranks[-1]))
        return targets

    def describe(self, shapes: Shapes) -> str:
        width, ranks = self._read(shapes)
        words = [] if width == self.width else [f"{width // self.heads} a head" if self.heads > 1 else f"width {width}"]
        if any(ranks):
            words.append("ranks " + ", ".join("dense" if rank is None else str(rank) for rank in ranks))
        return "; ".join(words) or "dense"
