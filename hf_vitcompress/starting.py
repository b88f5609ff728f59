"""The start, which takes seconds of imports: what is settled before them, and what can go wrong in them."""

import contextlib
import itertools
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

COMMANDS, MODULE = ("vitcompress", "vitcompress.exe"), "hf_vitcompress"

INTERRUPTED = 128 + signal.SIGINT
"""Exit code of a command that Ctrl-C ends."""

DEBUG_FLAG, DEBUG_VARIABLE = "--debug", "VITCOMPRESS_DEBUG"

VERBOSITY = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
    "TORCH_LOGS": "-all",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}
"""The libraries' own switches for what they log; those that are set already stay."""

LOGGERS = ("torchao",)
"""Of libraries that have no such switch."""


def is_command_line() -> bool:
    """Whether this process is `vitcompress` or `python -m hf_vitcompress`, and not a program that imports us."""
    words = sys.orig_argv
    return Path(sys.argv[0]).name in COMMANDS or ("-m", MODULE) in itertools.pairwise(words)


def is_debugging() -> bool:
    """Whether the user asked to see where errors happen, and what libraries say to developers."""
    return DEBUG_FLAG in sys.argv[1:] or bool(os.environ.get(DEBUG_VARIABLE))


def start_command_line() -> None:
    """Let an interruption during the imports end in one line, and libraries log their errors alone."""
    _end_quietly_on_interruption()
    _end_where_an_interruption_is_swallowed()
    if not is_debugging():
        for name, value in VERBOSITY.items():
            os.environ.setdefault(name, value)
        for name in LOGGERS:
            logging.getLogger(name).setLevel(logging.ERROR)


def _end_quietly_on_interruption() -> None:
    """Until the command's own handling begins, show one line and no traceback when the command is interrupted."""
    before = sys.excepthook

    def shown(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            print("interrupted", file=sys.stderr)
        else:
            before(kind, error, trace)

    sys.excepthook = shown


def _end_where_an_interruption_is_swallowed() -> None:
    """Python ignores what is raised in a `__del__`; until the command's own handling begins, nothing can be lost."""
    before = sys.unraisablehook

    def ended(swallowed: "sys.UnraisableHookArgs") -> None:
        if issubclass(swallowed.exc_type, KeyboardInterrupt):
            print("interrupted", file=sys.stderr, flush=True)
            os._exit(INTERRUPTED)
        else:
            before(swallowed)

    sys.unraisablehook = ended


class UnfitLibrariesError(ImportError):
    """Libraries that this package needs are installed, but do not work together."""


def unfit_libraries(error: ImportError) -> UnfitLibrariesError | None:
    """What to say where transformers cannot be imported: its own error leaves out the first cause; `None` of others."""
    first: BaseException = error
    while first.__cause__ is not None:
        first = first.__cause__
    if "torchvision" not in str(first):
        return None
    return UnfitLibrariesError(
        f"transformers cannot be imported, because the installed torchvision is not made for the installed torch "
        f"({first}). Install the two together, `pip install --upgrade torch torchvision`, or remove torchvision, "
        "`pip uninstall torchvision`."
    )


@contextlib.contextmanager
def naming_unfit_libraries() -> Iterator[None]:
    """A block of imports whose failure names the libraries that do not fit.

    Raises:
        UnfitLibrariesError: some do not.
    """
    try:
        yield
    except ImportError as error:
        if (unfit := unfit_libraries(error)) is None:
            raise
        raise unfit from error
