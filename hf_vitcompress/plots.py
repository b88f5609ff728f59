"""Figures of a compression: ranks by layer, predicted loss over budgets, the course of compensation.

Needs matplotlib, imported on first use.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .report import CompensationPoint, LayerReport


def compression_figure(
    title: str,
    layers: Sequence["LayerReport"],
    budget_curve: Sequence[tuple[float, float]] = (),
    point: tuple[float, float] | None = None,
    compensation: Sequence["CompensationPoint"] = (),
) -> "Figure":
    """Rank and share of parameters kept by layer; beside it predicted loss over keep ratios, `point` marked.

    And held-out loss over the seconds of compensation, where there was one.
    """
    from matplotlib.figure import Figure

    panels = 1 + bool(budget_curve) + bool(compensation)
    figure = Figure(figsize=(7 + 4 * (panels - 1), 4.2), layout="constrained")
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    kept_by_layer(axes.pop(0), layers)
    if budget_curve:
        over_budget = axes.pop(0)
        loss_over_budget(over_budget, budget_curve)
        if point is not None:
            over_budget.plot(*point, "o", color="C3", label="this plan")
            over_budget.legend(frameon=False)
    if compensation:
        loss_over_seconds(axes.pop(0), compensation)
    figure.suptitle(title)
    return figure


def kept_by_layer(axes: "Axes", layers: Sequence["LayerReport"]) -> None:
    """A map of blocks × kinds of layer: the share of parameters kept in colour, the rank written in."""
    roles = list(dict.fromkeys(layer.role for layer in layers))
    blocks = sorted({layer.block for layer in layers})
    shares = [[float("nan")] * len(blocks) for _ in roles]
    for layer in layers:
        row, column = roles.index(layer.role), blocks.index(layer.block)
        shares[row][column] = layer.parameters / layer.dense_parameters
        text = "dense" if layer.rank is None else str(layer.rank)
        dark = shares[row][column] < 0.55
        axes.text(column, row, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")
    image = axes.imshow(shares, vmin=0, vmax=1, aspect="auto", cmap="viridis")
    axes.set_yticks(range(len(roles)), roles)
    axes.set_xticks(range(len(blocks)), [str(block) for block in blocks])
    axes.set_xlabel("block")
    axes.set_title("rank of each layer")
    axes.figure.colorbar(image, ax=axes, label="share of its parameters kept")


def loss_over_budget(axes: "Axes", curve: Sequence[tuple[float, float]]) -> None:
    axes.plot(*zip(*curve, strict=True), marker=".")
    axes.set_yscale("log")
    axes.grid(alpha=0.3, which="both")
    axes.set_xlabel("keep ratio (whole model)")
    axes.set_ylabel("predicted KL from the dense model (nats)")
    axes.set_title("predicted loss, scaled to measured losses")


def loss_over_seconds(axes: "Axes", points: Sequence["CompensationPoint"]) -> None:
    for stage in dict.fromkeys(point.stage for point in points):
        course = [point for point in points if point.stage == stage]
        axes.plot([point.seconds for point in course], [point.loss for point in course], marker=".", label=stage)
    axes.set_yscale("log")
    axes.grid(alpha=0.3, which="both")
    axes.set_xlabel("seconds of compensation")
    axes.set_ylabel("loss on held-out images (nats)")
    axes.set_title("compensation")
    axes.legend(frameon=False)


def save_figure(figure: "Figure", path: str | Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)
