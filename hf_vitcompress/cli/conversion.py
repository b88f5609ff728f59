"""`vitcompress convert`."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigError
from ..runtime.text import printable
from .options import Quiet, silence_libraries

LIBRARIES = ("transformers", "timm")


def convert_checkpoint(
    model: Annotated[str, typer.Argument(help="Model: a folder or a Hub id, such as timm/….", metavar="MODEL")],
    output: Annotated[Path, typer.Argument(help="Folder for the converted model.", metavar="OUTPUT")],
    to: Annotated[str, typer.Option("--to", help="Library that OUTPUT is for: transformers or timm.")] = LIBRARIES[0],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier result in OUTPUT.")] = False,
    quiet: Quiet = False,
) -> None:
    """Convert MODEL from timm to transformers, or back, and keep it only if it computes the same.

    Example: vitcompress convert timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k vit-tiny
    """
    if to not in LIBRARIES:
        raise ConfigError(f"--to is {to!r}; models are converted to {' or '.join(LIBRARIES)}.")

    from ..conversion.from_timm import conversion_from_timm
    from ..conversion.to_timm import conversion_to_timm, save_timm
    from ..runtime.outputs import reserved

    if quiet:
        silence_libraries()
    with reserved(output, "overwrite" if overwrite else "new", {"the model": model}) as place:
        done = conversion_to_timm(model) if to == "timm" else conversion_from_timm(model)
        with place.replaced() as folder:
            if to == "timm":
                save_timm(done, folder)
            else:
                done.model.save_pretrained(folder)
    kind = type(done.model).__name__
    print(
        f"{printable(done.name)} is now a {kind} of {to}; the largest difference of an output, in float32 on random "
        f"images, is {done.difference:.1e}"
    )
    for remark in done.remarks:
        print(f"note: {remark}")
    print(f"saved to {printable(str(output))}")
