"""Ctrl-C while the command line is still importing, which takes seconds, is an end like any other."""

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
        else:
            before(kind, error, trace)

    sys.excepthook = shown
