"""`vitcompress export`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigError
from ..runtime.text import printable
from .options import Quiet, holds, silence_libraries


def export_checkpoint(
    model: Annotated[str, typer.Argument(help="Compressed or dense model: a folder or a Hub id.", metavar="MODEL")],
    to: Annotated[str, typer.Option("--to", help="onnx, torch-export, openvino or executorch.")] = "onnx",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder for the program. Default: one named as the format, inside MODEL.",
        ),
    ] = None,
    against: Annotated[str | None, typer.Option(help="Dense model to export, too, and to time both.")] = None,
    tolerance: Annotated[float, typer.Option(min=0, help="Largest difference from torch's outputs.")] = 1e-4,
    max_batch: Annotated[
        int | None, typer.Option(help="Images it takes at most; executorch only, which reserves memory. Default: 32.")
    ] = None,
    image_size: Annotated[
        str | None,
        typer.Option(
            help="Pixels of the images, one number or HEIGHTxWIDTH. Default: the size that the image processor makes.",
            metavar="SIZE",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier program in the output folder.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures here.")] = None,
    quiet: Quiet = False,
) -> None:
    """Make a program of MODEL for another runtime, and keep it only if it computes the same.

    Example: vitcompress export deit-40 --to onnx --against facebook/deit-base-patch16-224
    """
    from ..deploy.export import export_model
    from ..report.tables import show
    from ..runtime.files import check_file, write_text

    if quiet:
        silence_libraries()
    if json_file is not None:
        models = {"the model": model, "the dense model (--against)": against}
        check_file(json_file, models, beside=tuple(models), renews=holds("folder", "report"))
    result = export_model(
        model,
        to,
        output,
        against=against,
        overwrite=overwrite,
        tolerance=tolerance,
        max_batch=max_batch,
        image_size=_size(image_size),
    )
    show(result.render())
    print(f"saved to {printable(str(result.folder))}")
    if json_file is not None:
        write_text(json_file, json.dumps(result.to_dict(), indent=2) + "\n")


def _size(text: str | None) -> int | tuple[int, int] | None:
    """Of `224` or `224x336`."""
    numbers = () if text is None else tuple(text.lower().split("x"))
    if not all(number.isdecimal() for number in numbers) or len(numbers) > 2:
        raise ConfigError(f"--image-size is {text!r}; give a number of pixels, such as 224, or HEIGHTxWIDTH.")
    sizes = [int(number) for number in numbers]
    return None if not sizes else sizes[0] if len(sizes) == 1 else (sizes[0], sizes[1])
