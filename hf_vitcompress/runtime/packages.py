"""Packages that only some of the work needs, imported when that begins."""

import importlib
from typing import Any

from ..errors import MissingPackageError, one_line


def require_package(module: str, purpose: str, extra: str | None = None) -> Any:
    """Import a module of another package, and return it.

    Args:
        module: by its full name.
        purpose: what it is needed for, as the subject of a sentence.
        extra: of this package, that installs it; `None`: it is installed by its own name.

    Raises:
        MissingPackageError: the package, or one that it needs, is missing or cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, OSError, AttributeError) as error:  # the last two where versions do not fit
        raise missing_package(module, purpose, error, extra) from error


def missing_package(module: str, purpose: str, error: Exception, extra: str | None = None) -> MissingPackageError:
    """What to say where importing a module fails; the arguments are those of `require_package`."""
    package = module.partition(".")[0]
    lacking = (getattr(error, "name", None) or package).partition(".")[0]
    wanted = f'"hf-vitcompress[{extra}]"' if extra and lacking == package else f"--upgrade {lacking}"
    return MissingPackageError(
        f"{purpose} needs {package}, which is missing or cannot be imported ({one_line(error)}): "
        f"`pip install {wanted}`."
    )
