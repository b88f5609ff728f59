"""The report of an exported program: for the terminal and as JSON."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..evaluation.latency import Latency, latency_row
from ..report.tables import format_bytes, table
from ..runtime.files import write_text
from ..runtime.manifest import EXPORT_REPORT_FILE

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class Port:
    """An input or output of a program; in its shape, `"batch"` stands for any number of images."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class ExportReport:
    """Inputs and outputs of a program, and its difference from PyTorch; saved beside it as `export_report.json`.

    Attributes:
        format: `onnx`, `torch-export`, `openvino` or `executorch`.
        model: class of the model it was made from.
        files: size in bytes by file name; the file to open comes first.
        inputs: the program's inputs, in its order.
        outputs: the program's outputs, in its order.
        max_batch: largest number of images that it takes; `None`: any number.
        checked_batches: batch sizes with which it was run.
        max_difference: largest absolute difference of an output from PyTorch's, in float32.
        packages: versions of the packages that made and ran it.
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
        write_text(Path(folder) / EXPORT_REPORT_FILE, json.dumps(asdict(self), indent=2) + "\n")


@dataclass(frozen=True)
class ExportResult:
    """An exported model and, if one was given, the dense model that it is compared with.

    Attributes:
        folder: folder of the program.
        report: report of the program.
        dense: report of the dense model's program; `None` without a dense model.
        latency: latency of both programs in the same runtime, for each batch size; empty without a dense model.
    """

    folder: Path
    report: ExportReport
    dense: ExportReport | None = None
    latency: list[Latency] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON."""
        return {**asdict(self), "folder": str(self.folder)}

    def render(self) -> "RenderableType":
        """A rich table for the terminal."""
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
