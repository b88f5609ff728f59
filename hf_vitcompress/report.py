"""What was kept, what it costs, what it predicts and what was measured: for the terminal, Markdown, JSON and PNG."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .costs import Costs
from .evaluation import Evaluation, Interval
from .files import atomic_path
from .gate_report import GateReport
from .latency import Latency

if TYPE_CHECKING:
    from rich.console import RenderableType

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class PartReport:
    """One part of a block in the result: the layers that were compressed together.

    Attributes:
        name, role, block: of the part (see `parts`).
        layers: names of its layers.
        kept: what is left, in a few words.
        shapes: the same by module name, as in the plan; empty where it stayed dense.
        parameters, dense_parameters: weight entries, biases not counted.
        predicted_loss: its share of the predicted loss; `None` where no loss is predicted.
    """

    name: str
    role: str
    block: int
    layers: list[str]
    kept: str
    shapes: dict[str, dict[str, int]]
    parameters: int
    dense_parameters: int
    predicted_loss: float | None


@dataclass(frozen=True)
class CompensationPoint:
    """Divergence `loss` from the dense model on held-out images, after `seconds` and `images` of a stage."""

    stage: str
    seconds: float
    images: int
    loss: float


@dataclass
class CompensationReport:
    """What compensation did.

    Attributes:
        method: the config's `compensation`.
        images: different images it learnt from.
        held_out_images: images that judged it.
        points: its course, the state before it first.
        seconds: of this run; a run that went on from a checkpoint counts its own part.
    """

    method: str
    images: int
    held_out_images: int
    points: list[CompensationPoint]
    seconds: float

    @property
    def loss_before(self) -> float:
        return self.points[0].loss

    @property
    def loss_after(self) -> float:
        """Of the state that was kept, the best."""
        return min(point.loss for point in self.points)


@dataclass
class CompressionReport:
    """Everything known about one compression.

    Attributes:
        model: class of the compressed model.
        dense, compressed: costs of both.
        parts: one entry for each group of layers that could have been compressed.
        predicted_loss: KL from the dense model, nats per image, scaled to losses measured on calibration images;
            `None` for metrics that predict no loss.
        calibration_images: images the statistics come from.
        bad_images: images that could not be read.
        seconds: by stage.
        settings: the recipe.
        budget_curve: (keep ratio, predicted loss) pairs for other budgets.
        compensation: its course; `None` if there was none.
        gates: how the scores of neurons and heads were learned; `None` if they were not.
        evaluation, latency: filled in by whoever measures them.
    """

    model: str
    dense: Costs
    compressed: Costs
    parts: list[PartReport]
    predicted_loss: float | None
    calibration_images: int
    bad_images: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    budget_curve: list[tuple[float, float]] = field(default_factory=list)
    compensation: CompensationReport | None = None
    gates: GateReport | None = None
    evaluation: Evaluation | None = None
    latency: Latency | None = None

    @property
    def keep_ratio(self) -> float:
        return self.compressed.parameters / self.dense.parameters

    def rows(self) -> list[tuple[str, str, str, str]]:
        """The before/after table: quantity, dense, compressed, change."""
        rows = comparison_rows(self.dense, self.compressed, None, None, self.evaluation, self.latency)
        if self.predicted_loss is not None:
            name = "KL predicted" if self.compensation is None else "KL predicted, before compensation"
            rows.append((name, "0", f"{self.predicted_loss:.4f}", ""))
        if (gates := self.gates) is not None:
            shares = f"{gates.near_zero:.0%} below 0.1, {gates.below_half:.0%} below 0.5"
            rows.append(("scores of features", "1", f"mean {gates.points[-1].mean:.2f}", shares))
        if (done := self.compensation) is not None:
            change = f"{done.loss_before:.4f} before compensation"
            rows.append((f"KL held out, n={done.held_out_images}", "0", f"{done.loss_after:.4f}", change))
        return rows

    def to_markdown(self) -> str:
        lines = ["| | dense | compressed | change |", "|---|---|---|---|"]
        lines += [f"| {' | '.join(row)} |" for row in self.rows()]
        lines += ["", "| part | role | what is left | parameters kept | predicted loss |", "|---|---|---|---|---|"]
        lines += [
            f"| {part.name} | {part.role} | {part.kept} | {part.parameters / part.dense_parameters:.0%} | "
            f"{_loss(part.predicted_loss)} |"
            for part in self.parts
        ]
        return "\n".join(lines) + "\n"

    def to_dict(self) -> dict[str, Any]:
        return _without_infinities({**asdict(self), "keep_ratio": self.keep_ratio})

    def save(self, folder: str | Path) -> None:
        """Write `compression_report.json`, `.md` and `.png` into `folder`."""
        from .plots import compression_figure, save_figure

        path = Path(folder) / "compression_report"
        for suffix, text in ((".json", json.dumps(self.to_dict(), indent=2) + "\n"), (".md", self.to_markdown())):
            with atomic_path(path.with_suffix(suffix)) as temporary:
                temporary.write_text(text, encoding="utf-8")
        title = f"{self.model}: {self.keep_ratio:.1%} of the parameters kept"
        point = None if self.predicted_loss is None else (self.keep_ratio, self.predicted_loss)
        course = () if self.compensation is None else self.compensation.points
        save_figure(compression_figure(title, self.parts, self.budget_curve, point, course), path.with_suffix(".png"))

    def render(self) -> "RenderableType":
        """A rich table for the terminal."""
        return table(("", "dense", "compressed", "change"), self.rows(), title=self.model)

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=100)
        with console.capture() as capture:
            console.print(self.render())
        return capture.get()


def comparison_rows(
    dense: Costs | None,
    model: Costs,
    dense_disk: int | None,
    disk: int | None,
    evaluation: Evaluation | None,
    latency: Latency | None,
) -> list[tuple[str, str, str, str]]:
    """Rows (quantity, dense, model, change) of whatever is known."""
    counts: list[tuple[str, int | None, int | None, Callable[[int], str]]] = [
        ("parameters", None if dense is None else dense.parameters, model.parameters, _grouped),
        ("MACs per image", None if dense is None else dense.macs, model.macs, _grouped),
        ("weights in memory", None if dense is None else dense.bytes, model.bytes, format_bytes),
        ("weights on disk", dense_disk, disk, format_bytes),
    ]
    rows = []
    for name, before, after, show in counts:
        if after is not None:
            change = "" if before is None else f"{after / before:.1%} kept"
            rows.append((name, "" if before is None else show(before), show(after), change))
    rows += _evaluation_rows(evaluation)
    if latency is not None:
        spread = f"{latency.ratio:.2f} × ({latency.ratio_low:.2f} to {latency.ratio_high:.2f})"
        times = (f"{latency.dense * 1000:.1f} ms", f"{latency.compressed * 1000:.1f} ms")
        rows.append((f"latency, batch {latency.batch_size}", *times, spread))
    return rows


def table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]], title: str | None = None) -> "RenderableType":
    from rich.table import Table

    grid = Table(*header, title=title)
    for column in grid.columns[1:]:
        column.justify = "right"
    for row in rows:
        grid.add_row(*row)
    return grid


def format_bytes(count: int) -> str:
    """Decimal units, as file managers and the Hub use them."""
    size, unit = float(count), "B"
    for larger in ("kB", "MB", "GB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"


def format_percent(interval: Interval) -> str:
    return f"{interval.value:.2%} ({interval.low:.2%} to {interval.high:.2%})"


def _evaluation_rows(evaluation: Evaluation | None) -> list[tuple[str, str, str, str]]:
    if evaluation is None:
        return [("top-1", NOT_MEASURED, NOT_MEASURED, "")]
    rows = []
    if evaluation.top1 is not None:
        before = "" if evaluation.reference_top1 is None else format_percent(evaluation.reference_top1)
        change = ""
        if (drop := evaluation.top1_drop) is not None:
            value, low, high = (0.0 - 100 * x for x in (drop.value, drop.high, drop.low))
            change = f"{value:+.2f} points ({low:+.2f} to {high:+.2f})"
        rows.append((f"top-1, n={evaluation.images}", before, format_percent(evaluation.top1), change))
    if evaluation.agreement is not None:
        rows.append(("agreement", "", format_percent(evaluation.agreement), ""))
    if evaluation.kl is not None:
        kl = evaluation.kl
        name = "KL measured" if evaluation.agreement is not None else "relative error"
        rows.append((name, "0", f"{kl.value:.4f} ({kl.low:.4f} to {kl.high:.4f})", ""))
    return rows


def _without_infinities(value: Any) -> Any:
    """JSON has no infinity; the interval of a single image is one."""
    if isinstance(value, dict):
        return {key: _without_infinities(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_infinities(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _grouped(count: int) -> str:
    return f"{count:,}"


def _loss(value: float | None) -> str:
    return "" if value is None else f"{value:.2e}"
