"""A safetensors file of tensors and plain data with a checksum, so that not one bit of it changes unnoticed."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import CalibrationError, shown
from ..runtime.files import atomic_path
from ..runtime.weights import tensor_digest

FORMAT_VERSION = 4
METADATA = "vitcompress_statistics"
REMEDY = "Run the calibration again, or give the file that `vitcompress inspect --statistics` wrote."


def write_sealed(path: str | Path, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
    """Write beside the target first and then rename.

    Args:
        tensors: by name, contiguous, on the CPU.
        plain: anything that JSON takes.
    """
    content = {"format_version": FORMAT_VERSION, **plain}
    sealed = json.dumps({**content, "checksum": _checksum(tensors, content)})
    with atomic_path(path) as temporary:
        save_file(dict(tensors), temporary, metadata={METADATA: sealed})


def read_sealed(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The reverse of `write_sealed`.

    Raises:
        CalibrationError: the file is missing, damaged, edited, or of another format.
    """
    if not isinstance(path, str | os.PathLike):
        raise CalibrationError(f"Give the path of a statistics file, not {shown(path)}. {REMEDY}")
    if not Path(path).is_file():
        raise CalibrationError(f"There is no statistics file {str(path)!r}. {REMEDY}")
    try:
        with safe_open(path, framework="pt") as file:
            plain = json.loads((file.metadata() or {})[METADATA])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, KeyError, ValueError, RecursionError) as error:
        raise damaged(path, str(error)) from error
    if not isinstance(plain, dict):
        raise damaged(path, "its plain part is no mapping")
    checksum, version = plain.pop("checksum", None), plain.get("format_version")
    if checksum is None and isinstance(version, int) and version != FORMAT_VERSION:
        raise _of_another_version(path)  # the earlier ones have none
    if checksum != _checksum(tensors, plain):
        raise damaged(path, "its checksum is that of another content")
    if plain.pop("format_version") != FORMAT_VERSION:
        raise _of_another_version(path)
    return tensors, plain


def _of_another_version(path: str | Path) -> CalibrationError:
    return CalibrationError(
        f"Another version of this package wrote {str(path)!r}, in a form that cannot be checked against a model and "
        f"its images. {REMEDY}"
    )


def damaged(path: str | Path, why: str) -> CalibrationError:
    """What to raise where the file does not hold what was written."""
    return CalibrationError(f"{str(path)!r} is not a complete statistics file ({why}). {REMEDY}")


def _checksum(tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> str:
    digests = [f"{name} {tensor_digest(tensor)}" for name, tensor in sorted(tensors.items())]
    return hashlib.sha256("\n".join([json.dumps(content, sort_keys=True), *digests]).encode()).hexdigest()
