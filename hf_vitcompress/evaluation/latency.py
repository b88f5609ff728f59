"""Measured speed and memory, dense and compressed alternately in one run, so that both see the same machine."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from ..architectures.inputs import example_inputs
from ..architectures.running import without_dropout
from ..model.towers import compressed_part
from ..runtime.arguments import require_count
from ..runtime.devices import device_name

LATENCY_BATCHES = (1, 32)
"""Images in a batch: what a device that waits for each image sees, and one that does not."""


@dataclass(frozen=True)
class Latency:
    """Seconds of one forward pass over `batch_size` images.

    Attributes:
        dense: median seconds of the dense model.
        compressed: median seconds of the compressed model.
        ratio: median over the rounds of compressed ÷ dense.
        ratio_low: lower quartile of these ratios.
        ratio_high: upper quartile of these ratios.
        batch_size: images of a batch.
        rounds: number of pairs of passes.
        threads: threads that torch used.
        device: name of the device.
    """

    dense: float
    compressed: float
    ratio: float
    ratio_low: float
    ratio_high: float
    batch_size: int
    rounds: int
    threads: int
    device: str


@dataclass(frozen=True)
class LatencyReport:
    """What became of a budget of time, each latency as a share of the dense model's.

    Attributes:
        asked: largest share that the budget allows.
        predicted: from the latency profile, as far as it was corrected by then.
        measured: by timing the planned model and the dense one alternately.
        asked_ms: the budget in milliseconds, if it was one of them.
    """

    asked: float
    predicted: float
    measured: Latency
    asked_ms: float | None = None

    @property
    def error(self) -> float:
        """How far the prediction is from what was measured, as a share of that."""
        return abs(self.predicted / self.measured.ratio - 1)

    @property
    def excess(self) -> float:
        """By how much what was measured exceeds the budget, as a share of that; negative below it."""
        return self.measured.ratio / self.asked - 1

    @property
    def wish(self) -> str:
        """The budget, to begin a sentence with."""
        return f"The speed-up of {1 / self.asked:.2f}" if self.asked_ms is None else f"{self.asked_ms:g} ms for a batch"

    @property
    def name(self) -> str:
        """What its row is called."""
        return f"speed-up when planned, batch {self.measured.batch_size}"

    @property
    def amount(self) -> str:
        """What was measured."""
        return f"{1 / self.measured.ratio:.2f} × ({1000 * self.measured.ratio * self.measured.dense:.3g} ms)"

    @property
    def origin(self) -> str:
        """What was asked and predicted, and on which machine."""
        if self.asked_ms is None:
            told = f"asked {1 / self.asked:.2f}, predicted {1 / self.predicted:.2f}"
        else:
            told = f"asked {self.asked_ms:g} ms, predicted {1000 * self.predicted * self.measured.dense:.3g} ms"
        return f"{told}; {self.measured.device}"


def measure_latency(
    dense: PreTrainedModel,
    compressed: PreTrainedModel,
    batch_size: int = 32,
    rounds: int = 15,
    shape: Sequence[int] | None = None,
) -> Latency:
    """Time both models on the same random images, turn by turn, in their own dtype, after a warm-up.

    Where only a `target` is compressed, that alone is timed.

    Args:
        batch_size, rounds: see `alternate_latency`.
        shape: of one image's `pixel_values`; by default that which the config is made for, see `example_inputs`.
    """
    require_count("batch_size", batch_size)
    whole, part = (compressed_part(model, compressed).model for model in (dense, compressed))
    large, small = (example_inputs(model, batch_size, shape) for model in (whole, part))
    return alternate_latency(
        lambda: time_forward(whole, large),
        lambda: time_forward(part, small),
        batch_size,
        rounds,
        whole.device,
    )


def alternate_latency(
    dense: Callable[[], float],
    compressed: Callable[[], float],
    batch_size: int,
    rounds: int = 15,
    device: torch.device | str = "cpu",
) -> Latency:
    """Latency of anything that runs models.

    Args:
        dense, compressed: run one batch and return its seconds; called turn by turn, twice each to warm up.
        batch_size, device: of the batches, to be stated.
        rounds: pairs that count, at least 2.
    """
    pairs = [(dense(), compressed()) for _ in range(rounds + 2)][2:]
    ratios = [small / large for large, small in pairs]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return Latency(
        dense=statistics.median(large for large, _ in pairs),
        compressed=statistics.median(small for _, small in pairs),
        ratio=middle,
        ratio_low=low,
        ratio_high=high,
        batch_size=batch_size,
        rounds=rounds,
        threads=torch.get_num_threads(),
        device=device_name(torch.device(device)),
    )


def latency_row(latency: Latency) -> tuple[str, str, str, str]:
    """Quantity, dense, compressed, change: for a table."""
    times = (f"{latency.dense * 1000:.1f} ms", f"{latency.compressed * 1000:.1f} ms")
    spread = f"{latency.ratio:.2f} × ({latency.ratio_low:.2f} to {latency.ratio_high:.2f})"
    return (f"latency, batch {latency.batch_size}", *times, spread)


def peak_memory_bytes() -> int:
    """The process's highest resident memory so far; on a GPU, the highest allocated there."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@torch.inference_mode()
def time_forward(model: PreTrainedModel, inputs: dict[str, Any]) -> float:
    """Seconds of one forward pass."""
    with without_dropout(model):
        _synchronize(model.device)
        start = time.perf_counter()
        model(**inputs)
        _synchronize(model.device)
        return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
