"""Packages that only some of the work needs, imported when that begins."""

import importlib
from typing import Any

from ..errors import MissingPackageError, one_line


def require_package(module: str, purpose: str) -> Any:
    """Import a module of another package, and return it.

    Args:
        module: by its full name.
        purpose: what it is needed for, as the subject of a sentence.

    Raises:
        MissingPackageError: the package, or one that it needs, is missing or cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, OSError, AttributeError) as error:  # the last two where versions do not fit
        raise missing_package(module, purpose, error) from error


def missing_package(module: str, purpose: str, error: Exception) -> MissingPackageError:
    """What to say where importing a module fails."""
    package = module.partition(".")[0]
    lacking = (getattr(error, "name", None) or package).partition(".")[0]
    return MissingPackageError(
        f"{purpose} needs {package}, which is missing or cannot be imported ({one_line(error)}): "
        f"`pip install --upgrade {lacking}`."
    )
