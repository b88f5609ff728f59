"""What several commands share."""

from typing import Annotated

import typer

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]


def silence_libraries() -> None:
    """The bars of the libraries that load models and images; for the rest of the process, which ends with us."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()
