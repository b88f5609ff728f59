"""The report of a compression: costs, predictions and measurements, for the terminal, Markdown, JSON and PNG."""

import json
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from ..compensation.course import CompensationReport
from ..config import CompressionConfig
from ..errors import ReportError
from ..evaluation.costs import Costs, count_costs, patch_tokens
from ..evaluation.evaluation import Evaluation
from ..evaluation.latency import Latency, LatencyReport
from ..importance.report import GateReport
from ..planning.plan import CompressionPlan, GroupReport, SearchReport
from ..planning.planner import Planner
from ..runtime.files import write_text
from ..runtime.text import loss_text, printable
from ..runtime.weights import model_digest
from .outside import for_markdown, problem_of
from .provenance import Environment, Origin
from .tables import comparison_rows, format_bytes, table
from .tokens import merged_by_block

if TYPE_CHECKING:
    from rich.console import RenderableType

REPORT_NAME = "compression_report"
REPORT_FILE = f"{REPORT_NAME}.json"
FIGURE_FILE = f"{REPORT_NAME}.png"
LARGEST_FILE = 2**26
"""Bytes of a report; those of real models have some 100 kB."""


@dataclass
class CompressionReport:
    """Everything known about one compression.

    Attributes:
        model: class of the compressed model.
        dense: costs of the dense model.
        compressed: costs of the compressed model.
        parts: one entry for each group of layers that could have been compressed.
        predicted_loss: predicted KL divergence from the dense model, nats per image, scaled to losses measured on
            images that are kept out of the statistics; `None` for metrics that predict no loss.
        predicted_interval: its 95 % interval, as far as those images differ.
        patch_tokens: of one image, in the first block and in the last one; `None` if no block merges any.
        tokens: block → how many tokens it merges at its end, as in the plan.
        calibration_images: number of images behind the statistics.
        measuring_images: number of others, on which the predicted losses were corrected.
        bad_images: number of images that could not be read.
        seconds: duration of each stage.
        settings: the recipe, as `CompressionConfig.to_dict` gives it.
        budget_curve: (keep ratio, predicted loss) pairs for other budgets.
        compensation: course of the compensation; `None` without compensation.
        gates: how the scores of neurons and heads were learned; `None` if no scores were learned.
        search: what the search of `max_accuracy_drop` found for the plan; `None` for other budgets and given plans.
        timed: what a budget of time asked for, and what was predicted and measured for the plan; `None` for others.
        origin: where the dense model comes from.
        calibration_dataset: Hub id of the calibration data set; `None` if it has none.
        calibration_split: split of it that was used; `None` if it has only one.
        environment: hardware and software of the compression.
        weights: digest of the compressed model's weights, see `runtime.weights.model_digest`.
        later_weights: digest of those that the report lies beside, where they were changed after the compression, for
            instance by training.
        quantization: scheme of a later quantization; `None` if the weights are not quantized.
        evaluation: the evaluation of the compressed model; `None` until it is measured.
        latency: measured latencies, one for each batch size; empty until they are measured.
    """

    model: str
    dense: Costs
    compressed: Costs
    parts: list[GroupReport]
    predicted_loss: float | None
    calibration_images: int
    measuring_images: int = 0
    predicted_interval: tuple[float, float] | None = None
    patch_tokens: tuple[int, int] | None = None
    tokens: dict[str, int] = field(default_factory=dict)
    bad_images: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    budget_curve: list[tuple[float, float]] = field(default_factory=list)
    compensation: CompensationReport | None = None
    gates: GateReport | None = None
    search: SearchReport | None = None
    timed: LatencyReport | None = None
    origin: Origin = field(default_factory=Origin)
    calibration_dataset: str | None = None
    calibration_split: str | None = None
    environment: Environment | None = None
    weights: str | None = None
    later_weights: str | None = None
    quantization: str | None = None
    evaluation: Evaluation | None = None
    latency: list[Latency] = field(default_factory=list)

    @classmethod
    def of(
        cls, planner: Planner, plan: CompressionPlan, small: PreTrainedModel, config: CompressionConfig, **known: Any
    ) -> "CompressionReport":
        """What is known of `small`, the model of a plan, once it is built.

        Args:
            known: further fields, such as `origin`.
        """
        statistics = planner.statistics
        return cls(
            model=type(small).__name__,
            dense=planner.costs,
            compressed=count_costs(small, statistics.image_shape),
            parts=group_reports(planner, plan),
            predicted_loss=plan.predicted_loss,
            predicted_interval=plan.predicted_interval,
            patch_tokens=patch_tokens(small, planner.image_shape),
            tokens=dict(plan.tokens),
            calibration_images=statistics.images,
            measuring_images=planner.correction.images,
            bad_images=statistics.bad_images,
            settings=plan.settings(config),
            budget_curve=planner.budget_curve(config),
            calibration_dataset=statistics.settings.get("dataset"),
            calibration_split=statistics.settings.get("split"),
            search=plan.search,
            timed=plan.latency,
            weights=model_digest(small),
            **known,
        )

    @property
    def keep_ratio(self) -> float:
        """Parameters of the compressed model ÷ parameters of the dense model."""
        return self.compressed.parameters / self.dense.parameters

    @property
    def title(self) -> str:
        """Class of the compressed model, with the part that the figures describe if that is not the whole."""
        target = self.settings.get("target")
        return self.model if target is None else f"{self.model}, its {target}"

    @property
    def judgement(self) -> Evaluation | None:
        """The evaluation, if it is of the weights that the report lies beside."""
        judged = self.evaluation
        if judged is None or self.later_weights is None or judged.weights == self.later_weights:
            return judged
        return None

    @property
    def search_stage(self) -> str:
        """How far the model was compensated that the search measured; empty without compensation."""
        if self.search is None or self.settings.get("compensation", "none") == "none":
            return ""
        return "after an eighth of the compensation" if self.search.compensated else "before compensation"

    def beside(self, weights: str | None) -> "CompressionReport":
        """The report as it lies beside weights of this digest; `None` where that is not known."""
        changed = None not in (weights, self.weights) and weights != self.weights
        return replace(self, later_weights=weights if changed else None)

    def rows(self) -> list[tuple[str, str, str, str]]:
        """The rows of the before/after table: quantity, dense, compressed, change."""
        rows = comparison_rows(self.dense, self.compressed, None, None, self.judgement, self.latency, self.patch_tokens)
        if self.predicted_loss is not None:
            name = "KL predicted" if self.compensation is None else "KL predicted, before compensation"
            rows.append((name, "0", loss_text(self.predicted_loss, self.predicted_interval), ""))
        if (found := self.search) is not None:
            known = [found.dataset, found.split and f"split {found.split}", self.search_stage]
            rows.append((found.name, "", found.amount, ", ".join(filter(None, known))))
        if (timed := self.timed) is not None:
            rows.append((timed.name, "", timed.amount, timed.origin))
        if self.bad_images:
            total = f"of {self.calibration_images + self.bad_images}"
            rows.append(("left out of calibration", "", str(self.bad_images), total))
        if (gates := self.gates) is not None:
            shares = f"{gates.near_zero:.0%} below 0.1, {gates.below_half:.0%} below 0.5"
            rows.append(("scores of features", "1", f"mean {gates.points[-1].mean:.2f}", shares))
        if (done := self.compensation) is not None:
            change = f"{loss_text(done.loss_before)} before compensation"
            rows.append((f"KL held out, n={done.held_out_images}", "0", loss_text(done.loss_after), change))
        return rows

    def to_markdown(self) -> str:
        """The before/after table, the table of parts, and the tokens that blocks merge."""
        shown = for_markdown(self)
        lines = [] if self.later_weights is None else [_changed(self), ""]
        lines += ["| | dense | compressed | change |", "|---|---|---|---|"]
        lines += [f"| {' | '.join(row)} |" for row in shown.rows()]
        lines += ["", "| part | role | what is left | parameters kept | predicted loss |", "|---|---|---|---|---|"]
        lines += [
            f"| {part.name} | {part.role} | {part.kept} | {part.parameters / part.dense_parameters:.0%} | "
            f"{'' if part.predicted_loss is None else loss_text(part.predicted_loss)} |"
            for part in shown.parts
        ]
        if merged := merged_by_block(shown.tokens):
            lines += ["", merged]
        return "\n".join(lines) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with `keep_ratio`; infinite numbers are text."""
        return _without_infinities({**asdict(self), "keep_ratio": self.keep_ratio})

    @classmethod
    def load(cls, folder: str | Path) -> "CompressionReport":
        """Read `compression_report.json` in `folder`.

        Raises:
            ReportError: the file does not exist, or it is damaged.
        """
        path = Path(folder) / REPORT_FILE
        if not path.is_file():
            raise ReportError(f"There is no {REPORT_FILE} in {str(folder)!r}: it was not made by compress.")
        try:
            if path.stat().st_size > LARGEST_FILE:
                raise _damaged(path, f"it has more than {format_bytes(LARGEST_FILE)}")
            content = path.read_bytes()
        except OSError as error:
            raise ReportError(f"{str(path)!r} cannot be read: {error}.") from error
        return cls.parse(content, path)

    @classmethod
    def parse(cls, content: bytes, path: Path = Path(REPORT_FILE)) -> "CompressionReport":
        """The report of a file's content.

        Args:
            path: what an error calls the file.

        Raises:
            ReportError: it is damaged.
        """
        from pydantic import TypeAdapter, ValidationError

        try:
            report = TypeAdapter(cls).validate_json(content)
        except ValidationError as error:
            first = error.errors()[0]
            place = printable(".".join(map(str, first["loc"])))
            raise _damaged(path, f"{place + ': ' if place else ''}{first['msg']}") from error
        if (problem := problem_of(report) or _gaps(report)) is not None:
            raise _damaged(path, problem)
        return report

    def save(self, folder: str | Path) -> None:
        """Write `compression_report.json`, `.md` and `.png` into `folder`."""
        from .figures import compression_figure, save_figure

        path = Path(folder) / REPORT_NAME
        for suffix, text in ((".json", json.dumps(self.to_dict(), indent=2) + "\n"), (".md", self.to_markdown())):
            write_text(path.with_suffix(suffix), text)
        title = f"{self.title}: {self.keep_ratio:.1%} of the parameters kept"
        point = None if self.predicted_loss is None else (self.keep_ratio, self.predicted_loss)
        course = () if self.compensation is None else self.compensation.points
        save_figure(compression_figure(title, self.parts, self.budget_curve, point, course), path.with_suffix(".png"))

    def render(self) -> "RenderableType":
        """A rich table for the terminal."""
        return table(("", "dense", "compressed", "change"), self.rows(), title=self.title)

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=100)
        with console.capture() as capture:
            console.print(self.render())
        return capture.get()


def _damaged(path: Path, problem: str) -> ReportError:
    return ReportError(f"{str(path)!r} is damaged: {printable(problem)}. Restore it, or compress the model again.")


def _gaps(report: CompressionReport) -> str | None:
    """What figures are missing or impossible, on which others depend."""
    if report.dense.parameters < 1:
        return "dense.parameters: a model has at least 1"
    if not report.parts or any(part.dense_parameters < 1 for part in report.parts):
        return "parts: there are none, or one has no dense_parameters"
    for name, course in (("gates", report.gates), ("compensation", report.compensation)):
        if course is not None and not course.points:
            return f"{name}.points: there are none"
    if not all(math.isfinite(seconds) for seconds in report.seconds.values()):
        return "seconds: they are finite"
    if report.search is not None and not -1 <= report.search.drop <= 1:
        return "search.drop: it is between -1 and 1"
    judged = report.evaluation
    if judged is not None and judged.top1 is not None and not 0 <= judged.top1.value <= 1:
        return "evaluation.top1: it is between 0 and 1"
    return None


def _without_infinities(value: Any) -> Any:
    """JSON has no infinity; the interval of a single image is one, and is written as a string."""
    if isinstance(value, dict):
        return {key: _without_infinities(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_infinities(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _changed(report: CompressionReport) -> str:
    """What the figures of a model are of that was changed after its compression."""
    unknown = "" if report.judgement is not None else " What it is worth now was not measured."
    return (
        "The weights were changed after the compression, for instance by training: losses, and the drop that a search "
        f"found, are of before.{unknown} "
        "`vitcompress evaluate FOLDER --data … --against … --update-card` measures it."
    )


def group_reports(planner: Planner, plan: CompressionPlan) -> list[GroupReport]:
    """Each group's shapes and its share of the scaled predicted loss."""
    weights = planner.correction.weights
    total = planner.predicted(plan, weights)
    loss = planner.correction.loss(total)
    reports = []
    for part in planner.groups:
        shapes = plan.shapes_of(part)
        choice = part.choice(shapes)
        own = choice.error * weights.get(part.role, 1.0)
        reports.append(
            GroupReport(
                name=part.name,
                role=part.role,
                block=part.block,
                layers=[layer.name for layer in part.layers],
                kept=part.describe(shapes),
                shapes=shapes,
                parameters=choice.parameters,
                dense_parameters=part.dense_parameters,
                predicted_loss=None if loss is None else loss * own / total if total else 0.0,
            )
        )
    return reports
