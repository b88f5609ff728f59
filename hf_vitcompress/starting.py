"""What can go wrong while the package is imported, which takes seconds: Ctrl-C, and libraries that do not fit."""

import itertools
import sys
from pathlib import Path
from types import TracebackType

COMMAND, MODULE = "vitcompress", "hf_vitcompress"


def is_command_line() -> bool:
    """Whether this process is `vitcompress` or `python -m hf_vitcompress`, and not a program that imports us."""
    words = sys.orig_argv
    return Path(sys.argv[0]).stem == COMMAND or ("-m", MODULE) in itertools.pairwise(words)


def end_quietly_on_interruption() -> None:
    """Until the command's own handling begins, show one line and no traceback when the command is interrupted."""
    before = sys.excepthook

    def shown(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            print("interrupted", file=sys.stderr)
        elif issubclass(kind, UnfitLibrariesError):
            print(f"error: {error}", file=sys.stderr)
        else:
            before(kind, error, trace)

    sys.excepthook = shown


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
