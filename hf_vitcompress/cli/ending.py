"""How a command ends that does not end well: one line on stderr, and an exit code that says why.

| exit code | means |
|---|---|
| 1 | an error, on one line |
| 2 | a flag or an argument is wrong |
| 130, 143 | stopped by Ctrl-C, by SIGTERM |
"""

import contextlib
import io
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from types import FrameType
from typing import Any

from ..errors import DistributedError, VitCompressError, is_out_of_memory, one_line
from ..runtime.text import printable
from ..starting import DEBUG_FLAG, unfit_libraries

TERMINATED = 128 + signal.SIGTERM

AGAIN_SECONDS = 0.05
"""After which a signal that was swallowed is sent again: what swallowed it has ended by then, as a rule."""

_checkpoint: ContextVar[Path | None] = ContextVar("checkpoint", default=None)


def tell(text: str) -> None:
    """Write a line to stderr, unless it is closed."""
    with contextlib.suppress(OSError, ValueError):
        print(printable(text, newlines=True), file=sys.stderr, flush=True)


def take_any_text() -> None:
    """Let terminals that have no × or … show a substitute: what was computed is worth more than how it looks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace" if stream is sys.stderr else "replace")


def tell_error(error: Exception, debug: bool) -> None:
    """Say what went wrong: what is ours in its own words, the rest as what it is."""
    if debug:
        tell("".join(traceback.format_exception(error)).rstrip())
    if isinstance(error, VitCompressError):
        # Every process started by `accelerate launch` comes here; what all of them see is said by the main one, and
        # what one of them sees has been told to it. Only that a process has gone is for each of the others to say.
        is_main = os.environ.get("RANK", "0") == "0"
        if is_main or (isinstance(error, DistributedError) and not error.reported):
            tell(f"error: {error}")
    else:
        tell(f"error: {explained(error)}")


def explained(error: Exception) -> str:
    """A sentence about an error of Python, the system or a library, and what to do."""
    said = one_line(error)
    if is_out_of_memory(error):
        return (
            f"The memory is full: {said}. Use a smaller --batch-size, fewer images (--num-images) or a device with "
            "more memory."
        )
    if isinstance(error, ImportError):
        if (unfit := unfit_libraries(error)) is not None:
            return str(unfit)
        package = (error.name or "").partition(".")[0] or "hf-vitcompress"
        return f"{package} is missing or cannot be imported: {said}. Install it: `pip install --upgrade {package}`."
    if isinstance(error, OSError) and error.errno is not None:
        return f"The system says: {said}. Free some space, or choose a place that can be read and written."
    return (
        f"Unexpected {type(error).__name__}: {said}. This is a mistake in vitcompress or in a library that it uses; "
        f"{DEBUG_FLAG} shows where it happened."
    )


def goes_on_from(checkpoint: Path | None) -> None:
    """Name the file that the same command goes on from when it is interrupted; `None`: there is none."""
    _checkpoint.set(checkpoint)


def tell_interruption() -> None:
    """Say that the command was interrupted and, if there is anything yet, what the same command goes on from."""
    checkpoint = _checkpoint.get()
    if checkpoint is None:
        tell("interrupted")
    elif checkpoint.is_file():
        tell(f"interrupted; the same command goes on from {checkpoint}")
    else:
        tell("interrupted before the first checkpoint; the same command starts again")


@contextlib.contextmanager
def warnings_on_one_line(debug: bool) -> Iterator[None]:
    """A block in which the package's own warnings are their text alone: a user has nothing from a line of our code.

    Args:
        debug: whether to show those of libraries, which speak to developers.
    """
    before = warnings.formatwarning

    def formatted(message: Warning | str, category: type[Warning], *where: Any, **line: Any) -> str:
        ours = category.__module__ == VitCompressError.__module__
        if ours:
            return f"warning: {message}\n"
        return before(message, category, *where, **line) if debug else ""

    warnings.formatwarning = formatted
    try:
        yield
    finally:
        warnings.formatwarning = before


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """A block that SIGTERM ends as Ctrl-C does: what it has begun to write is removed.

    One of several processes ends at once instead: it may be waiting for others, and then handles no signal.
    """
    if "LOCAL_RANK" in os.environ:
        yield
        return

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise SystemExit(TERMINATED)

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread of the process, where alone signals arrive
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def stopped_in_any_place() -> Iterator[None]:
    """A block in which Ctrl-C and SIGTERM also count where Python ignores what they raise, as in a `__del__`."""
    before = sys.unraisablehook

    def again(swallowed: "sys.UnraisableHookArgs") -> None:
        kind = _signal_of(swallowed.exc_value)
        if kind is None:
            before(swallowed)
        else:
            _send_later(kind)

    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = before


def _send_later(kind: signal.Signals) -> None:
    """Send a signal to this process, once more where it comes before this function has ended, which would ignore it."""
    sent = False
    while not sent:
        again = threading.Timer(AGAIN_SECONDS, os.kill, (os.getpid(), kind))
        again.daemon = True
        with contextlib.suppress(KeyboardInterrupt, SystemExit):
            again.start()
            sent = True


def _signal_of(raised: BaseException | None) -> signal.Signals | None:
    """The signal that raised it."""
    if isinstance(raised, KeyboardInterrupt):
        return signal.SIGINT
    return signal.SIGTERM if isinstance(raised, SystemExit) and raised.code == TERMINATED else None


def flush_output() -> None:
    """Write out what was printed; that nobody reads it any more, as behind `| head`, is no error."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (BrokenPipeError, ValueError):
        with contextlib.suppress(OSError, ValueError):  # so that Python does not try, and complain, again at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
