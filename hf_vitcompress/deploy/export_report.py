"""What is known about an exported program: for the terminal and as JSON."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..evaluation.latency import Latency, latency_row
from ..report.tables import format_bytes, table

if TYPE_CHECKING:
    from rich.console import RenderableType

EXPORT_REPORT_FILE = "export_report.json"


@dataclass(frozen=True)
class Port:
    """An input or output of a program; `"batch"` in its shape is free."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class ExportReport:
    """What a program takes and gives, and how close it is to torch: `export_report.json` beside it.

    Attributes:
        format: `onnx`, `torch-export`, `openvino` or `executorch`.
        model: class of the model it was made from.
        files: bytes by file name, the one to open first.
        inputs, outputs: in the program's order.
        max_batch: images it takes at most; `None`: any number.
        checked_batches: numbers of images it was run with.
        max_difference: largest absolute difference of an output from torch's, in float32.
        packages: versions it was made and run with.
    """

    format: str
    model: str
    files: dict[str, int]
    inputs: list[Port]
    outputs: list[Port]
    max_batch: int | None
    checked_batches: list[int]
    max_difference: float
    packages: dict[str, str]

    @property
    def bytes(self) -> int:
        """Of all files of the program."""
        return sum(self.files.values())

    def save(self, folder: str | Path) -> None:
        """Write `export_report.json` into `folder`."""
        text = json.dumps(asdict(self), indent=2) + "\n"
        (Path(folder) / EXPORT_REPORT_FILE).write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class ExportResult:
    """An exported model and, where one was given, the dense model it is compared with.

    Attributes:
        folder: where the program lies.
        report, dense: of both programs.
        latency: by batch size, both programs on the same runtime; empty without a dense model.
    """

    folder: Path
    report: ExportReport
    dense: ExportReport | None = None
    latency: list[Latency] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON."""
        return {**asdict(self), "folder": str(self.folder)}

    def render(self) -> "RenderableType":
        """For the terminal."""
        report, dense = self.report, self.dense
        sizes, differences, change = ["", format_bytes(report.bytes)], ["", f"{report.max_difference:.1e}"], ""
        if dense is not None:
            sizes[0], differences[0] = format_bytes(dense.bytes), f"{dense.max_difference:.1e}"
            change = f"{report.bytes / dense.bytes:.1%} kept"
        rows = [
            ("program on disk", *sizes, change),
            ("difference from torch", *differences, ""),
            *map(latency_row, self.latency),
        ]
        where = f" on {self.latency[0].device}" if self.latency else ""
        return table(("", "dense", "model", "change"), rows, title=f"{report.format}{where}")
