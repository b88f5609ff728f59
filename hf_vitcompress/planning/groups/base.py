"""What the planner chooses between: groups of layers, each with its shapes, their costs and predicted errors.

A group is one or more linear layers that are compressed together. Its *shapes* are plain data, exactly those of
`config.compression["layers"]` (see `modeling_factored`); no shapes means dense.

| group | layers | shapes |
|---|---|---|
| `SingleLayerGroup` | any one | `rank` |
| `QueryKeyGroup` | q, k | `qk_rank`: one `down` for both |
| `PairGroup` (`pairs`) | fc1 (with gate), fc2 or v, o | `out_features` and `in_features` alike, and a `rank` each |
| `HeadsGroup` (`heads`) | q, k, v, o | whole heads: `out_features` and `in_features` alike |

With 0 `out_features` of what makes features and 0 `in_features` of what reads them the module is removed: its output is
the bias that is left. `QueryKeyGroup` and the `PairGroup` of v and o are removed together.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from ...architectures.layers import LayerInfo, attention_keys, linear_layer
from ...config import CompressionConfig
from ...errors import ConfigError, shown
from ...metrics import METRICS
from ...model.assembly import Shapes
from ...profiling.operations import Attention, Operation, Product, macs_of_operation
from ...statistics.statistics import Statistics
from ..closed_form import balanced
from ..layer_moments import LayerMoments


@dataclass(frozen=True)
class Choice:
    """One form that a group may take.

    Attributes:
        parameters: weight entries and removable biases, as `dense_parameters` counts them.
        macs: multiply-accumulates per image.
        error: predicted loss increase, in the units of the metric.
        shapes: what the plan says for it; none: dense.
        operations: what it runs for one image.
    """

    parameters: int
    macs: int
    error: float
    shapes: Shapes
    operations: tuple[Operation, ...] = ()

    @classmethod
    def of(cls, parameters: int, error: float, shapes: Shapes, operations: Iterable[Operation]) -> "Choice":
        """One whose multiply-accumulates are those of its operations."""
        run = tuple(operations)
        return cls(parameters, sum(map(macs_of_operation, run)), error, shapes, run)


Cost = Callable[[Choice], int]
"""What a choice costs in one unit."""


def parameters_of(choice: Choice) -> int:
    """Weight entries and removable biases."""
    return choice.parameters


def macs_of(choice: Choice) -> int:
    """Multiply-accumulates per image."""
    return choice.macs


COUNTED: tuple[Cost, ...] = (parameters_of, macs_of)
"""The costs that are counted and not measured."""


@dataclass
class RegressionTarget:
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


@dataclass(frozen=True)
class Given:
    """What all groups of a model are solved from.

    Attributes:
        model: the dense one.
        statistics: of it.
        config: the recipe; its budget does not matter.
        importance: learned scores, (neurons,) or (heads,), by the name of the layer that reads the features.
    """

    model: PreTrainedModel
    statistics: Statistics
    config: CompressionConfig
    importance: Mapping[str, Tensor] = field(default_factory=dict)


class LayerGroup(ABC):
    """Some layers of one block that are compressed together.

    Attributes:
        role: what they do in their block.
        solution: what `solve` found; small, so that processes can exchange it.
    """

    role: str

    def __init__(self, layers: Sequence[LayerInfo], given: Given) -> None:
        self.layers, self.given = tuple(layers), given
        self.model, self.statistics, self.config = given.model, given.statistics, given.config
        self.linears: list[nn.Linear] = [linear_layer(given.model, layer.name) for layer in layers]
        self.moments = [
            LayerMoments.of(layer, linear, given.statistics, given.config)
            for layer, linear in zip(self.layers, self.linears, strict=True)
        ]
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

    @cached_property
    def positions(self) -> int:
        """Vectors per image that pass through the first of the layers, for counting MACs."""
        return self.positions_of(self.layers[0])

    def positions_of(self, layer: LayerInfo) -> int:
        """Vectors per image that pass through a layer: attention that pools its queries gives fewer than it reads."""
        return round(self.statistics.tokens[layer.input_name] / max(self.statistics.images, 1))

    def products_of(self, layer: LayerInfo, inputs: int, outputs: int, rank: int | None) -> list[Operation]:
        """What a layer of that shape runs for one image."""
        rows = self.positions_of(layer)
        if rank is None:
            return [Product(rows, inputs, outputs)]
        return [Product(rows, inputs, rank), Product(rows, rank, outputs)]

    def attention_of(self, heads: int, head_dim: int, value_dim: int) -> Attention:
        """What an attention module of these layers runs for one image between its projections."""
        keys = attention_keys(self.model, self.layers[0], self.positions)
        return Attention(self.positions, keys, heads, head_dim, value_dim)

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
        if METRICS[self.config.metric].is_loss or float(errors[0]) <= 0:
            return errors
        return errors / errors[0]

    @abstractmethod
    def solve(self) -> Any:
        """The costly part of the predicted errors, for `solution`."""

    @abstractmethod
    def choices(self, multiple: int, costs: Sequence[Cost] = COUNTED) -> list[Choice]:
        """What the planner may take, dense included; ranks and widths are multiples of `multiple`.

        Args:
            costs: what is beaten in each of them, and in error, is left out.
        """

    @property
    def removal(self) -> Shapes | None:
        """Shapes that leave nothing of the group, which are none of `choices`; `None` where it cannot go."""
        return None

    @abstractmethod
    def choice(self, shapes: Shapes) -> Choice:
        """The cost and predicted error of any shapes the group can have."""

    @abstractmethod
    def smallest(self, multiple: int) -> int:
        """Fewest parameters of all `choices`; known before `solve`."""

    @abstractmethod
    def spanning(self, multiple: int) -> list[Operation]:
        """What the smallest and the largest of all `choices` run; known before `solve`."""

    @abstractmethod
    def check(self, shapes: Shapes) -> None:
        """Refuse shapes that the group cannot have.

        Raises:
            ConfigError: naming the layer.
        """

    @abstractmethod
    def tensors(self, shapes: Shapes) -> dict[str, Tensor]:
        """The compressed layers' tensors by name, float64 or float32; of the layers that these shapes change."""

    @abstractmethod
    def regression_targets(self, shapes: Shapes) -> list[RegressionTarget]:
        """Of the layers that these shapes change, in the order in which the block computes them."""

    def describe(self, shapes: Shapes) -> str:
        """In a few words, for reports."""
        if not shapes:
            return "dense"
        ((_, shape),) = shapes.items()
        return ", ".join(f"{key.replace('qk_rank', 'rank')} {value}" for key, value in shape.items())


def refuse(name: str, shape: Mapping[str, Any], allowed: Mapping[str, int]) -> None:
    """Raise `ConfigError` unless every entry of `shape` is a whole number in 1 … `allowed`."""
    for key, value in shape.items():
        if key not in allowed:
            raise ConfigError(
                f"The plan gives {name!r} the unknown shape {shown(key)}; it may have {', '.join(allowed)}."
            )
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= allowed[key]:
            raise ConfigError(
                f"The plan gives {name!r} the {key} {shown(value)}; it must be a whole number in 1 … {allowed[key]}."
            )


def factored(name: str, up: Tensor, down: Tensor, bias: Tensor | None) -> dict[str, Tensor]:
    """The tensors of a `FactoredLinear`."""
    up, down = balanced(up, down)
    tensors = {f"{name}.up.weight": up, f"{name}.down.weight": down}
    return tensors if bias is None else {**tensors, f"{name}.up.bias": bias}


def shifted(bias: Tensor | None, lost: Tensor) -> Tensor:
    """A bias that takes up the mean `lost` (out,) of the error."""
    return lost if bias is None else bias.detach().double() + lost
