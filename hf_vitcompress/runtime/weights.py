"""Telling whether figures belong to the weights that are at hand."""

import hashlib
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..modeling_factored import WEIGHTS


def weight_files(folder: str | Path) -> list[Path]:
    """Safetensors files of a checkpoint that `from_pretrained` reads, by name."""
    return sorted(path for path in Path(folder).glob("model*.safetensors") if WEIGHTS.fullmatch(path.name))


def model_digest(model: nn.Module, by_name: bool = False) -> str:
    """Digest of all of a model's weights: the same before and after they are saved, whatever their names and shards.

    Args:
        by_name: whether the model's class and the tensors' in-memory names count, as they do for what is known layer by
            layer.
    """
    if not by_name:
        return _digest(model.state_dict().values())
    contents = [f"{name} {_digest([tensor])}" for name, tensor in sorted(model.state_dict().items())]
    return hashlib.sha256("\n".join([type(model).__name__, *contents]).encode()).hexdigest()


def folder_digest(folder: str | Path) -> str | None:
    """`model_digest` of the weights in a checkpoint folder; `None` where it has no safetensors files."""
    files = weight_files(folder)
    return _digest(_tensors(files)) if files else None


def _tensors(files: Iterable[Path]) -> Iterator[Tensor]:
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (it is no dictionary)
                yield file.get_tensor(name)


def _digest(tensors: Iterable[Tensor]) -> str:
    contents = sorted(tensor_digest(part) for tensor in tensors for part in plain_tensors(tensor))
    return hashlib.sha256("".join(contents).encode()).hexdigest()


def tensor_digest(tensor: Tensor) -> str:
    """Digest of a tensor's type, shape and values; numbers of 16 bits count as the same ones in float32."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    if flat.dtype in (torch.float16, torch.bfloat16):
        flat = flat.float()
    hashed = hashlib.sha256(f"{flat.dtype} {tuple(tensor.shape)}".encode())
    hashed.update(flat.view(torch.uint8).numpy().data)
    return hashed.hexdigest()


WEIGHT_FILE = re.compile(r"(model|pytorch_model)(-\d{5}-of-\d{5})?\.(safetensors|bin)")


def plain_tensors(tensor: Tensor) -> Iterator[Tensor]:
    """The stored tensors of which a quantized one consists; a plain one itself."""
    if not is_traceable_wrapper_subclass(tensor):
        yield tensor
        return
    names, _ = tensor.__tensor_flatten__()
    for name in names:
        yield from plain_tensors(getattr(tensor, name))


def disk_bytes(folder: str | Path) -> int:
    """Bytes of the weight files in a checkpoint folder."""
    return sum(path.stat().st_size for path in Path(folder).iterdir() if WEIGHT_FILE.fullmatch(path.name))


def stored_sizes(files: Iterable[Path]) -> list[int]:
    """Number of values of each tensor in safetensors files; only their headers are read."""
    sizes = []
    for path in files:
        with safe_open(path, framework="pt") as file:
            sizes += [math.prod(file.get_slice(name).get_shape()) for name in file.keys()]  # noqa: SIM118
    return sizes


def stored_dtypes(folder: str | Path) -> list[str]:
    """Names of the types the weights of a folder are stored in, the one of the most values first."""
    counts = dtype_counts(folder)
    return sorted(counts, key=lambda kind: -counts[kind])


def dtype_counts(folder: str | Path) -> dict[str, int]:
    """How many values the safetensors files of a folder hold, by the name of their type."""
    counts: dict[str, int] = {}
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (it is no dictionary)
                stored = file.get_slice(name)
                kind = stored.get_dtype()
                counts[kind] = counts.get(kind, 0) + math.prod(stored.get_shape())
    return counts
