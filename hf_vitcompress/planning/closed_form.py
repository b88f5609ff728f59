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
from torch import Tensor

from .layer_moments import LayerMoments


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


def factorize(moments: LayerMoments, damping: float) -> Factorization:
    """Solve one layer.

    Returns:
        factors and error curve; the curve is in units of the loss (nats per image) for the metric `"fisher"`, in the
        metric's own units otherwise.
    """
    narrow, wide = moments.sides
    up, down, errors = solve(moments.weight, roots(narrow, damping), wide, moments.on_output)
    return Factorization(up.float(), down.float(), errors, moments.mean if moments.centered else None)


def solve(
    weight: Tensor, narrow_roots: tuple[Tensor, Tensor], wide: Tensor, on_output: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """`up` (out, n), `down` (n, in) and the errors (n + 1,) at every rank, from the roots of `N` and from `K`.

    Args:
        on_output: whether `N` and `K` are (out, out), or else (in, in).
    """
    root, inverse_root = narrow_roots
    eigenvalues, vectors = torch.linalg.eigh(root.T @ wide @ root)
    vectors = vectors.flip(1)
    errors = tail_sums(eigenvalues.flip(0).clamp_min(0) / 2)
    if on_output:
        return inverse_root.T @ vectors, vectors.T @ (root.T @ weight), errors
    return weight @ (root @ vectors), vectors.T @ inverse_root, errors


def error_curve(root: Tensor, wide: Tensor) -> Tensor:
    """The errors alone."""
    return tail_sums(torch.linalg.eigvalsh(root.T @ wide @ root).flip(0).clamp_min(0) / 2)


def tail_sums(terms: Tensor) -> Tensor:
    """(n,) → (n + 1,): what is lost if only the first 0 … n terms are kept."""
    return torch.cat([terms.flip(0).cumsum(0).flip(0), terms.new_zeros(1)])


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
