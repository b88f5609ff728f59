"""Two checkpoints held against each other: what `vitcompress evaluate` shows."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..images.images import ImageSource
from ..images.sources import open_images
from ..model.loading import load_image_processor, load_model
from ..model.towers import compressed_part
from ..publish.cards import write_card
from ..report.provenance import is_repo_id
from ..report.report import CompressionReport
from ..report.tables import comparison_rows, table
from ..runtime.distributed import local_work, new_accelerator
from ..runtime.weights import disk_bytes
from .costs import Costs, count_costs
from .evaluation import Evaluation, evaluate_model
from .latency import LATENCY_BATCHES, Latency, measure_latency

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
    latency: list[Latency]
    precision: str


def compare_checkpoints(
    name: str,
    data: str,
    against: str | None = None,
    latency: bool = False,
    batch_size: int = 32,
    precision: str = "float32",
    progress: bool = True,
    update: bool = False,
    dataset: str | None = None,
) -> tuple["RenderableType", Comparison]:
    """Evaluate a checkpoint (Hub id or folder), against another one where given; returns a table and the figures.

    Several processes share the images; the main one times the models. Costs and times are for images of their shape.
    With `update` the figures also go into report and card of the checkpoint, a folder made by compress; `dataset` is
    the Hub id to name the images by there.

    Raises:
        ConfigError: latency was asked for without a model to compare with, or `dataset` is no Hub id.
        ReportError: there is no report to update.
    """
    if latency and against is None:
        raise ConfigError("--latency compares two models in one run; name the other with --against.")
    if dataset is not None and not is_repo_id(dataset):
        raise ConfigError(f"--dataset takes the Hub id of a data set, such as uoft-cs/cifar10, not {dataset!r}.")
    known = CompressionReport.load(name) if update else None
    accelerator = new_accelerator()
    with local_work(accelerator, "The start"):
        model = load_model(name, accelerator)
        dense = None if against is None else load_model(against, accelerator)
        images = open_images(data, label2id=model.config.label2id)
        processor = load_image_processor(name) or load_image_processor(against or name)
    evaluation = evaluate_model(model, images, processor, dense, batch_size, precision, progress, accelerator)
    timed = latency and accelerator.is_main_process
    shape = _image_shape(images, processor, batch_size)
    figures = Comparison(
        model=name,
        against=against,
        data=images.name,
        costs=count_costs(compressed_part(model, model).model, shape),
        dense_costs=None if dense is None else count_costs(compressed_part(dense, model).model, shape),
        disk_bytes=_disk_bytes(name),
        dense_disk_bytes=None if against is None else _disk_bytes(against),
        evaluation=evaluation,
        latency=[measure_latency(dense, model, n, shape=shape) for n in sorted({LATENCY_BATCHES[0], batch_size})]
        if timed and dense is not None
        else [],
        precision=precision,
    )
    if known is not None and accelerator.is_main_process:
        known.evaluation = replace(evaluation, dataset=dataset or evaluation.dataset)
        known.latency = figures.latency or known.latency
        known.save(name)
        write_card(name, known)
    rows = comparison_rows(
        figures.dense_costs, figures.costs, figures.dense_disk_bytes, figures.disk_bytes, evaluation, figures.latency
    )
    return table(("", "dense", "model", "change"), rows, title=Path(name).name), figures


def _image_shape(images: ImageSource, processor: Any, batch_size: int) -> tuple[int, ...]:
    """Of one image's `pixel_values`, in the first batch."""
    batch = next(replace(images, bad_images=[]).batches(processor, batch_size))
    return tuple(batch.pixel_values.shape[1:])


def _disk_bytes(name: str) -> int | None:
    return disk_bytes(name) if Path(name).is_dir() else None
