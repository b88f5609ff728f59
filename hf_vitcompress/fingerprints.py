"""Telling whether figures belong to the weights that are at hand."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from .costs import plain_tensors
from .modeling_factored import WEIGHTS


def weight_files(folder: str | Path) -> list[Path]:
    return sorted(path for path in Path(folder).glob("model*.safetensors") if WEIGHTS.fullmatch(path.name))


def model_digest(model: nn.Module) -> str:
    """Digest of a model's weights: the same before and after they are saved, whatever their names and shards."""
    return _digest(model.state_dict().values())


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
    contents = sorted(_content(part) for tensor in tensors for part in plain_tensors(tensor))
    return hashlib.sha256("".join(contents).encode()).hexdigest()


def _content(tensor: Tensor) -> str:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    hashed = hashlib.sha256(f"{flat.dtype} {tuple(tensor.shape)}".encode())
    hashed.update(flat.view(torch.uint8).numpy().data)
    return hashed.hexdigest()
