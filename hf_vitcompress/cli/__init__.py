"""The terminal: `vitcompress compress | inspect | plan | evaluate | quantize | export | push`."""

import os
import sys
from typing import Annotated

import typer

from ..errors import DistributedError, VitCompressError
from ..runtime.text import printable
from ..version import __version__
from .compression import compress, inspect_model, plan_budget
from .evaluation import evaluate_checkpoint
from .export import export_checkpoint
from .help import GROUPED
from .publishing import push_checkpoint
from .quantization import quantize_checkpoint

app = typer.Typer(
    help="Compress Vision Transformers of transformers, and get transformers models back.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # see `help.GroupedCommand`
)
app.command("compress", **GROUPED)(compress)
app.command("inspect", **GROUPED)(inspect_model)
app.command("plan", **GROUPED)(plan_budget)
app.command("evaluate", **GROUPED)(evaluate_checkpoint)
app.command("quantize", **GROUPED)(quantize_checkpoint)
app.command("export", **GROUPED)(export_checkpoint)
app.command("push", **GROUPED)(push_checkpoint)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"hf_vitcompress {__version__}")
        raise typer.Exit


@app.callback()
def shared_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """What comes before the command."""


def main() -> None:
    """Entry point: errors of the package end in one line on stderr and exit status 1."""
    try:
        app()
    except VitCompressError as error:
        # Every process started by `accelerate launch` comes here; what all of them see is said by the main one, and
        # what one of them sees has been told to it. Only that a process has gone is for each of the others to say.
        is_main = os.environ.get("RANK", "0") == "0"
        if is_main or (isinstance(error, DistributedError) and not error.reported):
            print(f"error: {printable(str(error), newlines=True)}", file=sys.stderr)
        sys.exit(1)
    except SystemExit as end:
        if end.code == 130:  # how typer ends on Ctrl-C
            print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        raise
