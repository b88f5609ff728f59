"""Closed forms: a weight and its statistics → factors of every rank, and the predicted loss at every rank.

All metrics are one problem. With an output side `M_out` (out, out) and an input side `M_in` (in, in), the error of a
rank-r approximation `Ŵ` of `W` (out, in) is

    E(Ŵ) = ½ tr(M_out (W − Ŵ) M_in (W − Ŵ)ᵀ)

whose minimiser is the truncated SVD of `M_out^½ W M_in^½`, mapped back. With n = min(in, out), the same minimiser
comes from an n × n eigenproblem: let `N` be the metric's matrix on the narrow side, `N = L Lᵀ`, and `K` the other side
carried through the weight, `K = W M_in Wᵀ` (out ≤ in) or `Wᵀ M_out W` (in < out). The eigenvectors Q of `Lᵀ K L` are
the singular vectors, its eigenvalues the squared singular values, and

    out ≤ in:  up = L^{-T} Q,  down = Qᵀ Lᵀ W          in < out:  up = W L Q,  down = Qᵀ L^{-1}

truncated to r columns and rows. The wide side needs no square root and no inverse, so a singular wide moment is no
special case; at full rank `up · down = W` whatever the moments.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .config import CompressionConfig, Metric
from .errors import CalibrationError
from .families import LayerInfo
from .statistics import GradientMoment, Statistics


@dataclass
class Factorization:
    """All low-rank approximations of one layer at once.

    Attributes:
        up: (out, n) float32; the first r columns make the rank-r approximation.
        down: (n, in) float32; its first r rows.
        errors: (n + 1,) float64, the predicted error at rank 0 … n, decreasing and convex, 0 at n.
        energy: error at rank 0, for curves that are compared by the share of it they keep.
        mean: (in,) float64, the mean input, or `None` without bias correction.
    """

    up: Tensor
    down: Tensor
    errors: Tensor
    mean: Tensor | None

    @classmethod
    def empty(cls, layer: LayerInfo, centered: bool, device: torch.device) -> "Factorization":
        """Of the right shapes, to receive another process's result."""
        n = layer.full_rank
        return cls(
            up=torch.empty(layer.out_features, n, device=device),
            down=torch.empty(n, layer.in_features, device=device),
            errors=torch.empty(n + 1, dtype=torch.float64, device=device),
            mean=torch.empty(layer.in_features, dtype=torch.float64, device=device) if centered else None,
        )

    @property
    def energy(self) -> float:
        return float(self.errors[0])

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """`up (out, rank)` and `down (rank, in)`, scaled to the same norm per component."""
        return balanced(self.up[:, :rank], self.down[:rank])

    def corrected_bias(self, weight: Tensor, bias: Tensor | None, rank: int) -> Tensor | None:
        """`b + (W − Ŵ) E[x]`, which centres the error; `None` only if there was no bias and none is needed."""
        if self.mean is None:
            return bias
        mean = self.mean.to(weight.device)
        up, down = (factor.double() for factor in self.factors(rank))
        shift = weight.double() @ mean - up @ (down @ mean)
        return (shift if bias is None else bias.double() + shift).to(weight.dtype)


def balanced(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """The same product with equal norms per component, which keeps half precision and training well conditioned."""
    balance = up.norm(dim=0).clamp_min(1e-30).sqrt() / down.norm(dim=1).clamp_min(1e-30).sqrt()
    return up / balance, down * balance[:, None]


def factorize(layer: LayerInfo, linear: nn.Linear, statistics: Statistics, config: CompressionConfig) -> Factorization:
    """Solve one layer in the metric of `config`.

    Returns:
        factors and error curve; the curve is in units of the loss (nats per image) for `metric="fisher"`, in the
        metric's own units otherwise.
    """
    weight = linear.weight.detach().double()
    gradient = statistics.gradients.get(layer.name)
    if gradient is None and config.needs_gradients:
        raise CalibrationError(
            f"The statistics hold no gradients of {layer.name!r}, which metric={config.metric!r} needs. Calibrate with "
            "that metric."
        )
    centered = config.correct_bias and linear.bias is not None
    narrow_out = layer.out_features <= layer.in_features
    if narrow_out:
        narrow = output_metric(config.metric, gradient, layer, weight)
        wide = _carried_input(config.metric, statistics, layer, linear, weight, centered)
    else:
        narrow = _input_side(config.metric, statistics, layer, weight, centered)
        wide = carried_gradient(config.metric, gradient, weight)
    root, inverse_root = roots(narrow, config.damping)
    eigenvalues, vectors = torch.linalg.eigh(root.T @ wide @ root)
    eigenvalues, vectors = eigenvalues.flip(0).clamp_min(0), vectors.flip(1)
    if narrow_out:
        up, down = inverse_root.T @ vectors, vectors.T @ (root.T @ weight)
    else:
        up, down = weight @ (root @ vectors), vectors.T @ inverse_root
    tail = eigenvalues.flip(0).cumsum(0).flip(0) / 2
    mean = statistics.inputs[layer.input_name].mean if centered else None
    return Factorization(up.float(), down.float(), torch.cat([tail, tail.new_zeros(1)]), mean)


def output_metric(metric: Metric, gradient: GradientMoment | None, layer: LayerInfo, weight: Tensor) -> Tensor:
    """`M_out` (out, out), or its diagonal."""
    if metric not in ("fisher", "row_fisher"):
        return weight.new_ones(layer.out_features)
    assert gradient is not None
    return gradient.moment if metric == "fisher" else gradient.mean_square


def _input_side(metric: Metric, statistics: Statistics, layer: LayerInfo, weight: Tensor, centered: bool) -> Tensor:
    """`M_in` (in, in), or its diagonal."""
    moment = statistics.inputs[layer.input_name]
    if metric in ("activation", "fisher"):
        return moment.covariance if centered else moment.moment
    if metric == "diagonal":
        return moment.variance if centered else moment.mean_square
    return weight.new_ones(layer.in_features)


def _carried_input(
    metric: Metric, statistics: Statistics, layer: LayerInfo, linear: nn.Linear, weight: Tensor, centered: bool
) -> Tensor:
    """`W M_in Wᵀ` (out, out); for a wide input it is the covariance of the output, which was measured instead."""
    output = statistics.outputs.get(layer.name)
    if output is None or metric not in ("activation", "fisher"):
        side = _input_side(metric, statistics, layer, weight, centered)
        return weight @ side @ weight.T if side.dim() == 2 else (weight * side) @ weight.T
    if centered:
        return output.covariance
    product_mean = output.mean if linear.bias is None else output.mean - linear.bias.detach().double()
    return output.covariance + torch.outer(product_mean, product_mean)


def carried_gradient(metric: Metric, gradient: GradientMoment | None, weight: Tensor) -> Tensor:
    """`Wᵀ M_out W` (in, in)."""
    if metric not in ("fisher", "row_fisher"):
        return weight.T @ weight
    assert gradient is not None
    return gradient.moment if metric == "fisher" else weight.T @ (gradient.mean_square[:, None] * weight)


def roots(matrix: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """`L` and `L^{-1}` with `L Lᵀ = matrix`, damped by `damping` times its largest eigenvalue.

    A singular matrix is a normal case (a layer norm alone makes one), an all-zero matrix is treated as the identity.
    """
    if matrix.dim() == 1:
        values, vectors = matrix, torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    else:
        values, vectors = torch.linalg.eigh(matrix)
    largest = values.max()
    values = torch.ones_like(values) if largest <= 0 else values.clamp_min(0) + damping * largest
    scale = values.sqrt()
    return vectors * scale, (vectors / scale).T
