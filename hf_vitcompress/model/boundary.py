"""What opening a model can raise, in one sentence: transformers, torch and the Hub client have no common error."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import torch
from transformers import PreTrainedConfig

from ..architectures.families import TIMM, supported
from ..errors import QuantizationError, UnsupportedModelError, VitCompressError

BY_LOOKING = (OSError, ValueError)
"""What transformers raises with a message for people; others are named by their class, which says more."""


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
        raise QuantizationError(
            f"The model {name!r} is quantized by a library that is missing here: {first_line(error)} Install it; "
            "for models of `vitcompress quantize` that is `pip install torchao`."
        ) from error
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise UnsupportedModelError(f"The model {name!r} does not fit into memory: {first_line(error)}") from error
    except Exception as error:  # values of a file reach the constructors of any class, which check none of them
        if quantizing and isinstance(error, RuntimeError):
            raise QuantizationError(f"The model {name!r} cannot be quantized: {first_line(error)}") from error
        if "does not recognize this architecture" in str(error):
            raise UnsupportedModelError(f"{name!r} has an unknown architecture. {supported()}") from error
        raise UnsupportedModelError(
            f"The model {name!r} cannot be loaded: {first_line(error)} Give a folder made by save_pretrained, or "
            "a Hub id (a private one needs `hf auth login`)."
        ) from error


def config_content(name: str) -> dict[str, Any]:
    """What stands in the `config.json` of a model.

    Raises:
        UnsupportedModelError: it is not that of a model of transformers.
    """
    content = PreTrainedConfig.get_config_dict(name)[0]
    if not isinstance(content, dict):
        raise UnsupportedModelError(f"The config.json of {name!r} is a {type(content).__name__}. {_REPAIR}")
    if "pretrained_cfg" in content or content.get("model_type") == "timm_wrapper":
        raise UnsupportedModelError(TIMM)
    for key, kind in (("model_type", str), ("architectures", list), ("compression", dict)):
        value = content.get(key)
        if value is not None and not isinstance(value, kind):
            raise UnsupportedModelError(f"The config.json of {name!r} has {key}={_short(value)}. {_REPAIR}")
    if not content.get("model_type"):
        raise UnsupportedModelError(
            f"The config.json of {name!r} names no model_type, so that nobody knows what its weights are for. {_REPAIR}"
        )
    return content


_REPAIR = "Restore the file, or save the model again with save_pretrained."


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}…"


def first_line(error: Exception) -> str:
    """Of its message, with a full stop; the class goes before where the message alone is for programmers."""
    line = next(iter(str(error).strip().splitlines()), "").rstrip(".")
    if isinstance(error, BY_LOOKING) and line:
        return f"{line}."
    return f"{type(error).__name__}: {line}." if line else f"{type(error).__name__}."
