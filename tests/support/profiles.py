"""Latency profiles with made-up seconds."""

import functools
import itertools
from collections.abc import Callable, Iterable
from typing import Any

from hf_vitcompress.evaluation.costs import count_costs
from hf_vitcompress.evaluation.latency import Latency
from hf_vitcompress.profiling.operations import Activation, Attention, Merge, Operation, Product
from hf_vitcompress.profiling.profile import Conditions, Grid, LatencyProfile

PER_PRODUCT, PER_MAC, PER_FEATURE = 2e-6, 1e-9, 1e-10

CONDITIONS = Conditions("a CPU", 1, "float32", 1, (3, 32, 32), "sdpa", "a model", "2.0")


def even_seconds(operation: Operation) -> float:
    """Of each product a part that does not depend on its sizes, and a part by multiplications."""
    match operation:
        case Product(rows, inputs, outputs):
            return PER_PRODUCT + PER_MAC * rows * inputs * outputs
        case Activation(rows, width):
            return PER_FEATURE * rows * width
        case Attention(rows, keys, heads, head_dim, value_dim):
            return PER_MAC * rows * keys * heads * (head_dim + value_dim)
        case Merge(rows, width):
            return PER_FEATURE * rows * width
    raise TypeError(operation)


def grid_of(axes: Iterable[Iterable[int]], seconds: Callable[..., float]) -> Grid:
    points = tuple(map(tuple, axes))
    return Grid(points, tuple(seconds(*sizes) for sizes in itertools.product(*points)))


def even_profile(
    rows: Iterable[int], head_dims: Iterable[int] = (8,), dense: float = 1e-3, conditions: Conditions = CONDITIONS
) -> LatencyProfile:
    """Of which every operation takes exactly `even_seconds`, because these are linear in each size."""
    counts = sorted(set(rows))
    ends = sorted({1, *counts})
    return LatencyProfile(
        conditions,
        dense,
        {own: grid_of([(8, 64), (8, 64)], lambda i, o, own=own: even_seconds(Product(own, i, o))) for own in counts},
        grid_of([ends, (8, 64)], lambda *sizes: even_seconds(Activation(*sizes))),
        {
            dim: grid_of(
                [ends, ends, (1, 4), (1, 8)], lambda r, k, h, v, dim=dim: even_seconds(Attention(r, k, h, dim, v))
            )
            for dim in head_dims
        },
    )


def latency_by_macs(
    dense: functools.partial[float], compressed: functools.partial[float], batch_size: int, *_: Any
) -> Latency:
    """In the place of `alternate_latency`: most of a model's time goes with its multiplications."""
    large, small = (count_costs(one.args[0]).macs for one in (dense, compressed))
    ratio = 0.05 + 0.95 * small / large
    return Latency(0.02, 0.02 * ratio, ratio, ratio, ratio, batch_size, 15, 1, "a CPU (1 thread)")
