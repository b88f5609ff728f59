"""Ranks of several layers together: of all combinations, those that no other beats."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


class Option(NamedTuple):
    """Weight entries and predicted error of some layers, and the rank of each; `None` is dense."""

    weights: int
    error: float
    ranks: tuple[int | None, ...]


def rank_options(
    sides: Sequence[int], width: int, curves: Sequence[Tensor] | None, multiple: int, error: float
) -> list[Option]:
    """What layers between `width` features and `sides` others may be, by rising cost and falling error.

    Layers are combined one after the other: what is beaten among some of them is beaten whatever the others are.

    Args:
        curves: predicted errors (n + 1,) float64 of each layer's ranks; `None` where no layer may be factored.
        multiple: of which the ranks are multiples.
        error: of the width itself, which the ranks' errors are added to.
    """
    if not curves:
        return [Option(sum(side * width for side in sides), error, (None,) * len(sides))]
    found = [Option(0, error, ())]
    for side, curve in zip(sides, curves, strict=True):
        found = _combined(found, [*_factored(side, width, curve, multiple), Option(side * width, 0.0, (None,))])
    return found


def undominated(costs: Sequence[int], errors: Sequence[float]) -> list[int]:
    """Indices, by rising cost, of the points that no other equals or beats in both."""
    return _front(np.asarray(costs), np.asarray(errors, dtype=np.float64))


def _front(costs: NDArray[np.int64], errors: NDArray[np.float64]) -> list[int]:
    """In numpy, which is quicker than torch for as few numbers as these."""
    order = np.lexsort((errors, costs))
    least = np.minimum.accumulate(errors[order])
    lower = np.ones(len(order), dtype=bool)
    lower[1:] = least[1:] < least[:-1]
    return order[lower].tolist()


def _factored(side: int, width: int, curve: Tensor, multiple: int) -> list[Option]:
    ranks = list(ranks_below(side, width, multiple))
    errors = curve[ranks].tolist()
    return [Option(rank * (side + width), error, (rank,)) for rank, error in zip(ranks, errors, strict=True)]


def _combined(some: list[Option], others: list[Option]) -> list[Option]:
    """Sums of one of `some` and one of `others`."""
    costs = np.add.outer([one.weights for one in some], [one.weights for one in others])
    errors = np.add.outer([one.error for one in some], [one.error for one in others])
    pairs = (divmod(i, len(others)) for i in _front(costs.ravel(), errors.ravel()))
    return [
        Option(some[i].weights + others[j].weights, some[i].error + others[j].error, some[i].ranks + others[j].ranks)
        for i, j in pairs
    ]


def ranks_below(inputs: int, outputs: int, multiple: int) -> range:
    """Multiples below the break-even rank of a layer of that shape."""
    return range(multiple, -(-inputs * outputs // (inputs + outputs)), multiple)
