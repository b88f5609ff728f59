"""Random vectors and their moments."""

from dataclasses import fields

import torch
from torch import Tensor

from hf_vitcompress.statistics.moments import Moment
from hf_vitcompress.statistics.statistics import Statistics

CPU = torch.device("cpu")


def relative(measured: Tensor, reference: Tensor) -> float:
    return float((measured.double() - reference).norm() / reference.norm())


def vectors(count: int, size: int, mean: float, seed: int = 0) -> Tensor:
    """Correlated float32 vectors around `mean`, of unit spread."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(size, size, generator=generator) / size**0.5
    return torch.randn(count, size, generator=generator) @ mixing + mean * torch.randn(size, generator=generator)


def streamed(data: Tensor, weights: Tensor | None, full: bool = True, batch: int = 100) -> Moment:
    moment = Moment.empty(data.shape[1], full, CPU)
    for start in range(0, len(data), batch):
        part = slice(start, start + batch)
        moment.update(data[part].clone(), None if weights is None else weights[part])
    return moment


def same(left: Statistics, right: Statistics) -> bool:
    """Bit-identical moments and equal plain data, timing aside."""
    for kind in ("inputs", "outputs", "gradients"):
        ours, theirs = getattr(left, kind), getattr(right, kind)
        if ours.keys() != theirs.keys():
            return False
        for name in ours:
            for f in fields(ours[name]):
                a, b = getattr(ours[name], f.name), getattr(theirs[name], f.name)
                if (a is None) != (b is None) or (a is not None and (a.dtype != b.dtype or not torch.equal(a, b))):
                    return False
    plain = ("images", "tokens", "bad_images", "settings", "identity", "corrections")
    return all(getattr(left, name) == getattr(right, name) for name in plain)
