"""Two checkpoints held against each other: what `vitcompress evaluate` shows."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .costs import Costs, count_costs, disk_bytes
from .data import open_images
from .distribution import local_work, new_accelerator
from .errors import ConfigError
from .evaluation import Evaluation, evaluate_model
from .latency import Latency, measure_latency
from .loading import load_image_processor, load_model
from .report import comparison_rows, table

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass
class Comparison:
    """Figures of a model and, where one was given, of the dense model it is compared with."""

    model: str
    against: str | None
    data: str
    costs: Costs
    dense_costs: Costs | None
    disk_bytes: int | None
    dense_disk_bytes: int | None
    evaluation: Evaluation
    latency: Latency | None
    precision: str


def compare_checkpoints(
    name: str,
    data: str,
    against: str | None = None,
    latency: bool = False,
    batch_size: int = 32,
    precision: str = "float32",
    progress: bool = True,
) -> tuple["RenderableType", Comparison]:
    """Evaluate a checkpoint (Hub id or folder), against another one where given; returns a table and the figures.

    Several processes share the images; the main one times the models.

    Raises:
        ConfigError: latency was asked for without a model to compare with.
    """
    if latency and against is None:
        raise ConfigError("--latency compares two models in one run; name the other with --against.")
    accelerator = new_accelerator()
    with local_work(accelerator, "The start"):
        model = load_model(name, accelerator)
        dense = None if against is None else load_model(against, accelerator)
        images = open_images(data, label2id=model.config.label2id)
        processor = load_image_processor(name) or load_image_processor(against or name)
    evaluation = evaluate_model(model, images, processor, dense, batch_size, precision, progress, accelerator)
    timed = latency and accelerator.is_main_process
    figures = Comparison(
        model=name,
        against=against,
        data=images.name,
        costs=count_costs(model),
        dense_costs=None if dense is None else count_costs(dense),
        disk_bytes=_disk_bytes(name),
        dense_disk_bytes=None if against is None else _disk_bytes(against),
        evaluation=evaluation,
        latency=measure_latency(dense, model, batch_size) if timed and dense is not None else None,
        precision=precision,
    )
    rows = comparison_rows(
        figures.dense_costs, figures.costs, figures.dense_disk_bytes, figures.disk_bytes, evaluation, figures.latency
    )
    return table(("", "dense", "model", "change"), rows, title=Path(name).name), figures


def _disk_bytes(name: str) -> int | None:
    return disk_bytes(name) if Path(name).is_dir() else None
