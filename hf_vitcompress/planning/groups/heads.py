"""Whole attention heads, pruned."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...architectures.layers import head_dim
from ...errors import ConfigError
from ...model.assembly import Shapes
from ...profiling.operations import Operation
from ..layer_moments import as_matrix
from ..pruning import cut_errors, group_order, repaired, repaired_errors
from ..selection import learned_scores
from .base import COUNTED, Choice, Cost, LayerGroup, RegressionTarget, refuse, shifted
from .removal import check_removed, is_removed, removed_choice, removed_shapes, removed_tensors


class HeadsGroup(LayerGroup):
    """Whole heads, pruned: rows of q, k and v with columns of o, and o repaired."""

    role = "heads"

    @property
    def name(self) -> str:
        return self.layers[0].parent

    @property
    def size(self) -> int:
        """Features of one head."""
        return head_dim(self.model, self.name)

    @property
    def heads(self) -> int:
        return self.layers[0].out_features // self.size

    @property
    def dense_parameters(self) -> int:
        biases = [linear.bias for linear in self.linears[:-1]]
        return super().dense_parameters + sum(bias.numel() for bias in biases if bias is not None)

    def _output_problem(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weight of o, the metric of its output, the moment of its input."""
        own = self.moments[-1]
        return own.weight, as_matrix(own.output_side), as_matrix(own.input_side)

    def _features(self, head: int) -> Tensor:
        return torch.arange(head * self.size, (head + 1) * self.size, device=self.model.device)

    def solve(self) -> tuple[list[int], Tensor]:
        """Heads, the one to keep longest first, and errors (heads + 1,)."""
        problem = self._output_problem()
        groups = [self._features(head) for head in range(self.heads)]
        if self.config.criterion == "fisher":
            order = group_order(*problem, groups)
        else:
            order = self._scores().argsort(descending=True, stable=True).tolist()
        features = torch.cat([groups[head] for head in order])
        curve = repaired_errors if self.config.repair else cut_errors
        return order, self.energy_scale(curve(*problem, features)[:: self.size])

    def _scores(self) -> Tensor:
        """Importance of each head (heads,)."""
        if self.config.criterion == "gates":
            return learned_scores(self.given.importance, self.layers[-1].name, self.heads)
        norms = [linear.weight.detach().reshape(self.heads, -1).norm(dim=1) for linear in self.linears[:-1]]
        last = self.linears[-1].weight.detach().T.reshape(self.heads, -1).norm(dim=1)
        return torch.stack([*norms, last]).prod(0)

    @property
    def removal(self) -> Shapes:
        return removed_shapes(self.layers)

    def choice(self, shapes: Shapes) -> Choice:
        if is_removed(shapes):
            return removed_choice(self, float(self.solution[1][0]))
        width = shapes.get(self.layers[-1].name, {}).get("in_features", self.layers[-1].in_features)
        kept = width // self.size
        return Choice.of(self._parameters(kept), float(self.solution[1][kept]), shapes, self._operations(kept))

    def _operations(self, kept: int) -> list[Operation]:
        width = kept * self.size
        operations = [op for one in self.layers[:-1] for op in self.products_of(one, one.in_features, width, None)]
        operations += self.products_of(self.layers[-1], width, self.layers[-1].out_features, None)
        return [*operations, self.attention_of(kept, self.size, self.size)]

    def _parameters(self, kept: int) -> int:
        return self.dense_parameters * kept // self.heads

    def spanning(self, multiple: int) -> list[Operation]:
        return [*self._operations(1), *self._operations(self.heads)]

    def smallest(self, multiple: int) -> int:
        return self._parameters(1)

    def choices(self, multiple: int, costs: Sequence[Cost] = COUNTED) -> list[Choice]:
        return [self.choice(self._shapes(kept)) for kept in range(1, self.heads)] + [self.choice({})]

    def _shapes(self, kept: int) -> Shapes:
        width = kept * self.size
        return {
            **{layer.name: {"out_features": width} for layer in self.layers[:-1]},
            self.layers[-1].name: {"in_features": width},
        }

    def check(self, shapes: Shapes) -> None:
        if check_removed(self, shapes):
            return
        widths = set()
        for layer in self.layers:
            shape = shapes.get(layer.name, {})
            key = "in_features" if layer is self.layers[-1] else "out_features"
            refuse(layer.name, shape, {key: self.heads * self.size})
            widths.add(shape.get(key, self.heads * self.size))
        if len(widths) > 1 or widths.pop() % self.size:
            raise ConfigError(
                f"The plan prunes {self.name!r} unevenly: out_features of q, k and v and in_features of o must be the "
                f"same multiple of the head dimension {self.size}."
            )

    def tensors(self, shapes: Shapes) -> dict[str, Tensor]:
        if not shapes:
            return {}
        if is_removed(shapes):
            return removed_tensors(self)
        kept = shapes[self.layers[-1].name]["in_features"] // self.size
        features = torch.cat([self._features(head) for head in sorted(self.solution[0][:kept])])
        tensors = {}
        for layer, linear in zip(self.layers[:-1], self.linears[:-1], strict=True):
            tensors[f"{layer.name}.weight"] = linear.weight.detach()[features]
            if linear.bias is not None:
                tensors[f"{layer.name}.bias"] = linear.bias.detach()[features]
        weight, _, input_side = self._output_problem()
        own = self.moments[-1]
        solved = repaired(weight, input_side, features) if self.config.repair else weight[:, features]
        tensors[f"{own.layer.name}.weight"] = solved
        if own.linear.bias is not None:
            mean = own.mean
            lost = weight @ mean - solved @ mean[features] if own.centered else weight.new_zeros(())
            tensors[f"{own.layer.name}.bias"] = shifted(own.linear.bias, lost)
        return tensors

    def regression_targets(self, shapes: Shapes) -> list[RegressionTarget]:
        if not shapes or is_removed(shapes):
            return []
        found, tensors = [], self.tensors(shapes)
        for own in self.moments:
            start = tensors[f"{own.layer.name}.weight"].double()
            if own is self.moments[-1]:
                weight, bias = own.weight, own.bias
            else:
                weight = start
                bias = None if own.bias is None else tensors[f"{own.layer.name}.bias"].double()
            metric = weight.new_ones(len(start))  # no rank, so the metric does not matter
            found.append(RegressionTarget((own.layer,), weight, start, metric, True, bias, own.centered, None))
        return found

    def describe(self, shapes: Shapes) -> str:
        if not shapes:
            return "dense"
        if is_removed(shapes):
            return "removed"
        return f"{shapes[self.layers[-1].name]['in_features'] // self.size} of {self.heads} heads"
