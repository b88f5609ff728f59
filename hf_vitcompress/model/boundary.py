"""What opening a model can raise, in one sentence: transformers, torch and the Hub client have no common error."""

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from ..architectures.families import supported
from ..architectures.timm_inputs import WRAPPER
from ..configuration_factored import MODEL_TYPE_PREFIX
from ..configuration_timm import ENTRY_POINT, MODEL_TYPE
from ..errors import QuantizationError, UnsupportedModelError, VitCompressError
from ..runtime.files import looks_local
from ..runtime.text import printable
from .timm import check_timm

FOR_PEOPLE = (OSError, ValueError)
"""What libraries raise with a message for people; others are named by their class, too."""

LONGEST = 300
"""Characters of a library's message that are repeated."""

OF_FILES = (".safetensors", ".json", ".bin", ".pt", ".pth", ".onnx")
"""Suffixes of files in a model's folder; names on the Hub may have others, as in `owner/vit_base.v2`."""

TIMM_TYPES = (WRAPPER, MODEL_TYPE, MODEL_TYPE_PREFIX + MODEL_TYPE)
"""Model types that are built by timm. transformers gives the first to what timm itself has saved."""

OF_TIMM = ("local-dir:", "hf-hub:", "hf_hub:")
"""What timm alone writes before a folder or a Hub id."""

_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
"""Colours for a terminal."""


@contextlib.contextmanager
def explained(name: str, quantizing: bool = False) -> Iterator[None]:
    """Whatever is raised while the model of that name is opened says what is wrong with it, and what to do.

    Raises:
        UnsupportedModelError: anything was raised, unless it is one of ours.
        QuantizationError: a package is missing, or `quantizing` failed on the way.
    """
    try:
        yield
    except VitCompressError:
        raise
    except ImportError as error:
        if "peft" in str(error).lower():
            raise UnsupportedModelError(
                f"The model {name!r} has adapters of a PEFT that does not work here: {first_line(error)} Give what "
                "`merge_and_unload` of PEFT makes of it, or `pip install --upgrade peft`."
            ) from error
        if "timm" in str(error).lower():
            raise UnsupportedModelError(f"The model {name!r} cannot be made by timm: {first_line(error)}") from error
        raise QuantizationError(
            f"The model {name!r} is quantized by a library that is missing here: {first_line(error)} Install it; "
            "for models of `vitcompress quantize` that is `pip install torchao`."
        ) from error
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise UnsupportedModelError(f"The model {name!r} does not fit into memory: {first_line(error)}") from error
    except Exception as error:  # values of a file reach the constructors of any class, which check few of them
        raise _translated(name, quantizing, error) from error


def _translated(name: str, quantizing: bool, error: Exception) -> VitCompressError:
    if quantizing and isinstance(error, RuntimeError):
        return QuantizationError(f"The model {name!r} cannot be quantized: {first_line(error)}")
    if "does not recognize this architecture" in str(error):
        return UnsupportedModelError(f"{name!r} has an unknown architecture. {supported()}")
    if isinstance(error, FOR_PEOPLE):
        return UnsupportedModelError(
            f"The model {name!r} cannot be loaded: {first_line(error)} Give a folder made by save_pretrained, or "
            "a Hub id (a private one needs `hf auth login`)."
        )
    return UnsupportedModelError(
        f"The model {name!r} cannot be loaded, because its config.json or its weights are damaged, or do not belong "
        f"together: {first_line(error)} Copy it again, or save it again with save_pretrained."
    )


def damaged_processor(name: str, error: Exception) -> UnsupportedModelError:
    """Of an image processor that cannot be made of its file."""
    return UnsupportedModelError(
        f"The file of the image processor beside {name!r} is damaged: {first_line(error)} Restore it, or save the "
        "processor again with save_pretrained."
    )


def config_content(name: str) -> dict[str, Any]:
    """What stands in the `config.json` of a model.

    Raises:
        UnsupportedModelError: it is not that of a model of transformers.
    """
    check_place(name)
    content = _config_of(name)
    if not isinstance(content, dict):
        raise UnsupportedModelError(f"The config.json of {name!r} is a {type(content).__name__}. {_REPAIR}")
    check_not_saved_by_timm(name, content)
    if content.get("model_type") in TIMM_TYPES:
        check_timm()
    for key, kind in (("model_type", str), ("architectures", list), ("compression", dict)):
        value = content.get(key)
        if value is not None and not isinstance(value, kind):
            raise UnsupportedModelError(f"The config.json of {name!r} has {key}={_short(value)}. {_REPAIR}")
    if not content.get("model_type"):
        raise UnsupportedModelError(
            f"The config.json of {name!r} names no model_type, so that nobody knows what its weights are for. {_REPAIR}"
        )
    return content


def check_place(name: str) -> None:
    """Refuse a name under which there can be no model.

    Raises:
        UnsupportedModelError: it is empty, that of a file, timm's way to write it, or that of a folder without config.
    """
    if not name.strip():
        raise UnsupportedModelError(
            "The name of the model is empty. Give a folder made by save_pretrained, or a Hub id."
        )
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise UnsupportedModelError(
            f"The model {name!r} cannot be loaded: the folder has no config.json. Give a folder made by "
            "save_pretrained, or a Hub id."
        )
    if not Path(name).is_dir():
        _check_absent(name)


def check_not_saved_by_timm(name: str, content: dict[str, Any]) -> None:
    """Refuse a compressed model that `timm.models.save_for_hf` wrote: only timm builds it.

    Args:
        name: of the model.
        content: of its `config.json`.
    """
    of_timm = content.get("model_type") in (None, WRAPPER)
    if of_timm and str(content.get("architecture")).startswith(f"{ENTRY_POINT}."):
        address = f"{'local-dir' if Path(name).is_dir() else 'hf-hub'}:{name}"
        raise UnsupportedModelError(
            f"{name!r} is a compressed model in timm's format. Load it by `import hf_vitcompress.timm` and "
            f'timm.create_model("{address}", pretrained=True), or give the folder of the compressed model that '
            "save_pretrained wrote."
        )


def _check_absent(name: str) -> None:
    """Refuse a name that is no folder's and cannot be a Hub id."""
    path = Path(name)
    if prefix := next((prefix for prefix in OF_TIMM if name.startswith(prefix)), None):
        rest = name.removeprefix(prefix)
        raise UnsupportedModelError(f"{prefix!r} is for timm.create_model alone. Give the name without it: {rest!r}.")
    if path.is_file():
        raise UnsupportedModelError(f"The model {name!r} is a file. Give its folder, {str(path.parent)!r}.")
    if (looks_local(name) or path.suffix in OF_FILES) and "://" not in name:
        raise UnsupportedModelError(f"There is no folder {name!r}.")


def _config_of(name: str) -> Any:
    try:
        return PreTrainedConfig.get_config_dict(name)[0]
    except OSError as error:
        if Path(name).is_dir():
            raise
        raise UnsupportedModelError(
            f"There is no folder {name!r}, and as a model on the Hub it cannot be loaded: {first_line(error)} Give a "
            "folder made by save_pretrained, or a Hub id (a private one needs `hf auth login`)."
        ) from error


_REPAIR = "Restore the file, or save the model again with save_pretrained."


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}…"


def first_line(error: Exception) -> str:
    """Of its message, with a full stop; its class goes before where the message alone is for programmers."""
    lines = [line.strip() for line in _ESCAPES.sub("", str(error)).splitlines() if line.strip()] or [""]
    text = " ".join(lines) if lines[0].endswith(":") else lines[0]
    text = printable(text)
    text = (text if len(text) <= LONGEST else f"{text[:LONGEST]}…").rstrip(".")
    if isinstance(error, FOR_PEOPLE) and text:
        return f"{text}."
    return f"{type(error).__name__}: {text}." if text else f"{type(error).__name__}."
