"""The type that the weights of a checkpoint are stored in, whatever its config says."""

import math
import pickle
from collections import Counter
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import PreTrainedModel
from transformers.utils import logging

from ..modeling_factored import CONFIG_FILE
from ..runtime.weights import dtype_counts

logger = logging.get_logger(__name__)

DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
"""By their names in safetensors; weights of other types are read as the config says."""


def stored_dtype(name: str | Path) -> torch.dtype | None:
    """The type of most values of a checkpoint.

    Args:
        name: a folder, or the id of a repository whose files are in the cache.

    Returns:
        `None` where the files are not there, or the values are no plain numbers.
    """
    folder = _folder_of(name)
    counts = {} if folder is None else dtype_counts(folder) or _counts_of_pickles(folder)
    return DTYPES.get(max(counts, key=lambda kind: counts[kind], default=""))


def round_weights(model: PreTrainedModel, dtype: torch.dtype | None) -> None:
    """Round a factored model's weights to what they will be stored in, if that is narrower than their own type.

    They keep their type in memory, in which the model computes as the dense one does.
    """
    named = [*model.parameters(), *model.buffers()]
    wide = [tensor for tensor in named if tensor.is_floating_point() and dtype and tensor.itemsize > dtype.itemsize]
    rounded = [tensor.detach().to(dtype) for tensor in wide]
    if not all(bool(torch.isfinite(tensor).all()) for tensor in rounded):
        logger.warning(f"Some weights are too large for {dtype}: they are stored as {model.dtype}.")
        return
    for tensor, narrow in zip(wide, rounded, strict=True):
        tensor.data = narrow.to(tensor.dtype)
    cast(Any, model).stored_dtype = dtype


def _folder_of(name: str | Path) -> Path | None:
    if Path(name).is_dir():
        return Path(name)
    config = try_to_load_from_cache(str(name), CONFIG_FILE) if str(name).count("/") <= 1 else None
    return Path(config).parent if isinstance(config, str) else None


def _counts_of_pickles(folder: Path) -> dict[str, int]:
    """Number of values by type in the weight files of old checkpoints, of which only the shapes are read."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    counts: Counter[str] = Counter()
    for path in folder.glob("pytorch_model*.bin"):
        try:
            state = torch.load(path, map_location="meta", weights_only=True, mmap=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError):
            return {}  # from_pretrained says what is wrong, or reads what this cannot
        for tensor in state.values() if isinstance(state, dict) else ():
            if isinstance(tensor, torch.Tensor):
                counts[names.get(tensor.dtype, str(tensor.dtype))] += math.prod(tensor.shape)
    return counts
