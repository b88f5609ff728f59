"""What the planner chooses between: the parts of a block, each with its shapes, their costs and predicted errors.

A part is one or more linear layers that are compressed together. Its *shapes* are plain data, exactly those of
`config.compression["layers"]` (see `modeling_factored`); no shapes means dense.

| part | layers | shapes |
|---|---|---|
| `LayerPart` | any one | `rank` |
| `QueryKeyPart` | q, k | `qk_rank`: one `down` for both |
| `PairPart` (`pairs`) | fc1 (with gate), fc2 or v, o | `out_features` and `in_features` alike, and a `rank` each |
| `HeadsPart` (`heads`) | q, k, v, o | whole heads: `out_features` and `in_features` alike |
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .config import CompressionConfig
from .errors import ConfigError
from .factorization import (
    Factorization,
    balanced,
    carried_gradient,
    error_curve,
    factorize,
    gradient_of,
    input_metric,
    is_centered,
    output_metric,
    roots,
    sides,
    solve,
)
from .layers import LayerInfo, attention_keys, linear_layer
from .statistics import Statistics

Shapes = dict[str, dict[str, int]]
"""Module name → its shape, as in `config.compression["layers"]`."""


@dataclass(frozen=True)
class Choice:
    """One form a part may take: parameters (as `Part.dense_parameters` counts them), multiply-accumulates per image,
    predicted loss increase.
    """

    parameters: int
    macs: int
    error: float
    shapes: Shapes

    def cost(self, unit: str) -> int:
        return self.macs if unit == "macs" else self.parameters


@dataclass
class Target:
    """What some layers with one input are to compute, and in what form: for solving them again in their place.

    Attributes:
        layers: one, or q and k on one `down`.
        weight: (out', in) float64, of the dense layer's input; rows of pruned features are left out.
        start: (out', in') float64, the closed form's unlimited solution on the compressed layer's input.
        metric: of the output (out', out'), or carried through `weight` to the input (in, in); maybe its diagonal.
        on_output: which of the two.
        bias: (out',) float64, or `None`.
        centered: whether the bias takes up the mean of the error.
        rank: of the factors, or `None` for a plain layer.
    """

    layers: tuple[LayerInfo, ...]
    weight: Tensor
    start: Tensor
    metric: Tensor
    on_output: bool
    bias: Tensor | None
    centered: bool
    rank: int | None


class Part(ABC):
    """Some layers of one block that are compressed together.

    Attributes:
        role: what they do in their block.
        solution: what `solve` found; small, so that processes can exchange it.
    """

    role: str

    def __init__(
        self,
        layers: Sequence[LayerInfo],
        model: PreTrainedModel,
        statistics: Statistics,
        config: CompressionConfig,
        importance: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.layers, self.model, self.statistics, self.config = tuple(layers), model, statistics, config
        self.importance = importance or {}
        self.linears: list[nn.Linear] = [linear_layer(model, layer.name) for layer in layers]
        self.solution: Any = None

    @property
    def name(self) -> str:
        return self.layers[0].name

    @property
    def block(self) -> int:
        return self.layers[0].block

    @property
    def module_names(self) -> tuple[str, ...]:
        """Modules that a plan may name for it."""
        return tuple(layer.name for layer in self.layers)

    @property
    def positions(self) -> int:
        """Vectors per image that pass through the layers, for counting MACs."""
        return round(self.statistics.tokens[self.layers[0].input_name] / max(self.statistics.images, 1))

    @property
    def products(self) -> int:
        """Multiply-accumulates per image of one of the products of attention, for each feature: queries × keys."""
        return self.positions * attention_keys(self.model, self.layers[0], self.positions)

    @property
    def dense_parameters(self) -> int:
        """Weight entries, and those biases that shapes may remove."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def work(self) -> float:
        """About how long `solve` takes, in any unit."""
        return sum(
            layer.full_rank**2 * (10 * layer.full_rank + layer.in_features + layer.out_features)
            for layer in self.layers
        )

    def energy_scale(self, errors: Tensor) -> Tensor:
        """Errors in the units of the loss; in other metrics, which do not compare, as shares of the energy."""
        if self.config.metric == "fisher" or float(errors[0]) <= 0:
            return errors
        return errors / errors[0]

    @abstractmethod
    def solve(self) -> Any:
        """The costly part of the predicted errors, for `solution`."""

    @abstractmethod
    def choices(self, multiple: int) -> list[Choice]:
        """What the planner may take, dense included; ranks and widths are multiples of `multiple`."""

    @abstractmethod
    def choice(self, shapes: Shapes) -> Choice:
        """The cost and predicted error of any shapes the part can have."""

    @abstractmethod
    def check(self, shapes: Shapes) -> None:
        """Refuse shapes that the part cannot have.

        Raises:
            ConfigError: naming the layer.
        """

    @abstractmethod
    def tensors(self, shapes: Shapes) -> dict[str, Tensor]:
        """The compressed layers' tensors by name, float64 or float32; of the layers that these shapes change."""

    @abstractmethod
    def targets(self, shapes: Shapes) -> list[Target]:
        """Of the layers that these shapes change, in the order in which the block computes them."""

    def describe(self, shapes: Shapes) -> str:
        """In a few words, for reports."""
        if not shapes:
            return "dense"
        ((_, shape),) = shapes.items()
        return ", ".join(f"{key.replace('qk_rank', 'rank')} {value}" for key, value in shape.items())


def ranks_below(inputs: int, outputs: int, multiple: int) -> range:
    """Multiples below the break-even rank of a layer of that shape."""
    return range(multiple, -(-inputs * outputs // (inputs + outputs)), multiple)


def refuse(name: str, shape: Mapping[str, Any], allowed: Mapping[str, int]) -> None:
    """Raise `ConfigError` unless every entry of `shape` is a whole number in 1 … `allowed`."""
    for key, value in shape.items():
        if key not in allowed:
            raise ConfigError(f"The plan gives {name!r} the unknown shape {key!r}; it may have {', '.join(allowed)}.")
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= allowed[key]:
            raise ConfigError(
                f"The plan gives {name!r} the {key} {value!r}; it must be a whole number in 1 … {allowed[key]}."
            )


def factored(name: str, up: Tensor, down: Tensor, bias: Tensor | None) -> dict[str, Tensor]:
    """The tensors of a `FactoredLinear`."""
    up, down = balanced(up, down)
    tensors = {f"{name}.up.weight": up, f"{name}.down.weight": down}
    return tensors if bias is None else {**tensors, f"{name}.up.bias": bias}


def shifted(bias: Tensor | None, lost: Tensor) -> Tensor:
    """A bias that takes up the mean `lost` (out,) of the error."""
    return lost if bias is None else bias.detach().double() + lost


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


class QueryKeyPart(Part):
    """q and k, which meet only in their product, on one `down`.

    `[W_q; W_k]` is factored as one weight whose metric on the output side is block-diagonal. Both then see the same
    projection of the hidden states, and the errors of their product cancel where those of two projections add up.

    In some models k alone has no bias. The mean is then part of what `down` has to pass on, for both: softmax would
    not see the keys' mean error, but with rotary positions it differs from key to key.
    """

    role = "qk"

    @property
    def name(self) -> str:
        return self.layers[0].parent

    @property
    def module_names(self) -> tuple[str, ...]:
        return (self.name, *super().module_names)

    def _sides(self) -> tuple[Tensor, Tensor]:
        wide = sum(
            carried_gradient(
                self.config.metric, gradient_of(layer, self.statistics, self.config), linear.weight.detach().double()
            )
            for layer, linear in zip(self.layers, self.linears, strict=True)
        )
        assert isinstance(wide, Tensor)
        without = [linear for linear in self.linears if linear.bias is None]
        reader = (without or self.linears)[0]
        return input_metric(self.statistics, self.layers[0], reader, self.config), wide

    @property
    def _centered(self) -> bool:
        """Whether both biases take up the mean of the error."""
        return all(is_centered(linear, self.config) for linear in self.linears)

    def solve(self) -> Tensor:
        """Errors (n + 1,)."""
        narrow, wide = self._sides()
        return self.energy_scale(error_curve(roots(narrow, self.config.damping)[0], wide))

    def choice(self, shapes: Shapes) -> Choice:
        rank = shapes.get(self.name, {}).get("qk_rank")
        outputs = sum(layer.out_features for layer in self.layers)
        parameters = self.dense_parameters if rank is None else rank * (self.layers[0].in_features + outputs)
        error = 0.0 if rank is None else float(self.solution[rank])
        return Choice(parameters, parameters * self.positions, error, shapes)

    def choices(self, multiple: int) -> list[Choice]:
        outputs = sum(layer.out_features for layer in self.layers)
        ranks = ranks_below(self.layers[0].in_features, outputs, multiple)
        return [self.choice({self.name: {"qk_rank": rank}}) for rank in ranks] + [self.choice({})]

    def check(self, shapes: Shapes) -> None:
        for name, shape in shapes.items():
            if name != self.name:
                raise ConfigError(
                    f'With attention="joint", q and k share one rank: give {self.name!r} a qk_rank instead of '
                    f'{name!r} its own, or plan with attention="low_rank".'
                )
            refuse(name, shape, {"qk_rank": self.layers[0].in_features})

    def tensors(self, shapes: Shapes) -> dict[str, Tensor]:
        if not shapes:
            return {}
        narrow, wide = self._sides()
        weights = [linear.weight.detach().double() for linear in self.linears]
        up, down, _ = solve(torch.cat(weights), roots(narrow, self.config.damping), wide, on_output=False)
        rank = shapes[self.name]["qk_rank"]
        up, down = balanced(up[:, :rank], down[:rank])
        tensors = {f"{self.name}.qk_down.weight": down}
        mean = self.statistics.inputs[self.layers[0].input_name].mean
        ups = up.split([layer.out_features for layer in self.layers])
        for layer, linear, weight, own in zip(self.layers, self.linears, weights, ups, strict=True):
            tensors[f"{layer.name}.weight"] = own
            if linear.bias is not None:
                lost = weight @ mean - own @ (down @ mean) if self._centered else weight.new_zeros(())
                tensors[f"{layer.name}.bias"] = shifted(linear.bias, lost)
        return tensors

    def targets(self, shapes: Shapes) -> list[Target]:
        if not shapes:
            return []
        weight = torch.cat([linear.weight.detach().double() for linear in self.linears])
        biases = [linear.bias.detach().double() for linear in self.linears if linear.bias is not None]
        bias = torch.cat(biases) if len(biases) == len(self.linears) else None  # else neither moves
        rank = shapes[self.name]["qk_rank"]
        return [Target(self.layers, weight, weight, self._sides()[1], False, bias, self._centered, rank)]
