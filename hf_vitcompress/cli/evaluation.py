"""`vitcompress evaluate`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from .options import Quiet, silence_libraries


def evaluate_checkpoint(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model to judge: a Hub id or a folder.")],
    data: Annotated[str, typer.Option("--data", help="Test images: a folder, a parquet file or a Hub data set.")],
    against: Annotated[str | None, typer.Option(help="Dense model to compare with.")] = None,
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
    from rich.console import Console

    from ..evaluation.comparison import compare_checkpoints
    from ..runtime.distributed import new_accelerator

    if quiet:
        silence_libraries()
    rendered, figures = compare_checkpoints(
        model, data, against, latency, batch_size, precision, not quiet, update_card, dataset
    )
    if not new_accelerator().is_main_process:
        return
    Console().print(rendered)
    if json_file is not None:
        json_file.write_text(json.dumps(asdict(figures), indent=2) + "\n", encoding="utf-8")
