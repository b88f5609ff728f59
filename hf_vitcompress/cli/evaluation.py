"""`vitcompress evaluate`."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ConfigError
from .data_options import with_data_options
from .help import IMAGES_PANEL
from .options import Quiet, holds, silence_libraries

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..evaluation.comparison import Comparison
    from ..images.options import DataOptions
    from ..report.report import CompressionReport


@with_data_options("test, else validation")
def evaluate_checkpoint(
    options: "DataOptions",
    model: Annotated[str, typer.Argument(help="Model to judge: a Hub id or a folder.", metavar="MODEL")],
    data: Annotated[
        str,
        typer.Option(
            "--data", help="Test images: a folder, a parquet file or a Hub data set.", rich_help_panel=IMAGES_PANEL
        ),
    ],
    against: Annotated[str | None, typer.Option(help="Dense model to compare with.")] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Metric of the evaluate library, such as f1, or its folder; repeatable."),
    ] = None,
    latency: Annotated[bool, typer.Option("--latency", help="Time both models, alternately.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in a batch, also for --latency.")] = 32,
    precision: Annotated[str, typer.Option(help="float32, bfloat16 or auto.")] = "float32",
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures here.")] = None,
    update_card: Annotated[
        bool, typer.Option("--update-card", help="Also write them into report and card of MODEL, a folder of compress.")
    ] = False,
    dataset: Annotated[
        str | None, typer.Option(help="Hub id of the images, for the card, where --data is a local copy.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Judge a model: accuracy with its interval, and against a dense model agreement, KL, size and speed.

    Example: vitcompress evaluate deit-40 --data test/ --against facebook/deit-base-patch16-224 --latency
    """
    from ..evaluation.comparison import Candidate, compare
    from ..images.options import TESTING
    from ..images.sources import open_images
    from ..model.loading import load_image_processor
    from ..report.report import CompressionReport
    from ..report.tables import show
    from ..runtime.devices import check_precision
    from ..runtime.distributed import local_work, new_accelerator
    from ..runtime.files import check_file, write_text
    from ..runtime.outputs import check_renewable

    if quiet:
        silence_libraries()
    _check_flags(latency, against, dataset, update_card)
    check_precision(precision)
    if json_file is not None:
        models = {"the model": model, "the dense model (--against)": against}
        check_file(json_file, {**models, "the images": data}, tuple(models), holds("evaluation", "costs"))
    report = CompressionReport.load(model) if update_card else None
    if report is not None:
        check_renewable(model)
    accelerator = new_accelerator()
    with local_work(accelerator, "The start"):
        images = open_images(data, options=replace(options, prefer=TESTING.prefer))
        candidate = Candidate.load(model, accelerator)
        dense = None if against is None else Candidate.load(against, accelerator)
        processor = load_image_processor(model) or load_image_processor(against or model)
    figures = compare(
        candidate,
        dense,
        images,
        processor,
        metrics=metric or (),
        latency=latency,
        batch_size=batch_size,
        precision=precision,
        progress=not quiet,
        accelerator=accelerator,
    )
    if not accelerator.is_main_process:
        return
    show(_rendered(figures))
    if json_file is not None:
        write_text(json_file, json.dumps(asdict(figures), indent=2) + "\n")
    if report is not None:
        _update_card(model, report, figures, dataset)


def _check_flags(latency: bool, against: str | None, dataset: str | None, update_card: bool) -> None:
    from ..report.provenance import is_repo_id

    if latency and against is None:
        raise ConfigError("--latency compares two models in one run; name the other with --against.")
    if dataset is not None and not is_repo_id(dataset):
        raise ConfigError(f"--dataset takes the Hub id of a data set, such as uoft-cs/cifar10, not {dataset!r}.")
    if dataset is not None and not update_card:
        raise ConfigError("--dataset names the images in the card; give it together with --update-card.")


def _update_card(folder: str, report: "CompressionReport", figures: "Comparison", dataset: str | None) -> None:
    """Write the figures into report and card of a folder made by compress; times of before stay where there are none.

    Args:
        dataset: Hub id to name the images by; by default that of the images, if they have one.
    """
    from ..publish.cards import write_card
    from ..runtime.outputs import reserved
    from ..runtime.weights import folder_digest

    report = report.beside(folder_digest(folder))
    report.evaluation = replace(figures.evaluation, dataset=dataset or figures.evaluation.dataset)
    report.latency = figures.latency or report.latency
    with reserved(folder, "renew") as output, output.replaced() as new:
        report.save(new)
        write_card(folder, report, into=new)


def _rendered(figures: "Comparison") -> "RenderableType":
    from ..report.tables import comparison_rows, table

    rows = comparison_rows(
        figures.dense_costs,
        figures.costs,
        figures.dense_disk_bytes,
        figures.disk_bytes,
        figures.evaluation,
        figures.latency,
        figures.patch_tokens,
    )
    return table(("", "dense", "model", "change"), rows, title=Path(figures.model).name)
