"""Queries and keys on one shared projection."""

from functools import cached_property

import torch
from torch import Tensor

from ...architectures.values import pads_values
from ...errors import ConfigError
from ...model.assembly import Shapes
from ...profiling.operations import Operation, Product
from ..closed_form import balanced, error_curve, roots, solve
from ..pareto import ranks_below
from .base import Choice, RegressionTarget, refuse, shifted
from .ranked import RankedGroup
from .removal import check_removed, is_removed


class QueryKeyGroup(RankedGroup):
    """q and k, which meet only in their product, on one `down`.

    `[W_q; W_k]` is factored as one weight whose metric on the output side is block-diagonal. Both then see the same
    projection of the hidden states, and the errors of their product cancel where those of two projections add up.

    In some models k alone has no bias. The mean is then part of what `down` has to pass on, for both: softmax would
    not see the keys' mean error, but with rotary positions it differs from key to key.
    """

    role, shape_key = "qk", "qk_rank"

    @property
    def name(self) -> str:
        return self.layers[0].parent

    @property
    def module_names(self) -> tuple[str, ...]:
        return (self.name, *super().module_names)

    def _sides(self) -> tuple[Tensor, Tensor]:
        wide = sum((own.carried_output for own in self.moments[1:]), self.moments[0].carried_output)
        without = [own for own in self.moments if own.linear.bias is None]
        # Of k's moments the input is that of q's.
        return (without or self.moments)[0].input_side, wide

    @property
    def _centered(self) -> bool:
        """Whether both biases take up the mean of the error."""
        return all(own.centered for own in self.moments)

    def solve(self) -> Tensor:
        """Errors (n + 1,)."""
        narrow, wide = self._sides()
        return self.energy_scale(error_curve(roots(narrow, self.config.damping)[0], wide))

    @property
    def _outputs(self) -> int:
        return sum(layer.out_features for layer in self.layers)

    def ranks(self, multiple: int) -> range:
        return ranks_below(self.layers[0].in_features, self._outputs, multiple)

    def parameters_at(self, rank: int | None) -> int:
        if rank is None:
            return self.dense_parameters
        return rank * (self.layers[0].in_features + self._outputs) + self._biases

    @property
    def dense_parameters(self) -> int:
        return super().dense_parameters + self._biases

    @cached_property
    def _biases(self) -> int:
        return sum(linear.bias.numel() for linear in self.linears if linear.bias is not None)

    @property
    def removal(self) -> Shapes | None:
        """Only with the values; not in attention of timm, whose own forward pass has to run."""
        if pads_values(self.model, self.name):
            return None
        return {layer.name: {"out_features": 0} for layer in self.layers}

    def choice(self, shapes: Shapes) -> Choice:
        if is_removed(shapes):
            return Choice.of(0, 0.0, shapes, ())  # what it loses is that of the values
        return super().choice(shapes)

    def operations_at(self, rank: int | None) -> list[Operation]:
        inputs, rows = self.layers[0].in_features, self.positions
        shared = [] if rank is None else [Product(rows, inputs, rank)]
        return [*shared, *(Product(rows, inputs if rank is None else rank, one.out_features) for one in self.layers)]

    def check(self, shapes: Shapes) -> None:
        if check_removed(self, shapes):
            return
        for name, shape in shapes.items():
            if name != self.name:
                raise ConfigError(
                    f'With attention="joint", q and k share one rank: give {self.name!r} a qk_rank instead of '
                    f'{name!r} its own, or plan with attention="low_rank".'
                )
            refuse(name, shape, {"qk_rank": self.layers[0].in_features})

    def tensors(self, shapes: Shapes) -> dict[str, Tensor]:
        if not shapes or is_removed(shapes):
            return {}
        narrow, wide = self._sides()
        weights = [own.weight for own in self.moments]
        up, down, _ = solve(torch.cat(weights), roots(narrow, self.config.damping), wide, on_output=False)
        rank = shapes[self.name]["qk_rank"]
        up, down = balanced(up[:, :rank], down[:rank])
        tensors = {f"{self.name}.qk_down.weight": down}
        mean = self.moments[0].mean
        ups = up.split([layer.out_features for layer in self.layers])
        for layer, linear, weight, own in zip(self.layers, self.linears, weights, ups, strict=True):
            tensors[f"{layer.name}.weight"] = own
            if linear.bias is not None:
                lost = weight @ mean - own @ (down @ mean) if self._centered else weight.new_zeros(())
                tensors[f"{layer.name}.bias"] = shifted(linear.bias, lost)
        return tensors

    def regression_targets(self, shapes: Shapes) -> list[RegressionTarget]:
        if not shapes or is_removed(shapes):
            return []
        weight = torch.cat([own.weight for own in self.moments])
        biases = [own.bias for own in self.moments if own.bias is not None]
        bias = torch.cat(biases) if len(biases) == len(self.linears) else None  # else neither moves
        rank = shapes[self.name]["qk_rank"]
        return [RegressionTarget(self.layers, weight, weight, self._sides()[1], False, bias, self._centered, rank)]

    def describe(self, shapes: Shapes) -> str:
        return "removed" if is_removed(shapes) else super().describe(shapes)
