"""Figures as rows of text, and rows as tables for the terminal."""

import itertools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..evaluation.costs import Costs
from ..evaluation.evaluation import Evaluation
from ..evaluation.intervals import Interval
from ..evaluation.latency import Latency, latency_row
from ..planning.plan import GroupReport
from ..runtime.text import loss_text, printable

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType

NOT_MEASURED = "not measured"

WIDEST = 10_000
"""Columns of a table that nothing bounds."""


def comparison_rows(
    dense: Costs | None,
    model: Costs,
    dense_disk: int | None,
    disk: int | None,
    evaluation: Evaluation | None,
    latencies: Sequence[Latency],
    patch_tokens: tuple[int, int] | None = None,
) -> list[tuple[str, str, str, str]]:
    """Rows (quantity, dense, model, change) of whatever is known.

    Args:
        patch_tokens: of one image, in the first block and in the last one, where tokens are merged.
    """
    tokens, tokens_left = patch_tokens or (None, None)
    counts: list[tuple[str, int | None, int | None, Callable[[int], str]]] = [
        ("parameters", None if dense is None else dense.parameters, model.parameters, _grouped),
        ("MACs per image", None if dense is None else dense.macs, model.macs, _grouped),
        ("patch tokens in the last block", tokens, tokens_left, _grouped),
        ("weights in memory", None if dense is None else dense.bytes, model.bytes, format_bytes),
        ("weights on disk", dense_disk, disk, format_bytes),
    ]
    rows = []
    for name, before, after, show in counts:
        if after is not None:
            change = f"{after / before:.1%} kept" if before else ""
            rows.append((name, "" if before is None else show(before), show(after), change))
    rows += _evaluation_rows(evaluation)
    return [*rows, *map(latency_row, latencies)]


def table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]], title: str | None = None) -> "RenderableType":
    """A rich table, all columns but the first aligned to the right."""
    from rich.table import Table
    from rich.text import Text

    # Not as plain strings, in which rich would read names of files and metrics as mark-up.
    grid = Table(*header, title=None if title is None else Text(printable(title), style="table.title"))
    for column in grid.columns:
        column.overflow = "fold"  # of a name that is cut nobody knows which it is
    for column in grid.columns[1:]:
        column.justify = "right"
    for row in rows:
        grid.add_row(*(Text(printable(cell)) for cell in row))
    return grid


@dataclass(frozen=True)
class PartsTable:
    """What is left of each part, and what that costs; names that do not fit lose what they have in common."""

    parts: Sequence[GroupReport]
    title: str

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "Iterator[RenderableType]":
        whole = self._table("")
        fits = console.measure(whole, options=options.update(width=WIDEST)).maximum <= options.max_width
        yield whole if fits else self._table(common_prefix([part.name for part in self.parts]))

    def _table(self, prefix: str) -> "RenderableType":
        rows = [
            (
                part.name.removeprefix(prefix),
                part.kept,
                f"{part.parameters / part.dense_parameters:.0%}",
                "" if part.predicted_loss is None else loss_text(part.predicted_loss),
            )
            for part in self.parts
        ]
        whose = f"part of {prefix.removesuffix('.')}" if prefix else "part"
        return table((whose, "what is left", "kept", "predicted KL"), rows, title=self.title)


def common_prefix(names: Sequence[str]) -> str:
    """The first parts that all dotted names share, with the dot behind them; "" where there are none."""
    whole = [name.rpartition(".")[0].split(".") for name in names]
    shared = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*whole, strict=False))
    return "".join(f"{parts[0]}." for parts in shared if parts[0])


def show(renderable: "RenderableType") -> None:
    """Print a table: as wide as the terminal, or as `COLUMNS` says; in a pipe or a file as wide as it is."""
    from rich.console import Console

    narrow = sys.stdout.isatty() or "COLUMNS" in os.environ
    Console(width=None if narrow else WIDEST).print(renderable)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, with a line break at its end."""
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows]) + "\n"


def format_bytes(count: int) -> str:
    """Decimal units, as file managers and the Hub use them."""
    size, unit = float(count), "B"
    for larger in ("kB", "MB", "GB"):
        if size < 999.95:  # what is above would be rounded to 1000.0
            break
        size, unit = size / 1000, larger
    return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"


def format_percent(interval: Interval) -> str:
    """Value and ends, in per cent."""
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
        labelled = evaluation.images if evaluation.labelled is None else evaluation.labelled
        rows.append((f"top-1, n={labelled}", before, format_percent(evaluation.top1), change))
    if evaluation.agreement is not None:
        rows.append(("agreement", "", format_percent(evaluation.agreement), ""))
    if evaluation.kl is not None:
        kl = evaluation.kl
        name = "KL measured" if evaluation.agreement is not None else "relative error"
        rows.append((name, "0", loss_text(kl.value, (kl.low, kl.high)), ""))
    if evaluation.bad_images:
        rows.append(("images left out", "", str(evaluation.bad_images), ""))
    if evaluation.labels is not None:
        rows.append(("labels matched", "", evaluation.labels, ""))
    if evaluation.split is not None:
        rows.append(("split", "", evaluation.split, ""))
    return [*rows, *_metric_rows(evaluation)]


def _metric_rows(evaluation: Evaluation) -> list[tuple[str, str, str, str]]:
    rows = []
    for name, value in evaluation.metrics.items():
        before = evaluation.reference_metrics.get(name)
        known = ("", "") if before is None else (f"{before:.4f}", f"{value - before:+.4f}")
        rows.append((name, known[0], f"{value:.4f}", known[1]))
    return rows


def _grouped(count: int) -> str:
    return f"{count:,}"
