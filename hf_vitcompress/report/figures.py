"""Figures of a compression: what is left of each part, predicted loss over budgets, the course of compensation.

Needs matplotlib, imported on first use.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError, shown
from ..runtime.files import atomic_path
from ..runtime.packages import require_package

SOFTWARE = "hf_vitcompress"
"""What the metadata of a PNG name, so that a figure of this package is known again."""

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..compensation.course import CompensationPoint
    from ..planning.plan import GroupReport


def compression_figure(
    title: str,
    parts: Sequence["GroupReport"],
    budget_curve: Sequence[tuple[float, float]] = (),
    point: tuple[float, float] | None = None,
    compensation: Sequence["CompensationPoint"] = (),
    latency_curve: Sequence[tuple[float, float]] = (),
    latency_point: tuple[float, float] | None = None,
) -> "Figure":
    """What is left of each part; beside it predicted loss over keep ratios and over milliseconds, the plan marked.

    And held-out loss over the seconds of compensation, where there was one.
    """
    from matplotlib.figure import Figure

    panels = 1 + bool(budget_curve) + bool(latency_curve) + bool(compensation)
    figure = Figure(figsize=(7 + 4 * (panels - 1), 4.2), layout="constrained")
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    kept_by_group(axes.pop(0), parts)
    curves = (
        (budget_curve, point, "keep ratio (whole model)"),
        (latency_curve, latency_point, "milliseconds for a batch"),
    )
    for curve, own, bound in curves:
        if curve:
            over_budget = axes.pop(0)
            loss_over_budget(over_budget, curve, bound)
            if own is not None:
                over_budget.plot(*own, "o", color="C3", label="this plan")
                over_budget.legend(frameon=False)
    if compensation:
        loss_over_seconds(axes.pop(0), compensation)
    figure.suptitle(title)
    return figure


def kept_by_group(axes: "Axes", parts: Sequence["GroupReport"]) -> None:
    """A map of blocks × kinds of part: the share of parameters kept in colour, the rank or width written in."""
    roles = list(dict.fromkeys(part.role for part in parts))
    blocks = sorted({part.block for part in parts})
    shares = [[float("nan")] * len(blocks) for _ in roles]
    for part in parts:
        row, column = roles.index(part.role), blocks.index(part.block)
        shares[row][column] = part.parameters / part.dense_parameters
        dark = shares[row][column] < 0.55
        colour = "white" if dark else "black"
        axes.text(column, row, _short(part), ha="center", va="center", fontsize=6, color=colour)
    image = axes.imshow(shares, vmin=0, vmax=1, aspect="auto", cmap="viridis")
    axes.set_yticks(range(len(roles)), roles)
    axes.set_xticks(range(len(blocks)), [str(block) for block in blocks])
    axes.set_xlabel("block")
    axes.set_title("ranks (r) and widths (w) that are left")
    axes.figure.colorbar(image, ax=axes, label="share of its parameters kept")


def _short(part: "GroupReport") -> str:
    """Width and ranks, one under the other."""
    if not part.shapes:
        return "dense"
    widths = {v for shape in part.shapes.values() for k, v in shape.items() if k.endswith("features")}
    if 0 in widths:
        return "removed"
    ranks = [str(v) for shape in part.shapes.values() for k, v in shape.items() if k.endswith("rank")]
    lines = [f"w {widths.pop()}"] if widths else []
    return "\n".join(lines + [f"r {rank}" for rank in ranks])


def loss_over_budget(axes: "Axes", curve: Sequence[tuple[float, float]], bound: str) -> None:
    """Predicted loss over what a budget bounds, of (bound, loss) pairs."""
    axes.plot(*zip(*curve, strict=True), marker=".")
    axes.set_yscale("log")
    axes.grid(alpha=0.3, which="both")
    axes.set_xlabel(bound)
    axes.set_ylabel("predicted KL from the dense model (nats)")
    axes.set_title("predicted loss, scaled to measured losses")


def loss_over_seconds(axes: "Axes", points: Sequence["CompensationPoint"]) -> None:
    """Held-out loss over the seconds of compensation, a line for each stage."""
    for stage in dict.fromkeys(point.stage for point in points):
        course = [point for point in points if point.stage == stage]
        axes.plot([point.seconds for point in course], [point.loss for point in course], marker=".", label=stage)
    axes.set_yscale("log")
    axes.grid(alpha=0.3, which="both")
    axes.set_xlabel("seconds of compensation")
    axes.set_ylabel("loss on held-out images (nats)")
    axes.set_title("compensation")
    axes.legend(frameon=False)


def check_figure(path: str | Path) -> None:
    """That a figure can be drawn, into a file of that name; see `save_figure`.

    Raises:
        ConfigError: the name says that it is no PNG.
        MissingPackageError: matplotlib is missing.
    """
    if Path(path).suffix.lower() != ".png":
        raise ConfigError(f"The figure is a PNG; give it a name that ends in .png, not {shown(str(path))}.")
    require_package("matplotlib.figure", "The figure")


def save_figure(figure: "Figure", path: str | Path) -> None:
    """Write a PNG; an interruption leaves no half of one."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130, metadata={"Software": SOFTWARE})


def is_our_figure(path: Path) -> bool:
    """Whether a file is a PNG that `save_figure` wrote."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return image.info.get("Software") == SOFTWARE
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
        return False
