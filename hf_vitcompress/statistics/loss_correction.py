"""What corrects predicted losses: weights of roles, and (predicted, measured) points."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

# One weight for the group and not one per role: with more, the search fits noise.
WEIGHTED_ROLES = ("q", "k")
PRIOR_WEIGHT = 2.0
Z95 = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""


@dataclass
class LossCorrection:
    """Maps the sum of predicted errors to the loss that is to be expected.

    Attributes:
        weights: factor on the error curves of each role; missing roles have 1.
        points: (predicted, measured) losses of whole models, nats per image, by rising prediction.
        images: number of images that they were measured on.
        error: standard error of the measured losses, relative to them, from the differences between the images.
    """

    weights: dict[str, float] = field(default_factory=dict)
    points: list[tuple[float, float]] = field(default_factory=list)
    images: int = 0
    error: float = 0.0

    @classmethod
    def prior(cls, roles: Sequence[str]) -> "LossCorrection":
        """Before anything is measured."""
        return cls({role: PRIOR_WEIGHT for role in WEIGHTED_ROLES if role in roles})

    def loss(self, predicted: float) -> float | None:
        """The loss to expect, by linear interpolation between the points in logarithms; `None` without points.

        Outside them the line of the two nearest points goes on, never flatter than proportional below the lowest.
        """
        usable = [(math.log(p), math.log(m)) for p, m in self.points if p > 0 and m > 0]
        if not usable:
            return None
        if predicted <= 0:
            return 0.0
        x = math.log(predicted)
        if len(usable) == 1:
            return math.exp(usable[0][1] + x - usable[0][0])
        right = next((i for i, (p, _) in enumerate(usable) if p >= x), len(usable) - 1)
        (x0, y0), (x1, y1) = usable[max(right, 1) - 1], usable[max(right, 1)]
        slope = (y1 - y0) / (x1 - x0) if x1 > x0 else 1.0
        if x < usable[0][0]:
            return math.exp(usable[0][1] + max(slope, 1.0) * (x - usable[0][0]))
        return math.exp(y0 + slope * (x - x0))

    def interval(self, loss: float) -> tuple[float, float]:
        """The 95 % interval of a loss to expect, by the normal one of its logarithm: no loss is negative."""
        factor = math.exp(Z95 * self.error)
        return loss / factor, loss * factor
