"""The errors that a user can meet. Each names what is wrong, and what to do about it."""

import difflib
import reprlib
from collections.abc import Iterable
from typing import Any

_SHORT = reprlib.Repr()
_SHORT.maxstring, _SHORT.maxother, _SHORT.maxlevel = 200, 60, 3


def shown(value: Any) -> str:
    """A value as a message names it: on one line, and shortened where it is long."""
    try:
        return _SHORT.repr(value)
    except (ValueError, RecursionError):  # whole numbers of thousands of digits, which Python does not write out
        return f"a {type(value).__name__}"


def one_line(error: BaseException) -> str:
    """What another library says in an error, on one line of at most 300 characters and without a full stop."""
    text = " ".join(str(error).split()) or type(error).__name__
    return (text if len(text) <= 300 else f"{text[:297]}…").rstrip(".")


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """The question whether the likest of the known names is meant, after a space; empty where none is like it."""
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")
"""What torch and the system say, in errors that have no class of their own."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the system had not enough memory."""
    # torch raises an OutOfMemoryError for devices, and of the CPU's memory a RuntimeError like any other.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError | OSError) and any(words in str(error).lower() for words in MEMORY)


class VitCompressError(Exception):
    """Base of every error this package raises on purpose.

    Attributes:
        reported: whether another process prints the error.
    """

    reported: bool = False


class ConfigError(VitCompressError, ValueError):
    """A setting is unknown, out of range or contradicts another."""


class UnsupportedModelError(VitCompressError, ValueError):
    """The model cannot be found, or its architecture is not supported."""


class DataError(VitCompressError, ValueError):
    """The images cannot be found, read or used."""


class CalibrationError(VitCompressError, RuntimeError):
    """The statistics cannot be computed, or do not belong to this model."""


class BudgetError(VitCompressError, ValueError):
    """No plan meets the budget; the message names the bound that stands in the way."""


class OutputError(VitCompressError, OSError):
    """The result cannot be written."""


class ReportError(VitCompressError, ValueError):
    """The report of a compression is missing or damaged."""


class EvaluationError(VitCompressError, RuntimeError):
    """A model that is saved could not be judged."""


class PublishError(VitCompressError, RuntimeError):
    """The Hub did not accept the model; the files on this disk are unchanged."""


class CompensationError(VitCompressError, RuntimeError):
    """The compressed model cannot be trained further, or a checkpoint does not belong to it."""


class DistributedError(VitCompressError, RuntimeError):
    """Another process failed, or has ended."""


class QuantizationError(VitCompressError, RuntimeError):
    """The model cannot be quantized, or the library that quantized it is missing."""


class ExportError(VitCompressError, RuntimeError):
    """The model cannot be exported, the exporter is missing, or the program's outputs differ."""


class MissingPackageError(VitCompressError, ImportError):
    """A package that is needed for this is missing, or cannot be imported."""


class CalibrationWarning(UserWarning):
    """The statistics are usable, but less reliable than they should be."""


class BudgetWarning(UserWarning):
    """No plan comes near the budget from below; the result is the nearest, and the message says how far off it is."""


class CompensationWarning(UserWarning):
    """The compensation ended early; its result is usable."""


class DataWarning(UserWarning):
    """Some images or labels are not used, or look wrong; the message names them."""


class ConfigWarning(UserWarning):
    """A recipe names settings of an earlier version; the message says what became of them."""
