"""Takes a latency profile: every operation that a plan may ask for, on a coarse grid, as a model really runs it.

A layer of a model reads weights that the layers before it have driven out of the caches. Each is therefore timed in
turn with others of its size, until all of them together are larger than caches close to a core.
"""

import functools
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..tokens_factored import merged, proportional_mask
from .operations import Activation, Attention, Merge, Operation, Product
from .profile import EIGHTHS, STEP, Conditions, Grid, LatencyProfile, Steps

COLD_BYTES, COLD_ROWS = 2**24, 2**13
"""Bytes of weights that are timed in turn, and vectors after which it does not matter whether weights are cold."""

REPETITIONS, LARGEST_WORK = 5, 0.04
"""Of a measurement: how often, and seconds after which fewer are enough."""

SIZES = (8, 32, 128, 512, 2048, 8192, 32768)

TOKEN_SHARES = (1.0, 0.5)
"""Shares of an image's tokens at which products are timed, where tokens may be merged."""


@dataclass(frozen=True)
class Bench:
    """Where and how operations are timed.

    Attributes:
        device, dtype: of the model.
        batch_size: images of a batch.
        fused: whether attention runs as one fused operation.
        activation: between the layers of a feed-forward.
    """

    device: torch.device
    dtype: torch.dtype
    batch_size: int
    fused: bool = True
    activation: Callable[[Tensor], Tensor] = functional.gelu

    def random(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device, dtype=self.dtype)

    def seconds(self, work: Sequence[Callable[[], object]]) -> float:
        """Seconds of one of the calls, made one after the other, in the quickest of several rounds."""
        for call in work:
            call()
        found: list[float] = []
        while len(found) < REPETITIONS and (len(found) < 2 or sum(found) < LARGEST_WORK * REPETITIONS):
            synchronize(self.device)
            start = time.perf_counter()
            for call in work:
                call()
            synchronize(self.device)
            found.append(time.perf_counter() - start)
        return min(found) / len(work)


def synchronize(device: torch.device) -> None:
    """Wait until a device has done what it was asked for."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def time_operation(bench: Bench, operation: Operation) -> float:
    """Seconds of a batch."""
    match operation:
        case Product(rows, inputs, outputs):
            cold = COLD_BYTES // (inputs * outputs * bench.dtype.itemsize)
            copies = max(1, min(cold, COLD_ROWS // (rows * bench.batch_size)))
            given = bench.random(bench.batch_size, rows, inputs)
            layers = [nn.Linear(inputs, outputs, device=bench.device, dtype=bench.dtype) for _ in range(copies)]
            return bench.seconds([functools.partial(layer, given) for layer in layers])
        case Activation(rows, width):
            given = bench.random(bench.batch_size, rows, width)
            return bench.seconds([functools.partial(bench.activation, given)] * 4)
        case Attention(rows, keys, heads, head_dim, value_dim):
            windows = max(1, round(bench.batch_size * rows / keys))
            query = bench.random(windows, min(rows, keys), heads * head_dim)
            key, value = (bench.random(windows, keys, heads * size) for size in (head_dim, value_dim))
            return bench.seconds([functools.partial(_attend, query, key, value, heads, bench.fused)] * 4)
        case Merge(rows, width):
            given = bench.random(bench.batch_size, rows, width)
            origin = torch.arange(rows, device=bench.device).expand(bench.batch_size, -1)
            return bench.seconds([functools.partial(_merge, given, origin)] * 4)
    raise TypeError(f"{operation!r} is no operation.")


def _merge(hidden_states: Tensor, origin: Tensor) -> None:
    """As a block of a factored model merges, with the weights of tokens for the attention after it."""
    merged(hidden_states, origin, max(1, hidden_states.shape[1] // 16), prefix=1)
    proportional_mask(hidden_states, origin, None)


def _attend(query: Tensor, key: Tensor, value: Tensor, heads: int, fused: bool) -> Tensor:
    """As `layers_factored.FactoredAttentionMixin` attends, between its projections."""
    query, key, value = (one.unflatten(-1, (heads, -1)).transpose(1, 2) for one in (query, key, value))
    narrow = value.shape[-1]
    if fused:
        value = functional.pad(value, (0, query.shape[-1] - narrow))
        output = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2)
    else:
        weights = torch.matmul(query, key.transpose(2, 3)) * query.shape[-1] ** -0.5
        weights = functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
        output = torch.matmul(weights, value).transpose(1, 2).contiguous()
    return output[..., :narrow].reshape(*output.shape[:2], -1)


@torch.inference_mode()
def take_profile(
    bench: Bench,
    operations: Iterable[Operation],
    dense: float,
    conditions: Conditions,
    done: Callable[[], object] = lambda: None,
) -> LatencyProfile:
    """Measure what operations take; a minute or less.

    Args:
        operations: all that choices may ask for; their sizes span the grid.
        dense: seconds of the dense model for a batch.
        done: called after every measurement, for a progress bar.
    """

    def timed(operation: Operation) -> float:
        seconds = time_operation(bench, operation)
        done()
        return seconds

    asked = set(operations)
    merges = [one for one in asked if isinstance(one, Merge)]
    shares = TOKEN_SHARES if merges else TOKEN_SHARES[:1]
    products = [one for one in asked if isinstance(one, Product)]
    activations = [one for one in asked if isinstance(one, Activation)]
    attentions = [one for one in asked if isinstance(one, Attention)]
    return LatencyProfile(
        conditions,
        dense,
        dict(_product_grids(products, shares, timed)),
        _activation_grid(activations, shares, timed) if activations else None,
        {
            dim: _attention_grid([one for one in attentions if one.head_dim == dim], shares, timed)
            for dim in sorted({one.head_dim for one in attentions})
        },
        _merging_grid(merges, shares, timed) if merges else None,
        _steps(products, timed) if products else Steps(),
    )


Timed = Callable[[Operation], float]


def _product_grids(products: Sequence[Product], shares: Sequence[float], timed: Timed) -> Iterator[tuple[int, Grid]]:
    """By rows. What is larger than any product that may occur is not timed: it takes as long by its weights."""
    for rows in sorted({one.rows for one in products}):
        own = [one for one in products if one.rows == rows]
        axes = _sizes(one.inputs for one in own), _sizes(one.outputs for one in own)
        largest = max(one.inputs * one.outputs for one in own)
        for fewer in _rows([rows], shares):
            timeable = [sizes for sizes in itertools.product(*axes) if math.prod(sizes) <= largest]
            known = {sizes: timed(Product(fewer, *sizes)) for sizes in timeable}
            rate = max(known.items(), key=lambda item: math.prod(item[0]))
            seconds = [
                known.get(sizes, rate[1] * math.prod(sizes) / math.prod(rate[0])) for sizes in itertools.product(*axes)
            ]
            yield fewer, Grid(axes, tuple(seconds))


def _activation_grid(activations: Sequence[Activation], shares: Sequence[float], timed: Timed) -> Grid:
    axes = _rows([one.rows for one in activations], shares), _ends(one.width for one in activations)
    return Grid(axes, tuple(timed(Activation(*sizes)) for sizes in itertools.product(*axes)))


def _attention_grid(attentions: Sequence[Attention], shares: Sequence[float], timed: Timed) -> Grid:
    """Of one head dimension."""
    axes = (
        _rows([one.rows for one in attentions], shares),
        _rows([one.keys for one in attentions], shares),
        _ends(one.heads for one in attentions),
        _ends(one.value_dim for one in attentions),
    )
    dim = attentions[0].head_dim
    seconds = [
        timed(Attention(rows, keys, heads, dim, values)) for rows, keys, heads, values in itertools.product(*axes)
    ]
    return Grid(axes, tuple(seconds))


def _merging_grid(merges: Sequence[Merge], shares: Sequence[float], timed: Timed) -> Grid:
    axes = _rows([one.rows for one in merges], shares), _ends(one.width for one in merges)
    return Grid(axes, tuple(timed(Merge(*sizes)) for sizes in itertools.product(*axes)))


def _steps(products: Sequence[Product], timed: Timed) -> Steps:
    """From layers of the model's width, whose other size grows from one multiple of `STEP` to the next, twice."""
    rows, width = max(one.rows for one in products), statistics.mode(one.inputs for one in products)
    if width < 3 * STEP:
        return Steps()
    spans = [range(low, low + STEP + 1, STEP // EIGHTHS) for low in (STEP, 2 * STEP)]
    into = [_excess([timed(Product(rows, size, width)) for size in span]) for span in spans]
    out = [_excess([timed(Product(rows, width, size)) for size in span]) for span in spans]
    return Steps(*(tuple(map(min, *found)) for found in (into, out)))


def _excess(seconds: Sequence[float]) -> list[float]:
    """What is to be added to each size, so that the time rises evenly from the first to the last."""
    first, last = seconds[0], max(seconds[-1], seconds[0] * 1.01)
    steps = [STEP * (own - first) / (last - first) - i * STEP / EIGHTHS for i, own in enumerate(seconds[:-1])]
    return [min(max(0.0, step), float(STEP)) for step in steps]


def _sizes(found: Iterable[int]) -> tuple[int, ...]:
    """Points of a grid that spans these sizes: some even steps, the largest, and that which occurs most often."""
    every = list(found)
    between = [size for size in SIZES if min(every) <= size < max(every)]
    return tuple(sorted({min(every), *between, statistics.mode(every), max(every)}))


def _ends(found: Iterable[int]) -> tuple[int, ...]:
    every = set(found)
    return tuple(sorted({min(every), max(every)}))


def _rows(found: Sequence[int], shares: Sequence[float]) -> tuple[int, ...]:
    return tuple(sorted({max(1, round(rows * share)) for rows in found for share in shares}))
