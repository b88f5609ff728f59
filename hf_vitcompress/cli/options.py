"""What several commands share."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]


LARGEST_FIGURES = 2**24
"""Bytes of a JSON file of figures, at most."""


def holds(*keys: str) -> Callable[[Path], bool]:
    """Whether a file is JSON with these keys, and so one of figures that a command wrote and may renew."""

    def found(file: Path) -> bool:
        if file.stat().st_size > LARGEST_FIGURES:
            return False
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return False
        return isinstance(content, dict) and set(keys) <= content.keys()

    return found


def say_stale_programs(folder: Path) -> None:
    """Name the exported programs that stayed in a folder whose model was replaced."""
    from ..deploy.export_formats import FORMATS

    for name in FORMATS:
        if (folder / name).is_dir():
            print(f"{name}/ in it is a program of the model that was there before; export it again")


def silence_libraries() -> None:
    """Switch off the progress bars of the libraries that load, read and upload, for the rest of the process."""
    import datasets
    import huggingface_hub
    import transformers

    datasets.disable_progress_bars()
    huggingface_hub.utils.disable_progress_bars()
    transformers.logging.disable_progress_bar()
