"""`vitcompress quantize`."""

from pathlib import Path
from typing import Annotated

import typer

from ..runtime.text import printable
from .options import Quiet, say_stale_programs, silence_libraries


def quantize_checkpoint(
    model: Annotated[str, typer.Argument(help="Compressed or dense model: a folder or a Hub id.", metavar="MODEL")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the quantized model.")],
    scheme: Annotated[
        str, typer.Option(help="int8-weight-only, or int8-dynamic: what the layers read is rounded, too.")
    ] = "int8-weight-only",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier result in OUTPUT.")] = False,
    quiet: Quiet = False,
) -> None:
    """Store the weights of MODEL as 8-bit integers, with torchao.

    Example: vitcompress quantize deit-40 --scheme int8-dynamic --output deit-40-int8
    """
    from ..deploy.quantization import quantize
    from ..report.tables import format_bytes
    from ..runtime.outputs import reserved
    from ..runtime.weights import disk_bytes

    if quiet:
        silence_libraries()
    with reserved(output, "overwrite" if overwrite else "new", {"the model": model}) as place:
        quantized = quantize(model, scheme.replace("-", "_"))
        with place.replaced() as folder:
            quantized.save_pretrained(folder)
    before = f", {format_bytes(disk_bytes(model))} before" if Path(model).is_dir() else ""
    print(f"saved to {printable(str(output))}: {format_bytes(disk_bytes(output))} of weights{before}")
    say_stale_programs(output)
