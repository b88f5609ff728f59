"""Streaming second moments of vectors and of gradients."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import CalibrationError

RESOLUTION = 2 * torch.finfo(torch.float32).eps
"""Deviation relative to the mean that float32 cannot tell from none."""
ROUNDING = 1e-4
"""Share of the second moment about the shift that rounding may leave of no variance."""


@dataclass
class Moment:
    """Streaming weighted mean and second moment of vectors, shifted so that a large mean costs no precision.

    Attributes:
        weight: Σ w, a 0-d float64 tensor.
        shift: (d,) float32, a point near the mean, taken from the first batch.
        first: (d,) float64, Σ w (x − shift).
        second: float32, Σ w (x − shift)(x − shift)ᵀ (d, d), or `None` where only the mean is needed.
    """

    weight: Tensor
    shift: Tensor
    first: Tensor
    second: Tensor | None

    @classmethod
    def empty(cls, size: int, full: bool, device: torch.device) -> "Moment":
        """Nothing seen yet; `full` says whether more than the mean of vectors (size,) is wanted."""
        return cls(
            weight=torch.zeros((), dtype=torch.float64, device=device),
            shift=torch.full((size,), torch.nan, dtype=torch.float32, device=device),
            first=torch.zeros(size, dtype=torch.float64, device=device),
            second=torch.zeros(size, size, dtype=torch.float32, device=device) if full else None,
        )

    @classmethod
    def from_parts(cls, parts: Mapping[str, Tensor]) -> "Moment":
        """Of the tensors by name, `second` only where there is one.

        Raises:
            KeyError: one is missing.
            ValueError: they do not fit together.
        """
        moment = cls(parts["weight"], parts["shift"], parts["first"], parts.get("second"))
        size = (moment.size,)
        _check_shapes(parts, {"weight": (), "shift": size, "first": size, "second": 2 * size})
        return moment

    @property
    def size(self) -> int:
        """Number of features."""
        return len(self.first) if self.first.dim() else 0

    def update(self, vectors: Tensor, weights: Tensor | None) -> None:
        """Add `vectors` (n, d) float32, weighted by `weights` (n,) or all by 1; `vectors` is overwritten."""
        if self.weight == 0 and not torch.isfinite(self.shift).all():
            self.shift.copy_(vectors.mean(0) if weights is None else weights @ vectors / weights.sum().clamp_min(1e-30))
        roots = vectors.new_ones(len(vectors)) if weights is None else weights.sqrt()
        vectors.sub_(self.shift)
        if weights is not None:
            vectors.mul_(roots[:, None])
        self.weight += roots.double().square().sum()
        self.first += vectors.T @ roots
        if self.second is not None:
            self.second.addmm_(vectors.T, vectors)

    def reshift(self, shift: Tensor) -> None:
        """Express the sums about another point (d,) near the mean; the moments they stand for stay the same."""
        if self.weight > 0:
            delta = self.shift.double() - shift.double()
            if self.second is not None:
                cross = torch.outer(delta, self.first)
                self.second += (cross + cross.T + self.weight * torch.outer(delta, delta)).to(self.second.dtype)
            self.first += self.weight * delta
        self.shift.copy_(shift)

    def clear(self) -> None:
        """Nothing seen, but about the same point."""
        for tensor in (self.weight, self.first, self.second):
            if tensor is not None:
                tensor.zero_()

    @property
    def mean(self) -> Tensor:
        """(d,) float64."""
        return self.shift.double() + self.first / self.weight

    @property
    def covariance(self) -> Tensor:
        """(d, d) float64, symmetric; 0 for features that never vary, as behind a layer norm whose gain is 0."""
        offset = self.first / self.weight
        second = _symmetric(self.second, self.weight)
        covariance = second - torch.outer(offset, offset)
        left, lost = ROUNDING * second.diagonal(), (RESOLUTION * self.mean).square()
        constant = covariance.diagonal() <= torch.minimum(left, lost)
        covariance[constant] = 0.0
        covariance[:, constant] = 0.0
        return covariance

    @property
    def moment(self) -> Tensor:
        """`E[x xᵀ]` (d, d) float64, about zero."""
        return self.covariance + torch.outer(self.mean, self.mean)

    def is_finite(self) -> bool:
        """Whether all sums are; the shift is NaN as long as nothing is seen."""
        tensors = (self.weight, self.first, self.second, self.shift if self.weight > 0 else None)
        return all(bool(torch.isfinite(tensor).all()) for tensor in tensors if tensor is not None)


@dataclass
class GradientMoment:
    """Streaming `E_image[Σ_tokens g gᵀ]`, averaged over sign vectors too.

    Attributes:
        count: images × sign vectors, a 0-d float64 tensor.
        second: (n, n) float32 on the narrow side; or (out,), the diagonal at the output.
    """

    count: Tensor
    second: Tensor

    @classmethod
    def empty(cls, shape: tuple[int, ...], device: torch.device) -> "GradientMoment":
        count = torch.zeros((), dtype=torch.float64, device=device)
        return cls(count, torch.zeros(shape, dtype=torch.float32, device=device))

    @classmethod
    def from_parts(cls, parts: Mapping[str, Tensor]) -> "GradientMoment":
        """See `Moment.from_parts`."""
        moment = cls(parts["count"], parts["second"])
        _check_shapes(parts, {"count": (), "second": (moment.size,) * moment.second.dim()})
        return moment

    @property
    def size(self) -> int:
        """Number of features."""
        return len(self.second) if self.second.dim() else 0

    def clear(self) -> None:
        """Nothing seen."""
        self.count.zero_()
        self.second.zero_()

    @property
    def moment(self) -> Tensor:
        """(n, n) float64, symmetric."""
        return _symmetric(self.second, self.count)

    @property
    def mean_square(self) -> Tensor:
        """(out,) float64."""
        return (self.second.diagonal() if self.second.dim() == 2 else self.second).double() / self.count

    def is_finite(self) -> bool:
        return bool(torch.isfinite(self.count) and torch.isfinite(self.second).all())


def _symmetric(second: Tensor | None, count: Tensor) -> Tensor:
    if second is None or second.dim() != 2:
        raise CalibrationError(
            "The statistics were collected for a metric that needs less; calibrate again for this one."
        )
    mean = second.double() / count
    return (mean + mean.T) / 2


def _check_shapes(parts: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]]) -> None:
    for name, tensor in parts.items():
        if name not in wanted or tensor.shape != wanted[name] or not tensor.is_floating_point():
            raise ValueError(f"{name} is a {tuple(tensor.shape)} of {tensor.dtype}")
