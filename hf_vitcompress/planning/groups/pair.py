"""Layers with features between them: fewer features, and what is left of the layers maybe factored as well.

Each term of the predicted error is one thing that is lost: the features that are gone (`pruning`), and what the limited
rank of each layer loses of those that stay. The planner sees all combinations; pruned and factored together often beat
either alone. See `features` for what makes features and what reads them.
"""

import math
from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor

from ...architectures.layers import LayerInfo, head_dim
from ...architectures.values import pads_values
from ...errors import ConfigError
from ...model.assembly import Shapes
from ...profiling.operations import Activation, Operation
from ..closed_form import error_curve, roots, solve
from ..features import Features, features_between
from ..layer_moments import as_matrix
from ..pareto import rank_options, ranks_below, undominated
from ..pruning import cut_errors, fisher_order, magnitude_order, repaired_errors, value_rotation
from ..selection import learned_scores
from .base import COUNTED, Choice, Cost, LayerGroup, RegressionTarget, factored, refuse, shifted
from .pair_solution import PairSolution
from .removal import check_removed, is_removed, removed_choice, removed_shapes, removed_tensors

FACTORED_WIDTHS = 8
"""Widths at which the planner also sees the layers factored, evenly spaced up to the full one."""

Ranks = tuple[int | None, ...]
"""Of each layer, the reader last; `None` is dense."""


class PairGroup(LayerGroup):
    """fc1 and fc2, or gate, fc1 and fc2, or v and o: the last reads the features that the others make."""

    @property
    def role(self) -> str:  # type: ignore[override]
        return "vo" if self.layers[0].role == "v" else "mlp"

    @property
    def name(self) -> str:
        return self.layers[0].parent if self.role == "mlp" else self.layers[0].name

    @property
    def consumer(self) -> LayerInfo:
        return self.layers[-1]

    @property
    def width(self) -> int:
        """Features between the layers."""
        return self.consumer.in_features

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
        return width * self._biased

    @cached_property
    def _biased(self) -> int:
        """How many of them have a bias."""
        return sum(linear.bias is not None for linear in self.linears[:-1])

    @cached_property
    def _sides(self) -> list[int]:
        """Of each layer, the features that it does not share with the others."""
        return [*(layer.in_features for layer in self.layers[:-1]), self.consumer.out_features]

    @cached_property
    def _keys(self) -> list[tuple[LayerInfo, str]]:
        """Each layer and what its shape calls the features."""
        return [*((layer, "out_features") for layer in self.layers[:-1]), (self.consumer, "in_features")]

    @property
    def work(self) -> float:
        return super().work + 4.0 * self.width**3

    def _features(self, rotation: Tensor | None = None) -> Features:
        found = features_between(self.moments)
        return found if rotation is None else found.rotated(rotation)

    def solve(self) -> PairSolution:
        rotation, features = None, self._features()
        if self.role == "vo":
            rotation = value_rotation(features.consumer, features.output_side, features.covariance, self.heads)
            features = features.rotated(rotation)
            order = torch.arange(self.width).reshape(self.heads, -1).T.flatten()  # every head's best, then the next
        else:
            order = self._order(features)
        curve = repaired_errors if self.config.repair else cut_errors
        pruned = curve(features.consumer, features.output_side, features.covariance, order.to(features.consumer.device))
        solution = PairSolution(order.cpu(), rotation, self.energy_scale(pruned), {})
        self.solution = solution
        if self.may_factor:
            for width in self._factored_widths():
                self._factored_errors(width, features)
        return solution

    def _order(self, features: Features) -> Tensor:
        if self.config.criterion == "magnitude":
            return magnitude_order([producer.weight for producer in features.producers], features.consumer)
        if self.config.criterion == "gates":
            scores = learned_scores(self.given.importance, self.consumer.name, self.width)
            return scores.argsort(descending=True, stable=True)
        return fisher_order(features.consumer, features.output_side, features.covariance)

    def step(self, multiple: int) -> int:
        """The smallest step of widths that is a multiple of `multiple` and leaves all heads alike."""
        return math.lcm(multiple, self.heads)

    def _widths(self, multiple: int) -> list[int]:
        step = self.step(multiple)
        return [*range(step, self.width, step), self.width]

    def _factored_widths(self) -> list[int]:
        """Those at which the planner sees the layers factored, too."""
        smallest = self.step(self.config.rank_multiple)
        return self._widths(smallest * max(1, round(self.width / FACTORED_WIDTHS / smallest)))

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
        damping, inputs = self.config.damping, {}
        for own in self.moments[:-1]:
            # What makes the features reads one tensor; only a bias makes a difference.
            if own.centered not in inputs:
                inputs[own.centered] = roots(own.input_side, damping)
        producers = [inputs[own.centered] for own in self.moments[:-1]]
        return [*producers, roots(as_matrix(self.moments[-1].output_side), damping)]

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

    def _choice(self, width: int, ranks: Ranks, error: float, shapes: Shapes) -> Choice:
        weights = [width * o if r is None else r * (width + o) for o, r in zip(self._sides, ranks, strict=True)]
        return Choice.of(sum(weights) + self._biases(width), error, shapes, self._operations(width, ranks))

    def _operations(self, width: int, ranks: Ranks) -> Iterator[Operation]:
        for layer, rank in zip(self.layers, ranks, strict=True):
            reads = layer is self.consumer
            inputs, outputs = (width, layer.out_features) if reads else (layer.in_features, width)
            yield from self.products_of(layer, inputs, outputs, rank)
        if self.role == "mlp":
            yield Activation(self.positions_of(self.consumer), width)
        else:
            size = self.width // self.heads
            pads = pads_values(self.model, self.layers[0].parent)
            yield self.attention_of(self.heads, size, size if pads else width // self.heads)

    @property
    def removal(self) -> Shapes | None:
        """Of values, with their queries and keys; in attention of timm its own forward pass has to run."""
        if self.role == "vo" and pads_values(self.model, self.layers[0].parent):
            return None
        return removed_shapes(self.layers)

    def choice(self, shapes: Shapes) -> Choice:
        if is_removed(shapes):
            return removed_choice(self, float(self.solution.pruned[0]))
        width, ranks = self._read(shapes)
        error = self._pruned_error(width)
        for curve, rank in zip(self._factored_errors(width) if any(ranks) else (), ranks, strict=False):
            error += 0.0 if rank is None else float(curve[min(rank, len(curve) - 1)])
        return self._choice(width, ranks, error, shapes)

    def choices(self, multiple: int, costs: Sequence[Cost] = COUNTED) -> list[Choice]:
        """Those that no other beats in error and one of the costs; and the dense one."""
        choices = []
        for width in self._widths(multiple):
            curves, error = self.solution.factored.get(width), self._pruned_error(width)
            for _, own, ranks in rank_options(self._sides, width, curves, multiple, error):
                if shapes := self._shapes(width, ranks):
                    choices.append(self._choice(width, ranks, own, shapes))
        best: set[int] = set()
        for cost in costs:
            best |= set(undominated([cost(one) for one in choices], [one.error for one in choices]))
        return [
            *sorted((choices[i] for i in sorted(best)), key=lambda one: (one.parameters, one.macs)),
            self.choice({}),
        ]

    def spanning(self, multiple: int) -> list[Operation]:
        found: list[Operation] = []
        for width in {min(self._widths(multiple)), self.width}:
            ranks = [ranks_below(side, width, multiple) for side in self._sides]
            found += self._operations(width, (None,) * len(ranks))
            if self.may_factor and all(ranks):
                found += self._operations(width, tuple(own[0] for own in ranks))
                found += self._operations(width, tuple(own[-1] for own in ranks))
        return found

    def smallest(self, multiple: int) -> int:
        factored = self._factored_widths() if self.may_factor else []
        return min(
            self._biases(width)
            + sum(_fewest(side, width, multiple if width in factored else None) for side in self._sides)
            for width in self._widths(multiple)
        )

    def check(self, shapes: Shapes) -> None:
        if check_removed(self, shapes):
            return
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
        if is_removed(shapes):
            return removed_tensors(self)
        width, ranks = self._read(shapes)
        whole = self._features(self._rotation(width))
        small = self._kept(width, whole)
        weights = [*(producer.weight for producer in small.producers), small.consumer]
        biases = [*(producer.bias for producer in small.producers), self.linears[-1].bias]
        carried = small.carried if any(ranks) else [None] * len(ranks)
        mean = self.moments[0].mean
        tensors: dict[str, Tensor] = {}
        for i, (layer, rank) in enumerate(zip(self.layers, ranks, strict=True)):
            if layer.name not in shapes:
                continue
            reads, weight, bias, wide = layer is self.consumer, weights[i], biases[i], carried[i]
            wanted = whole.consumer @ whole.mean if reads else weight @ mean
            factors = None
            if rank is not None and wide is not None:
                up, down, _ = solve(weight, self._roots[i], wide, on_output=reads)
                factors = up[:, :rank], down[:rank]
                weight = factors[0] @ factors[1]
            if self.moments[i].centered:
                bias = shifted(bias, wanted - weight @ (small.mean if reads else mean))
            if factors is not None:
                tensors |= factored(layer.name, *factors, bias)
            else:
                tensors[f"{layer.name}.weight"] = weight
                if bias is not None:
                    tensors[f"{layer.name}.bias"] = bias
        return tensors

    def regression_targets(self, shapes: Shapes) -> list[RegressionTarget]:
        if not shapes or is_removed(shapes):
            return []
        width, ranks = self._read(shapes)
        small, found = self._kept(width), []
        for own, producer, rank in zip(self.moments, small.producers, ranks, strict=False):
            if own.layer.name in shapes:
                weight, on_output = producer.weight, width <= own.layer.in_features
                metric = producer.metric if on_output else producer.carried
                found.append(
                    RegressionTarget((own.layer,), weight, weight, metric, on_output, producer.bias, own.centered, rank)
                )
        if self.consumer.name in shapes:
            own, side = self.moments[-1], small.output_side
            found.append(
                RegressionTarget(
                    (self.consumer,), own.weight, small.consumer, side, True, own.bias, own.centered, ranks[-1]
                )
            )
        return found

    def describe(self, shapes: Shapes) -> str:
        if is_removed(shapes):
            return "removed"
        width, ranks = self._read(shapes)
        words = [] if width == self.width else [f"{width // self.heads} a head" if self.heads > 1 else f"width {width}"]
        if any(ranks):
            words.append("ranks " + ", ".join("dense" if rank is None else str(rank) for rank in ranks))
        return "; ".join(words) or "dense"


def _fewest(side: int, width: int, multiple: int | None) -> int:
    """Weight entries of a layer between `side` and `width` features, dense or at its lowest rank.

    Args:
        multiple: of which ranks are multiples; `None` where the layer may not be factored.
    """
    ranks = [] if multiple is None else ranks_below(side, width, multiple)[:1]
    return min([side * width, *(rank * (side + width) for rank in ranks)])
