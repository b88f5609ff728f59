"""Figures of learned importance scores. Needs matplotlib, imported by whoever makes the axes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .importance.report import HALF, NEAR_ZERO

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor

    from .importance.report import GateLayer, GatePoint


def sparsity_over_seconds(axes: "Axes", points: Sequence["GatePoint"]) -> None:
    """Shares of small scores over the seconds of learning; on a second axis the loss beside the penalty."""
    seconds = [point.seconds for point in points]
    axes.plot(seconds, [point.below_half for point in points], marker=".", label=f"scores below {HALF}")
    axes.plot(seconds, [point.near_zero for point in points], marker=".", label=f"scores below {NEAR_ZERO}")
    axes.set(xlabel="seconds of learning", ylabel="share of all scores", ylim=(0, 1), title="sparsity")
    axes.grid(alpha=0.3)
    losses = axes.twinx()
    losses.plot(seconds, [point.loss for point in points], color="C3", linewidth=1, label="loss (right)")
    losses.set_ylabel("divergence from the dense model (nats)")
    losses.set_ylim(bottom=0)
    lines = [*axes.get_lines(), *losses.get_lines()]
    axes.legend(lines, [str(line.get_label()) for line in lines], frameon=False)


def sparsity_by_layer(axes: "Axes", layers: Sequence["GateLayer"]) -> None:
    """Shares of small scores in each layer, in the model's order."""
    places = range(len(layers))
    axes.bar(places, [layer.below_half for layer in layers], color="C0", label=f"below {HALF}")
    axes.bar(places, [layer.near_zero for layer in layers], color="C1", label=f"below {NEAR_ZERO}")
    axes.set_xticks(places, [_short(layer.name) for layer in layers], rotation=90, fontsize=7)
    axes.set(ylabel="share of the layer's scores", ylim=(0, 1), title="by layer")
    axes.legend(framealpha=0.8)


def spread(axes: "Axes", scores: "Tensor") -> None:
    """Histogram of the sizes of scores (n,)."""
    axes.hist(scores.abs().numpy(), bins=50, range=(0, max(1.2, float(scores.abs().max()))))
    axes.set(xlabel="size of the score", ylabel="features", yscale="log", title="scores")


def _short(name: str) -> str:
    """`3 fc2` for `vit.layers.3.mlp.fc2`."""
    parts = name.split(".")
    return " ".join([next((part for part in parts if part.isdigit()), ""), parts[-1]]).strip()
