"""Values with their 95 % confidence intervals."""

import math
from dataclasses import dataclass

from torch import Tensor

from ..errors import DataError
from ..statistics.loss_correction import Z95


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % confidence interval."""

    value: float
    low: float
    high: float


def wilson_interval(successes: int, trials: int) -> Interval:
    """Wilson's score interval of a proportion (Wilson 1927), honest near 0 and 1 where the normal one is not."""
    if trials == 0:
        raise DataError("An interval needs at least one image.")
    share = successes / trials
    centre = share + Z95**2 / (2 * trials)
    spread = Z95 * math.sqrt(share * (1 - share) / trials + Z95**2 / (4 * trials**2))
    scale = 1 + Z95**2 / trials
    return Interval(share, max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale))


def mean_interval(values: Tensor) -> Interval:
    """Mean of `values (n,)` with its normal interval; for paired 0/1 differences it is the paired interval."""
    values = values.double()
    mean = float(values.mean())
    spread = Z95 * float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return Interval(mean, mean - spread, mean + spread)
