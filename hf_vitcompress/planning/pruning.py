"""Which of the features between layers remain: importance scores, error curves, least-squares repair.

Layers with `m` features between them (`fc1 → activation → fc2`, with a gate or without, or `v → attention → o`) are
pruned by removing features: rows of the weights that make them, columns of the one that reads them, `W₂ (out, m)`. The
columns that stay, `S`, are solved again for the inputs `a` they still have. With `C = E[a aᵀ]` (centred where the bias
takes up the mean) and `G` the metric on the output side, the least-squares solution and its error are

    W₂' = W₂ C_{·S} C_SS⁻¹        E(S) = ½ tr(G W₂_R C_{R|S} W₂_Rᵀ),  R the removed ones,

`C_{R|S}` the Schur complement. For nested sets one Cholesky factor of `C` in their order has them all: with `C = L Lᵀ`,
`E(first w) = ½ Σ_{j ≥ w} ‖G^½ (W₂ L)_j‖²`. In the units of the rank curves, so that the planner compares both.

Orders come from three criteria: `fisher_order` removes, again and again, the features that raise `E` least
(Optimal Brain Surgeon, Hassibi & Stork 1993, for whole columns and with `G` in the place of the identity);
`magnitude_order` is the usual baseline; learned scores (`gates`, Zhu et al., arXiv 2104.08500) are just sorted.

Features need not be the layers' own: linear ones (values) are first rotated within each head, see `value_rotation`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import CalibrationError
from .closed_form import roots, tail_sums

GROUPS = 32
"""In how many steps about all features are eliminated; within one, interactions are followed among the candidates."""
CANDIDATES = 2
"""Candidates of a step, as a multiple of those it removes."""
RIDGE = 1e-6
"""Added to `C`, relative to its mean diagonal: dead and duplicate features are a normal case."""
ORDER_RIDGE = 1e-4
"""The same for `fisher_order`, whose inverse is float32."""


def cholesky(covariance: Tensor, ridge: float = RIDGE) -> Tensor:
    """`L` with `L Lᵀ = C + ridge · mean diagonal`; more, where rounding has left `C` with negative eigenvalues.

    Raises:
        CalibrationError: no ridge helps.
    """
    scale = float(covariance.diagonal().mean().clamp_min(1e-30))
    eye = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    while ridge < 1:
        factor, failed = torch.linalg.cholesky_ex(covariance + ridge * scale * eye)
        if not failed:
            return factor
        ridge *= 10
    raise CalibrationError(
        "The moments of some hidden features are not those of any activations (NaN, or no covariance). Calibrate "
        'again, with precision="float32" if it happens again.'
    )


def repaired(weight: Tensor, covariance: Tensor, kept: Tensor) -> Tensor:
    """`W₂' (out, len(kept))`, the least-squares weight on the kept features."""
    factor = cholesky(covariance[kept][:, kept])
    return torch.cholesky_solve((weight @ covariance[:, kept]).T, factor).T


def repaired_errors(weight: Tensor, output_side: Tensor, covariance: Tensor, order: Tensor) -> Tensor:
    """`E` (m + 1,) if only the first 0 … m features of `order` remain and the rest of the weight is repaired."""
    carried = weight[:, order] @ cholesky(covariance[order][:, order])
    return tail_sums((carried * (output_side @ carried)).sum(0).clamp_min(0) / 2)


def cut_errors(weight: Tensor, output_side: Tensor, covariance: Tensor, order: Tensor) -> Tensor:
    """The same without repair: `½ tr(G W₂_R C_RR W₂_Rᵀ)`."""
    products = ((weight.T @ output_side @ weight) * covariance)[order][:, order] / 2
    corners = products.flip(0, 1).cumsum(0).cumsum(1).diagonal().flip(0)
    return torch.cat([corners, corners.new_zeros(1)]).clamp_min(0)


def fisher_order(weight: Tensor, output_side: Tensor, covariance: Tensor, group: int | None = None) -> Tensor:
    """Features (m,), the one to keep longest first.

    Backward elimination: with `P = C_SS⁻¹` and the repaired columns `w_j`, removing j alone raises the error by
    `½ w_jᵀ G w_j / P_jj`. The cheapest few candidates are followed exactly while a group of them is removed one by one;
    then all of `P` and of the weight is updated at once. In float32, which orders as float64 does.

    Args:
        weight: `W₂` (out, m).
        output_side: `G` (out, out), positive semidefinite.
        covariance: `C` (m, m).
        group: features removed between updates.
    """
    count = weight.shape[1]
    group = group or max(1, count // GROUPS)
    # Scaled to 1, so that nothing under- or overflows in float32.
    metric = (output_side / output_side.diagonal().mean().clamp_min(1e-300)).float()
    scaled = covariance / covariance.diagonal().mean().clamp_min(1e-300)
    inverse = torch.cholesky_inverse(cholesky(scaled, ORDER_RIDGE)).float()
    columns = (weight / weight.norm().clamp_min(1e-300)).float()
    alive = torch.arange(count, device=weight.device)
    removed: list[Tensor] = []
    while len(alive) > 1:
        seen = metric @ columns
        rise = (columns * seen).sum(0) / inverse.diagonal()
        candidates = rise.topk(min(CANDIDATES * group, len(alive)), largest=False).indices
        chosen = candidates[
            _eliminate(
                columns[:, candidates].T @ seen[:, candidates],
                inverse[candidates][:, candidates],
                min(group, len(alive) - 1),
            )
        ]
        removed.append(alive[chosen])
        stays = torch.ones(len(alive), dtype=torch.bool, device=weight.device)
        stays[chosen] = False
        update = torch.linalg.solve(inverse[chosen][:, chosen], inverse[chosen])
        columns = (columns - columns[:, chosen] @ update)[:, stays]
        inverse = (inverse - inverse[:, chosen] @ update)[stays][:, stays]
        alive = alive[stays]
    return torch.cat([alive, *(group.flip(0) for group in reversed(removed))])


def _eliminate(gram: Tensor, inverse: Tensor, count: int) -> list[int]:
    """Which `count` candidates go first, in that order, from their `wᵀ G w` and their part of `P`."""
    gram, inverse = gram.clone().cpu(), inverse.clone().cpu()
    gone = torch.zeros(len(gram), dtype=torch.bool)
    order: list[int] = []
    for _ in range(count):
        rise = gram.diagonal() / inverse.diagonal()
        chosen = int(rise.masked_fill(gone, torch.inf).argmin())
        order.append(chosen)
        gone[chosen] = True
        share = inverse[chosen] / inverse[chosen, chosen]
        column, own = gram[:, chosen].clone(), gram[chosen, chosen].clone()
        cross = torch.outer(column, share)
        gram += own * torch.outer(share, share) - cross - cross.T
        inverse -= torch.outer(inverse[:, chosen].clone(), share)
        inverse[chosen, chosen] = 1.0  # never asked again
    return order


def magnitude_order(producers: Sequence[Tensor], consumer: Tensor) -> Tensor:
    """Features by the product of the norms of their row in each producer (m, ·) and column of the consumer (·, m)."""
    norms = torch.stack([*(weight.norm(dim=1) for weight in producers), consumer.norm(dim=0)])
    return norms.prod(0).argsort(descending=True, stable=True)


def group_order(weight: Tensor, output_side: Tensor, covariance: Tensor, groups: Sequence[Tensor]) -> list[int]:
    """Groups of features (heads), the one to keep longest first, by exact backward elimination."""
    left, removed = list(range(len(groups))), []
    while len(left) > 1:
        errors = {g: _error_of(weight, output_side, covariance, [groups[i] for i in left if i != g]) for g in left}
        worst = min(left, key=lambda g: errors[g])
        left.remove(worst)
        removed.append(worst)
    return left + removed[::-1]


def _error_of(weight: Tensor, output_side: Tensor, covariance: Tensor, kept: Sequence[Tensor]) -> float:
    """`2 E(S)`, less what is the same for all `S`."""
    columns = torch.cat(list(kept))
    explained = weight @ covariance[:, columns]
    solution = repaired(weight, covariance, columns)
    return -float(((output_side @ solution) * explained).sum())


def value_rotation(weight: Tensor, output_side: Tensor, covariance: Tensor, heads: int) -> Tensor:
    """`T` (m, m), block-diagonal by head: `T a` are features of which each head's first r are its best r.

    Attention mixes tokens and not features, so `o(v(x))` is the same with `T v` and `o T⁻¹`. Within a head the rows are
    the right singular vectors of `G^½ W_o,h C_hh^½`, mapped back.
    """
    size = weight.shape[1] // heads
    root = roots(output_side, RIDGE)[0]
    blocks = []
    for head in range(heads):
        group = slice(head * size, (head + 1) * size)
        inner, inverse = roots(covariance[group, group], RIDGE)
        _, _, vectors = torch.linalg.svd(root.T @ weight[:, group] @ inner, full_matrices=True)
        rows = vectors @ inverse
        # In the units of the values, so that directions without any do not swell what rounding has left of them.
        blocks.append(rows / rows.norm(dim=1, keepdim=True))
    return torch.block_diag(*blocks)
