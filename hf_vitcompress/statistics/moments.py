"""Streaming second moments of vectors and of gradients."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import CalibrationError


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
            shift=torch.full((size,), torch.nan, device=device),
            first=torch.zeros(size, dtype=torch.float64, device=device),
            second=torch.zeros(size, size, device=device) if full else None,
        )

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
        """(d, d) float64, symmetric."""
        offset = self.first / self.weight
        return _symmetric(self.second, self.weight) - torch.outer(offset, offset)

    @property
    def moment(self) -> Tensor:
        """`E[x xᵀ]` (d, d) float64, about zero."""
        return self.covariance + torch.outer(self.mean, self.mean)

    def is_finite(self) -> bool:
        second = self.first if self.second is None else self.second
        return bool(torch.isfinite(self.first).all() and torch.isfinite(second).all())


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
        return cls(count, torch.zeros(shape, device=device))

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
        return bool(torch.isfinite(self.second).all())


def _symmetric(second: Tensor | None, count: Tensor) -> Tensor:
    if second is None or second.dim() != 2:
        raise CalibrationError(
            "The statistics were collected for a metric that needs less; calibrate again for this one."
        )
    mean = second.double() / count
    return (mean + mean.T) / 2
