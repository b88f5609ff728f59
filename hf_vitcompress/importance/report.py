"""How importance scores were learned, as plain data."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

NEAR_ZERO, HALF = 0.1, 0.5
"""Sizes of scores whose shares are reported."""


@dataclass(frozen=True)
class GatePoint:
    """How far the scores are after `step` steps on `images` images in all, and `seconds`.

    Attributes:
        loss: mean divergence from the dense model over the steps since the last point, nats per image, without the
            penalty; of the images that are being learnt from.
        mean: mean size of the scores.
        near_zero: share of scores below 0.1.
        below_half: share of scores below 0.5.
    """

    step: int
    seconds: float
    images: int
    loss: float
    mean: float
    near_zero: float
    below_half: float


@dataclass(frozen=True)
class GateLayer:
    """The scores of the features that one layer reads: their number, mean size, and shares below 0.1 and 0.5."""

    name: str
    count: int
    mean: float
    near_zero: float
    below_half: float


@dataclass
class GateReport:
    """How importance scores were learned.

    Attributes:
        images: number of different images.
        l1: weight of the penalty, as in the config.
        learning_rate: highest learning rate of the scores.
        points: the course of the learning.
        layers: the final scores of each layer.
        seconds: duration, including the time before an interruption.
    """

    images: int
    l1: float
    learning_rate: float
    points: list[GatePoint]
    layers: list[GateLayer]
    seconds: float

    @property
    def near_zero(self) -> float:
        """Share of all scores below 0.1."""
        return self.points[-1].near_zero

    @property
    def below_half(self) -> float:
        """Share of all scores below 0.5."""
        return self.points[-1].below_half


@dataclass(frozen=True)
class LearnedImportance:
    """Learned scores, (neurons,) or (heads,) by the name of the layer that reads the features, and how they came."""

    scores: dict[str, Tensor]
    report: GateReport


def figures_of(scores: Mapping[str, Tensor]) -> tuple[float, float, float]:
    """Mean size of all scores, and their shares below 0.1 and 0.5."""
    count = max(sum(own.numel() for own in scores.values()), 1)
    sizes = [own.detach().abs().double() for own in scores.values()]
    mean = sum(float(own.sum()) for own in sizes) / count
    near_zero, below_half = (sum(int((own < size).sum()) for own in sizes) / count for size in (NEAR_ZERO, HALF))
    return mean, near_zero, below_half


def layer_figures(scores: Mapping[str, Tensor]) -> list[GateLayer]:
    """The same by layer."""
    return [GateLayer(name, own.numel(), *figures_of({name: own})) for name, own in scores.items()]
