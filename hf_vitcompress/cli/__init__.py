"""The terminal: `vitcompress compress | inspect | profile | plan | evaluate | quantize | export | convert | push`."""

import sys
from typing import Annotated

import typer

from ..starting import DEBUG_FLAG, DEBUG_VARIABLE, INTERRUPTED, is_debugging
from ..version import __version__
from .compression import compress, inspect_model, plan_budget
from .conversion import convert_checkpoint
from .ending import (
    TERMINATED,
    ended_by_sigterm,
    flush_output,
    goes_on_from,
    stopped_in_any_place,
    take_any_text,
    tell,
    tell_error,
    tell_interruption,
    warnings_on_one_line,
)
from .evaluation import evaluate_checkpoint
from .export import export_checkpoint
from .help import GROUPED, Commands
from .hints import hints
from .profiling import profile_model
from .publishing import push_checkpoint
from .quantization import quantize_checkpoint

COMMAND = "vitcompress"
"""How help and errors name the program, however it was started."""

USAGE = 2
"""How typer ends where a flag or an argument is wrong."""

app = typer.Typer(
    cls=Commands,
    context_settings={"max_content_width": 120},
    help="Compress Vision Transformers of transformers, and get transformers models back.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # see `help.GroupedCommand`
)
app.command("compress", **GROUPED)(compress)
app.command("inspect", **GROUPED)(inspect_model)
app.command("profile", **GROUPED)(profile_model)
app.command("plan", **GROUPED)(plan_budget)
app.command("evaluate", **GROUPED)(evaluate_checkpoint)
app.command("quantize", **GROUPED)(quantize_checkpoint)
app.command("export", **GROUPED)(export_checkpoint)
app.command("convert", **GROUPED)(convert_checkpoint)
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
    debug: Annotated[
        bool,
        typer.Option(DEBUG_FLAG, help=f"Show where an error happened; anywhere, or as {DEBUG_VARIABLE}=1."),
    ] = False,
) -> None:
    """What comes before the command."""


def main() -> None:
    """Entry point: whatever goes wrong ends in one line on stderr; see `ending` for the exit codes."""
    debug = is_debugging()
    words = [word for word in sys.argv[1:] if word != DEBUG_FLAG] or ["--help"]
    goes_on_from(None)
    take_any_text()
    with warnings_on_one_line(debug), ended_by_sigterm(), stopped_in_any_place():
        try:
            app(words, prog_name=COMMAND)
        except SystemExit as end:
            if end.code in (INTERRUPTED, TERMINATED):
                tell_interruption()
            if end.code == USAGE:
                for hint in hints(typer.main.get_command(app).commands, words):  # type: ignore[attr-defined]
                    tell(f"Hint: {hint}")
            raise
        except Exception as error:  # the last resort: a user needs the sentence, and no library has a common base
            tell_error(error, debug)
            sys.exit(1)
        finally:
            flush_output()
