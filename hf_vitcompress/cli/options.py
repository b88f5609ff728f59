"""What several commands share."""

import warnings
from typing import Annotated

import typer

from ..errors import DataWarning

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]


def plain_warnings() -> None:
    """Print warnings of this package in one line, without the place in its code that they come from."""
    former = warnings.formatwarning

    def formatted(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if category.__module__ == DataWarning.__module__:
            return f"warning: {message}\n"
        return former(message, category, filename, lineno, line)

    warnings.formatwarning = formatted


def silence_libraries() -> None:
    """Switch off the progress bars of the libraries that load, read and upload, for the rest of the process."""
    import datasets
    import huggingface_hub
    import transformers

    datasets.disable_progress_bars()
    huggingface_hub.utils.disable_progress_bars()
    transformers.logging.disable_progress_bar()
