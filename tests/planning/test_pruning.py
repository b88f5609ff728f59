"""Orders, error curves and repair of pruned features, against explicit data and brute force, in float64."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from hf_vitcompress.errors import CalibrationError
from hf_vitcompress.planning.pruning import (
    cut_errors,
    fisher_order,
    group_order,
    magnitude_order,
    repaired,
    repaired_errors,
    value_rotation,
)

FEATURES, OUTPUTS, TOKENS = 12, 7, 400


class Problem:
    """Features `a` that a weight reads, and the metric of what comes of it."""

    def __init__(self, seed: int = 0, features: int = FEATURES, outputs: int = OUTPUTS, tokens: int = TOKENS) -> None:
        generator = torch.Generator().manual_seed(seed)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.mixing = random(features, features) * torch.logspace(0, -1.5, features, dtype=torch.float64)
        self.tokens, self.generator = tokens, generator
        self.a = self.draw()
        self.weight = random(outputs, features)
        half = random(2 * outputs, outputs)
        self.side = half.T @ half / len(half)

    def draw(self) -> Tensor:
        """Other tokens of the same distribution."""
        noise = torch.randn(self.tokens, len(self.mixing), generator=self.generator, dtype=torch.float64)
        return noise @ self.mixing.T

    @property
    def covariance(self) -> Tensor:
        return self.a.T @ self.a / len(self.a)

    @property
    def problem(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.weight, self.side, self.covariance

    def error(self, kept: Tensor, weight: Tensor, a: Tensor | None = None) -> float:
        """`½ mean ‖W a − W' a_S‖²_G` on the tokens."""
        a = self.a if a is None else a
        lost = a @ self.weight.T - a[:, kept] @ weight.T
        return float(((lost @ self.side) * lost).sum() / len(a) / 2)

    def best(self, kept: Tensor) -> Tensor:
        return torch.linalg.lstsq(self.a[:, kept], self.a @ self.weight.T).solution.T


def shuffled(count: int, seed: int = 3) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("width", [1, 5, 11, 12])
def test_repair_is_least_squares(width: int) -> None:
    problem, kept = Problem(), shuffled(FEATURES)[:width]
    solved = repaired(problem.weight, problem.covariance, kept)
    assert solved.shape == (OUTPUTS, width)
    # The ridge moves what the tokens hardly determine.
    assert (solved - problem.best(kept)).norm() < 2e-3 * solved.norm()
    assert problem.error(kept, solved) <= problem.error(kept, problem.best(kept)) + 1e-6 * problem.error(
        kept, 0 * solved
    )


@pytest.mark.parametrize("width", [1, 5, 11])
def test_the_gradient_vanishes_at_the_repaired_weight(width: int) -> None:
    problem, kept = Problem(), shuffled(FEATURES)[:width]

    def gradient(weight: Tensor) -> Tensor:
        weight = weight.clone().requires_grad_(True)
        lost = problem.a @ problem.weight.T - problem.a[:, kept] @ weight.T
        return torch.autograd.grad(((lost @ problem.side) * lost).sum(), weight)[0]

    solved = repaired(problem.weight, problem.covariance, kept)
    assert gradient(solved).norm() < 1e-4 * gradient(problem.weight[:, kept]).norm()


def test_all_features_leave_the_weight_as_it_was() -> None:
    problem = Problem()
    solved = repaired(problem.weight, problem.covariance, torch.arange(FEATURES))
    assert (solved - problem.weight).norm() < 2e-3 * problem.weight.norm()


@pytest.mark.parametrize("seed", range(3))
def test_errors_at_every_width_are_those_of_the_data(seed: int) -> None:
    problem, order = Problem(seed), shuffled(FEATURES, seed)
    whole = repaired_errors(*problem.problem, order), cut_errors(*problem.problem, order)
    energy = float(whole[0][0])
    for width in range(FEATURES + 1):
        kept = order[:width]
        solved = repaired(problem.weight, problem.covariance, kept) if width else problem.weight[:, :0]
        assert float(whole[0][width]) == pytest.approx(problem.error(kept, solved), rel=1e-4, abs=1e-5 * energy)
        assert float(whole[1][width]) == pytest.approx(
            problem.error(kept, problem.weight[:, kept]), rel=1e-9, abs=1e-12 * energy
        )


@pytest.mark.parametrize("seed", range(3))
def test_repaired_errors_fall_to_zero_and_lie_below_cut_ones(seed: int) -> None:
    problem, order = Problem(seed), shuffled(FEATURES, seed)
    repaired_, cut = repaired_errors(*problem.problem, order), cut_errors(*problem.problem, order)
    assert len(repaired_) == len(cut) == FEATURES + 1
    assert (repaired_[1:] <= repaired_[:-1]).all()
    assert repaired_[-1] == cut[-1] == 0
    assert (repaired_ <= cut + 1e-5 * cut[0]).all()
    assert float(repaired_[0]) == pytest.approx(float(cut[0]), rel=1e-4)
    assert (repaired_[1:-1] < 0.95 * cut[1:-1]).any()


@pytest.mark.parametrize("seed", range(5))
def test_repair_helps_on_tokens_that_it_has_not_seen(seed: int) -> None:
    problem = Problem(seed)
    others, order = problem.draw(), fisher_order(*problem.problem, group=1)
    for width in range(1, FEATURES):
        kept = order[:width]
        solved = repaired(problem.weight, problem.covariance, kept)
        cut = problem.error(kept, problem.weight[:, kept], others)
        assert problem.error(kept, solved, others) <= cut * (1 + 1e-9)
        assert problem.error(kept, solved, others) == pytest.approx(problem.error(kept, solved), rel=0.35)


# ---- orders


def brute_force_order(problem: Problem) -> list[int]:
    """Removes, again and again, whatever leaves the least error of what is left, solved anew each time."""
    left, removed = list(range(problem.weight.shape[1])), []
    while len(left) > 1:
        rests = {j: torch.tensor([i for i in left if i != j]) for j in left}
        errors = {j: problem.error(rest, problem.best(rest)) for j, rest in rests.items()}
        worst = min(left, key=lambda j: errors[j])
        left.remove(worst)
        removed.append(worst)
    return left + removed[::-1]


@pytest.mark.parametrize("seed", range(4))
def test_the_order_is_that_of_brute_force_elimination(seed: int) -> None:
    problem = Problem(seed, features=8)
    assert fisher_order(*problem.problem, group=1).tolist() == brute_force_order(problem)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("group", [2, 4, None])
def test_groups_lose_little_more_than_one_feature_at_a_time(seed: int, group: int | None) -> None:
    problem = Problem(seed, features=48, outputs=20, tokens=2000)
    alone, grouped = (repaired_errors(*problem.problem, fisher_order(*problem.problem, group=g)) for g in (1, group))
    assert (grouped <= 1.3 * alone + 0.01 * alone[0]).all()
    assert float(grouped.sum()) <= 1.1 * float(alone.sum())


@pytest.mark.parametrize("seed", range(3))
def test_no_set_of_a_small_problem_is_much_better(seed: int) -> None:
    """The best of all sets at every width; elimination need not find it, but comes near."""
    problem = Problem(seed, features=8)
    errors = repaired_errors(*problem.problem, fisher_order(*problem.problem, group=1))
    for width in range(1, 8):
        sets = (torch.tensor(kept) for kept in itertools.combinations(range(8), width))
        best = min(problem.error(kept, problem.best(kept)) for kept in sets)
        assert best <= float(errors[width]) * (1 + 1e-3) + 1e-5 * float(errors[0])
        assert float(errors[width]) <= 2 * best + 1e-5 * float(errors[0])


@pytest.mark.parametrize("group", [1, 3])
def test_of_independent_features_those_of_least_energy_go_first(group: int) -> None:
    problem = Problem(features=16)
    variances = torch.logspace(0, -2, 16, dtype=torch.float64)[shuffled(16)]
    order = fisher_order(problem.weight, problem.side, torch.diag(variances), group)
    energy = ((problem.side @ problem.weight) * problem.weight).sum(0) * variances
    assert order.tolist() == energy.argsort(descending=True).tolist()


@pytest.mark.parametrize("group", [1, 2, 4, None])
def test_dead_features_and_duplicates_go_first(group: int | None) -> None:
    problem = Problem(features=16, outputs=16)
    problem.a[:, 3] = 0
    problem.a[:, 7] = 0
    problem.a[:, 9] = problem.a[:, 2]
    problem.a[:, 11] = -2 * problem.a[:, 5]
    order = fisher_order(*problem.problem, group).tolist()
    assert set(order) == set(range(16))
    assert {3, 7} < set(order[-4:])
    assert len({2, 9} & set(order[-4:])) == len({5, 11} & set(order[-4:])) == 1
    errors = repaired_errors(*problem.problem, torch.tensor(order))
    assert float(errors[12]) < 1e-4 * float(errors[0])
    assert float(errors[11]) > float(errors[12])


def test_features_that_nothing_reads_go_before_all_that_are_read() -> None:
    problem = Problem()
    problem.weight[:, [1, 4]] = 0
    order = fisher_order(*problem.problem, group=1)
    rest = torch.tensor([i for i in range(FEATURES) if i not in (1, 4)])
    # Unread features may still repair others; without them nothing is lost.
    errors = repaired_errors(*problem.problem, order)
    assert float(errors[10]) <= problem.error(rest, problem.weight[:, rest]) + 1e-5 * float(errors[0])


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1.0, 1e12])
@pytest.mark.parametrize("which", ["weight", "side", "covariance"])
def test_the_scale_of_the_data_does_not_matter(scale: float, which: str) -> None:
    plain = dict(zip(("weight", "side", "covariance"), Problem().problem, strict=True))
    scaled = {**plain, which: plain[which] * scale}
    orders = [fisher_order(p["weight"], p["side"], p["covariance"], 1) for p in (plain, scaled)]
    assert torch.equal(orders[0], orders[1])


@pytest.mark.parametrize("rank", [0, 1, 5])
@pytest.mark.parametrize("which", ["covariance", "side"])
def test_singular_moments_are_no_special_case(rank: int, which: str) -> None:
    problem = Problem(features=40, outputs=10)
    moments = {"side": problem.side, "covariance": problem.covariance}
    size = len(moments[which])
    half = torch.randn(size, rank, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moments[which] = half @ half.T
    order = fisher_order(problem.weight, moments["side"], moments["covariance"])
    assert sorted(order.tolist()) == list(range(40))
    errors = repaired_errors(problem.weight, moments["side"], moments["covariance"], order)
    assert torch.isfinite(errors).all()
    assert float(errors[-1]) == 0
    if rank:
        kept = order[: 2 * rank]
        assert torch.isfinite(repaired(problem.weight, moments["covariance"], kept)).all()
        assert which == "side" or float(errors[rank]) < 0.01 * float(errors[0])


def order_in_float64(problem: Problem) -> Tensor:
    """Elimination by the formula, with another inverse at every step and next to no ridge."""
    left, removed = list(range(problem.weight.shape[1])), []
    weight, side, covariance = problem.problem
    covariance = covariance + 1e-12 * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=weight.dtype)
    while len(left) > 1:
        inverse = torch.linalg.inv(covariance[left][:, left])
        columns = weight @ covariance[:, left] @ inverse
        rise = ((side @ columns) * columns).sum(0) / inverse.diagonal()
        removed.append(left.pop(int(rise.argmin())))
    return torch.tensor(left + removed[::-1])


@pytest.mark.parametrize("spread", [1e-3, 1e-6, 1e-9])
def test_float32_orders_as_float64_does_in_what_is_lost(spread: float) -> None:
    problem = Problem(features=64, outputs=24, tokens=1000)
    scales = torch.logspace(0, torch.tensor(spread).log10().item(), 64, dtype=torch.float64)
    problem.a = problem.a * scales[shuffled(64)]
    found, exact = (
        repaired_errors(*problem.problem, order)
        for order in (fisher_order(*problem.problem, group=1), order_in_float64(problem))
    )
    assert (found <= 1.02 * exact + 1e-4 * exact[0]).all()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_features_are_no_special_case(count: int) -> None:
    problem = Problem(features=count)
    assert sorted(fisher_order(*problem.problem).tolist()) == list(range(count))
    assert len(repaired_errors(*problem.problem, torch.arange(count))) == count + 1


def test_moments_of_no_activations_are_refused() -> None:
    problem = Problem()
    broken = problem.covariance * torch.nan
    with pytest.raises(CalibrationError, match="Calibrate again"):
        fisher_order(problem.weight, problem.side, broken)
    with pytest.raises(CalibrationError, match="Calibrate again"):
        repaired(problem.weight, broken, torch.arange(3))


def test_covariances_with_rounded_negative_eigenvalues_are_no_special_case() -> None:
    problem = Problem()
    values, vectors = torch.linalg.eigh(problem.covariance)
    values[:3] = -3e-6 * float(values.mean())
    covariance = (vectors * values) @ vectors.T
    order = fisher_order(problem.weight, problem.side, covariance)
    assert torch.isfinite(repaired_errors(problem.weight, problem.side, covariance, order)).all()
    assert torch.isfinite(repaired(problem.weight, covariance, order[:10])).all()


@pytest.mark.parametrize("producers", [1, 2])
def test_magnitude_is_the_product_of_the_norms(producers: int) -> None:
    generator = torch.Generator().manual_seed(0)
    firsts = [torch.randn(9, 5, generator=generator) for _ in range(producers)]
    second = torch.randn(4, 9, generator=generator)
    norms = [math.prod(float(first[j].norm()) for first in firsts) * float(second[:, j].norm()) for j in range(9)]
    assert magnitude_order(firsts, second).tolist() == sorted(range(9), key=lambda j: -norms[j])
    assert magnitude_order([torch.ones(4, 2)] * producers, torch.ones(3, 4)).tolist() == [0, 1, 2, 3]


# ---- groups


@pytest.mark.parametrize("seed", range(4))
def test_the_order_of_groups_is_that_of_brute_force_elimination(seed: int) -> None:
    problem = Problem(seed)
    groups = list(torch.arange(FEATURES).reshape(4, 3))
    left, removed = list(range(4)), []
    while len(left) > 1:
        rests = {g: torch.cat([groups[i] for i in left if i != g]) for g in left}
        errors = {g: problem.error(rest, problem.best(rest)) for g, rest in rests.items()}
        worst = min(left, key=lambda g: errors[g])
        left.remove(worst)
        removed.append(worst)
    assert group_order(*problem.problem, groups) == left + removed[::-1]


def test_a_group_without_use_goes_first() -> None:
    problem = Problem()
    groups = list(torch.arange(FEATURES).reshape(4, 3))
    problem.weight[:, groups[2]] = 0
    problem.a[:, groups[2]] = problem.draw()[:, groups[2]]
    assert group_order(*problem.problem, groups)[-1] == 2


# ---- rotation of values

HEADS, SIZE = 3, 4


def rotation_of(problem: Problem) -> Tensor:
    return value_rotation(*problem.problem, HEADS)


def test_the_rotation_leaves_heads_apart_and_the_product_alone() -> None:
    problem = Problem()
    rotation = rotation_of(problem)
    assert rotation.shape == (FEATURES, FEATURES)
    blocks = torch.block_diag(*(torch.ones(SIZE, SIZE) for _ in range(HEADS))).bool()
    assert not rotation[~blocks].any()
    rotated = (problem.a @ rotation.T) @ (problem.weight @ torch.linalg.inv(rotation)).T
    assert torch.allclose(rotated, problem.a @ problem.weight.T, rtol=1e-6, atol=1e-8)


def test_rotated_features_of_a_head_are_independent_and_of_falling_use() -> None:
    problem = Problem()
    rotation = rotation_of(problem)
    covariance = rotation @ problem.covariance @ rotation.T
    weight = problem.weight @ torch.linalg.inv(rotation)
    for head in range(HEADS):
        group = slice(head * SIZE, (head + 1) * SIZE)
        own = covariance[group, group]
        scale = own.diagonal().sqrt()
        assert torch.allclose(own / torch.outer(scale, scale), torch.eye(SIZE, dtype=torch.float64), atol=5e-3)
        assert torch.allclose(rotation[group].norm(dim=1), torch.ones(SIZE, dtype=torch.float64))
        gram = (weight[:, group] * scale).T @ problem.side @ (weight[:, group] * scale)
        energies = gram.diagonal()
        assert (energies[1:] <= energies[:-1] * (1 + 1e-6)).all()
        assert (gram - torch.diag(energies)).norm() < 1e-4 * gram.norm()


def test_the_first_features_of_a_head_are_its_best_approximation() -> None:
    """Of one head alone, by the singular values of `G^½ W C^½`."""
    problem = Problem()
    rotation = rotation_of(problem)
    group = slice(SIZE, 2 * SIZE)
    values, vectors = torch.linalg.eigh(problem.covariance[group, group])
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    side_values, side_vectors = torch.linalg.eigh(problem.side)
    side_root = (side_vectors * side_values.sqrt()) @ side_vectors.T
    squares = torch.linalg.svdvals(side_root @ problem.weight[:, group] @ root).square()
    weight = (problem.weight @ torch.linalg.inv(rotation))[:, group]
    covariance = (rotation @ problem.covariance @ rotation.T)[group, group]
    errors = cut_errors(weight, problem.side, covariance, torch.arange(SIZE))
    for kept in range(SIZE + 1):
        assert float(errors[kept]) == pytest.approx(float(squares[kept:].sum()) / 2, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("outputs", [2, 7])
@pytest.mark.parametrize("rank", [0, 2])
def test_heads_of_dead_values_or_few_outputs_are_no_special_case(outputs: int, rank: int) -> None:
    problem = Problem(outputs=outputs)
    problem.a[:, SIZE + rank : 2 * SIZE] = 0
    rotation = rotation_of(problem)
    assert torch.isfinite(rotation).all()
    rotated = (problem.a @ rotation.T) @ (problem.weight @ torch.linalg.inv(rotation)).T
    assert torch.allclose(rotated, problem.a @ problem.weight.T, rtol=1e-5, atol=1e-6)
