"""The residual tensors of one layer against the loss of its output, in float64."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_vitcompress.architectures.layers import LayerInfo
from hf_vitcompress.compensation.cross_moments import CrossMoments, targets_output
from hf_vitcompress.compensation.residual import RIDGE, residual_rank, solve_residual
from hf_vitcompress.planning.closed_form import Factorization
from hf_vitcompress.planning.groups.base import RegressionTarget
from support.pairs import pairwise
from support.problems import Problem, make

RANK = 4

OF_OUTPUTS = ("weight", "row_fisher", "fisher")
SHAPES = {"wide_output": (14, 8), "square": (9, 9), "wide_input": (8, 14)}
"""(out, in)"""
BIASES = {"corrected": (True, True), "uncorrected": (True, False), "no_bias": (False, True)}
"""Whether there is one, and whether it is to be corrected."""
SHARES = (0.25, 1.0)

every_metric = pytest.mark.parametrize("metric", OF_OUTPUTS)
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
every_bias = pytest.mark.parametrize(("bias", "correct_bias"), BIASES.values(), ids=BIASES)


@dataclass
class LayerProblem:
    """A layer whose input in the compressed model is not what it was in the dense one."""

    base: Problem
    x_hat: Tensor
    rank: int = RANK
    share: float = 0.5

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    @property
    def kept(self) -> int:
        """r of the closed form."""
        return self.rank - residual_rank(self.rank, self.share)

    @property
    def used_input(self) -> Tensor:
        return self.x_hat - self.x_hat.mean(0) if self.base.centered else self.x_hat

    @property
    def second(self) -> Tensor:
        """`C` without the ridge."""
        return self.used_input.T @ self.used_input / len(self.x_hat)

    @property
    def ridge(self) -> float:
        return RIDGE * float(self.second.diagonal().mean())

    @property
    def damped(self) -> Tensor:
        return self.second + self.ridge * torch.eye(len(self.second), dtype=torch.float64)

    @property
    def target(self) -> Tensor:
        """`W x`."""
        target = self.base.x.double() @ self.weight.T
        return target - target.mean(0) if self.base.centered else target

    @property
    def least_squares(self) -> Tensor:
        """The minimum over all matrices."""
        cross = self.target.T @ self.used_input / len(self.x_hat)
        return torch.linalg.solve(self.damped, (cross + self.ridge * self.weight).T).T

    def moments(self) -> CrossMoments:
        x = self.base.x.double()
        target = x @ self.weight.T if targets_output(self.base.layer) else x
        target_mean, mean = target.mean(0), self.x_hat.mean(0)
        centred = self.x_hat - mean
        return CrossMoments(
            mean, centred.T @ centred / len(x), target_mean, (target - target_mean).T @ centred / len(x)
        )

    @property
    def wanted(self) -> RegressionTarget:
        """What the layer is to compute, as its part says it."""
        layer, linear, side = self.base.layer, self.base.linear, self.base.output_side
        on_output = layer.out_features <= layer.in_features
        if not on_output:
            side = self.weight.T @ side @ self.weight
        elif self.base.config.metric != "fisher":
            side = side.diagonal()
        bias = None if linear.bias is None else linear.bias.detach().double()
        return RegressionTarget(
            (layer,), self.weight, self.weight, side, on_output, bias, self.base.centered, self.rank
        )

    def solve(self, factorization: Factorization | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        closed_form = factorization or self.base.factorize()
        factors = closed_form.up[:, : self.rank], closed_form.down[: self.rank]
        up, down, bias = solve_residual(self.wanted, factors, self.share, self.moments(), self.base.config.damping)
        assert down is not None
        return up, down, bias

    def loss(self, up: Tensor, down: Tensor, bias: Tensor | None) -> Tensor:
        """`E ‖W x + b − (up down x̂ + bias)‖²_G + λ ‖W − up down‖²_G`, on the data and not on moments."""
        own_bias = self.base.linear.bias
        error = self.base.x.double() @ self.weight.T - self.x_hat @ down.T @ up.T
        if own_bias is not None and bias is not None:
            error = error + own_bias.detach().double() - bias
        rest = self.weight - up @ down
        side = self.base.output_side
        return ((error @ side) * error).sum() / len(error) + self.ridge * ((side @ rest) * rest).sum()


def layer_problem(
    metric: str = "fisher",
    shape: tuple[int, int] = (9, 9),
    bias: bool = True,
    correct_bias: bool = True,
    share: float = 0.5,
    rank: int = RANK,
    **settings: Any,
) -> LayerProblem:
    base = make(metric, shape, bias, correct_bias=correct_bias, **settings)
    generator = torch.Generator().manual_seed(5)
    mixing = torch.eye(shape[1]) + 0.3 * torch.randn(shape[1], shape[1], generator=generator)
    x_hat = base.x @ mixing + 0.3 * torch.randn(base.x.shape, generator=generator) + 0.5
    return LayerProblem(base, x_hat.double(), rank, share)


def excess(problem: LayerProblem, product: Tensor) -> float:
    """How much more than the least squares a matrix loses."""
    difference = product - problem.least_squares
    return float(((problem.base.output_side @ difference) * (difference @ problem.damped)).sum())


def root_of(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


@pytest.mark.parametrize(
    ("rank", "share", "expected"),
    [(8, 1.0, 8), (8, 0.25, 2), (8, 0.5, 4), (8, 0.01, 1), (1, 0.25, 1), (1, 1.0, 1), (3, 0.5, 2), (100, 0.25, 25)],
)
def test_the_residual_takes_its_share_of_the_rank_and_at_least_one(rank: int, share: float, expected: int) -> None:
    assert residual_rank(rank, share) == expected


@pairwise({"metric": OF_OUTPUTS, "shape": SHAPES, "bias, correct_bias": BIASES, "share": SHARES})
def test_the_gradient_of_the_loss_vanishes(
    metric: str, shape: tuple[int, int], bias: bool, correct_bias: bool, share: float
) -> None:
    problem = layer_problem(metric, shape, bias, correct_bias, share)
    up, down, solved_bias = problem.solve()

    def gradients(scale: float) -> list[Tensor]:
        groups = [up[:, problem.kept :] * scale, down[problem.kept :] * scale]
        if problem.base.centered and solved_bias is not None:
            groups.append(solved_bias * scale)
        free = [group.clone().requires_grad_(True) for group in groups]
        whole_up = torch.cat([up[:, : problem.kept], free[0]], 1)
        whole_down = torch.cat([down[: problem.kept], free[1]])
        loss = problem.loss(whole_up, whole_down, free[2] if len(free) > 2 else solved_bias)
        return list(torch.autograd.grad(loss, free))

    for at_solution, beside_it in zip(gradients(1.0), gradients(1.1), strict=True):
        assert at_solution.norm() < 1e-6 * beside_it.norm()  # the closed form's factors are float32


@pairwise({"metric": OF_OUTPUTS, "shape": SHAPES, "bias, correct_bias": BIASES, "share": SHARES})
def test_no_other_tensors_of_that_rank_lose_less(
    metric: str, shape: tuple[int, int], bias: bool, correct_bias: bool, share: float
) -> None:
    """Eckart and Young: what a rank leaves over are the squares of the last singular values."""
    problem = layer_problem(metric, shape, bias, correct_bias, share)
    up, down, solved_bias = problem.solve()
    missing = problem.least_squares - up[:, : problem.kept] @ down[: problem.kept]
    whitened = root_of(problem.base.output_side) @ missing @ root_of(problem.damped)
    tail = torch.linalg.svdvals(whitened)[residual_rank(problem.rank, share) :]
    assert excess(problem, up @ down) == pytest.approx(float(tail.square().sum()), rel=1e-8)
    # And that excess is what the streamed loss says.
    full_up, full_down = problem.least_squares, torch.eye(shape[1], dtype=torch.float64)
    offset = None
    if solved_bias is not None:
        x_mean, x_hat_mean = problem.base.x.double().mean(0), problem.x_hat.mean(0)
        shift = problem.weight @ x_mean - full_up @ x_hat_mean if problem.base.centered else 0
        offset = problem.base.linear.bias.detach().double() + shift
    measured = float(problem.loss(up, down, solved_bias) - problem.loss(full_up, full_down, offset))
    assert measured == pytest.approx(float(tail.square().sum()), rel=1e-6)


@every_metric
@every_shape
def test_alternating_least_squares_finds_nothing_better(metric: str, shape: tuple[int, int]) -> None:
    problem = layer_problem(metric, shape)
    up, down, _ = problem.solve()
    best = excess(problem, up @ down)
    fixed = up[:, : problem.kept] @ down[: problem.kept]
    missing, c = problem.least_squares - fixed, problem.damped
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        q = torch.randn(residual_rank(problem.rank, problem.share), shape[1], generator=generator, dtype=c.dtype)
        for _ in range(100):
            p = torch.linalg.solve(q @ c @ q.T, q @ c @ missing.T).T
            carried = p.T @ problem.base.output_side
            q = torch.linalg.solve(carried @ p, carried @ missing)
        assert excess(problem, fixed + p @ q) > best * (1 - 1e-9)


@every_shape
@every_bias
def test_descending_along_the_gradient_from_the_closed_form_finds_nothing_better(
    shape: tuple[int, int], bias: bool, correct_bias: bool
) -> None:
    """As the paper does it."""
    problem = layer_problem("fisher", shape, bias, correct_bias)
    best = float(problem.loss(*problem.solve()))
    factorization = problem.base.factorize()
    up, down = factorization.up[:, :RANK].double(), factorization.down[:RANK].double()
    own = problem.base.linear.bias
    start_bias = None if own is None else own.detach().double()
    p, q = (group.clone().requires_grad_(True) for group in (up[:, problem.kept :], down[problem.kept :]))
    free = [p, q]
    if problem.base.centered and start_bias is not None:
        start_bias = start_bias.clone().requires_grad_(True)
        free.append(start_bias)

    def loss() -> Tensor:
        whole = torch.cat([up[:, : problem.kept], p], 1), torch.cat([down[: problem.kept], q])
        return problem.loss(*whole, start_bias)

    optimizer = torch.optim.LBFGS(free, max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    start = float(loss().detach())
    optimizer.step(closure)
    assert start > float(loss().detach()) > best * (1 - 1e-9)


@pairwise({"metric": OF_OUTPUTS, "shape": SHAPES, "bias, correct_bias": BIASES})
def test_all_of_a_full_rank_is_the_least_squares_optimum(
    metric: str, shape: tuple[int, int], bias: bool, correct_bias: bool
) -> None:
    problem = layer_problem(metric, shape, bias, correct_bias, share=1.0, rank=min(shape))
    up, down, _ = problem.solve()
    assert (up @ down - problem.least_squares).norm() < 1e-5 * problem.least_squares.norm()


@pairwise({"metric": OF_OUTPUTS, "shape": SHAPES, "share": SHARES})
def test_the_closed_form_keeps_the_rest_of_the_rank_and_both_become_one_factor_pair(
    metric: str, shape: tuple[int, int], share: float
) -> None:
    problem = layer_problem(metric, shape, share=share)
    factorization = problem.base.factorize()
    up, down, _ = problem.solve(factorization)
    assert (up.shape, down.shape) == ((shape[0], RANK), (RANK, shape[1]))
    r = problem.kept
    assert torch.equal(up[:, :r], factorization.up[:, :r].double())
    assert torch.equal(down[:r], factorization.down[:r].double())
    unfolded = problem.x_hat @ down[:r].T @ up[:, :r].T + problem.x_hat @ down[r:].T @ up[:, r:].T
    folded = problem.x_hat @ down.T @ up.T
    assert (folded - unfolded).norm() < 1e-12 * folded.norm()


@pairwise({"metric": OF_OUTPUTS, "shape": SHAPES, "bias, correct_bias": BIASES, "share": SHARES})
def test_the_loss_is_no_higher_than_that_of_the_closed_form(
    metric: str, shape: tuple[int, int], bias: bool, correct_bias: bool, share: float
) -> None:
    """Whose factors are one of the choices."""
    problem = layer_problem(metric, shape, bias, correct_bias, share)
    factorization = problem.base.factorize()
    linear = problem.base.linear
    closed_bias = factorization.corrected_bias(
        linear.weight.detach(), None if linear.bias is None else linear.bias.detach(), RANK
    )
    closed = factorization.up[:, :RANK].double(), factorization.down[:RANK].double()
    before = problem.loss(*closed, None if closed_bias is None else closed_bias.double())
    assert float(problem.loss(*problem.solve(factorization))) < 0.9 * float(before)


@every_shape
def test_the_corrected_bias_centres_the_error(shape: tuple[int, int]) -> None:
    problem = layer_problem("fisher", shape, mean=10.0)
    up, down, bias = problem.solve()
    assert bias is not None
    output = problem.x_hat @ down.T @ up.T + bias
    wanted = problem.base.x.double() @ problem.weight.T + problem.base.linear.bias.detach().double()
    assert (output - wanted).mean(0).abs().max() < 1e-9 * wanted.abs().max()


@every_shape
def test_an_uncorrected_bias_stays(shape: tuple[int, int]) -> None:
    problem = layer_problem("fisher", shape, correct_bias=False)
    bias = problem.solve()[2]
    assert bias is not None
    assert torch.equal(bias, problem.base.linear.bias.detach().double())
    assert layer_problem("fisher", shape, bias=False).solve()[2] is None


@every_shape
def test_moments_about_zero_are_the_uncentred_ones(shape: tuple[int, int]) -> None:
    problem = layer_problem("fisher", shape)
    found = problem.moments().about_zero()
    x = problem.base.x.double()
    target = x @ problem.weight.T if targets_output(problem.base.layer) else x
    assert torch.allclose(found.covariance, problem.x_hat.T @ problem.x_hat / len(problem.x_hat))
    assert torch.allclose(found.cross, target.T @ problem.x_hat / len(problem.x_hat))


@every_metric
@every_shape
def test_inputs_that_say_nothing_leave_the_closed_form(metric: str, shape: tuple[int, int]) -> None:
    """A dead input has no variance; then only the ridge speaks, and it asks for the dense weight."""
    problem = layer_problem(metric, shape, rank=min(shape), share=0.5)
    problem.x_hat = torch.ones_like(problem.x_hat)
    up, down, bias = problem.solve()
    assert bias is not None
    assert (up @ down - problem.weight).norm() < 1e-5 * problem.weight.norm()
    wanted = problem.weight @ problem.base.x.double().mean(0) + problem.base.linear.bias.detach().double()
    assert torch.allclose(up @ (down @ problem.x_hat[0]) + bias, wanted)


@every_shape
def test_a_weight_without_full_rank_is_no_special_case(shape: tuple[int, int]) -> None:
    problem = layer_problem("weight", shape, share=0.5)
    with torch.no_grad():
        problem.base.linear.weight[:, 0] = 0
        problem.base.linear.weight[0] = 0
    up, down, _ = problem.solve()
    tail = torch.linalg.svdvals(
        (problem.least_squares - up[:, : problem.kept] @ down[: problem.kept]) @ root_of(problem.damped)
    )[residual_rank(RANK, 0.5) :]
    assert excess(problem, up @ down) == pytest.approx(float(tail.square().sum()), rel=1e-6)


@dataclass
class Pruned:
    """A layer that reads only some of the features, in the compressed model, and has only some of its rows."""

    x: Tensor
    x_hat: Tensor
    weight: Tensor
    start: Tensor

    def target(self, centered: bool, on_output: bool = True) -> RegressionTarget:
        layer = LayerInfo("layer", "o", 0, "input", self.weight.shape[1], self.weight.shape[1])
        bias = torch.linspace(-1, 1, len(self.weight), dtype=torch.float64)
        metric = torch.ones(len(self.weight) if on_output else self.weight.shape[1], dtype=torch.float64)
        return RegressionTarget((layer,), self.weight, self.start, metric, on_output, bias, centered, None)

    def moments(self) -> CrossMoments:
        centred, target = self.x_hat - self.x_hat.mean(0), self.x - self.x.mean(0)
        covariance, cross = centred.T @ centred / len(self.x), target.T @ centred / len(self.x)
        return CrossMoments(self.x_hat.mean(0), covariance, self.x.mean(0), cross)


def pruned_problem(rows: int = 9, left: int = 6) -> Pruned:
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(400, 9, generator=generator, dtype=torch.float64) + 1
    x_hat = x[:, :left] + 0.2 * torch.randn(400, left, generator=generator, dtype=torch.float64)
    weight = torch.randn(rows, 9, generator=generator, dtype=torch.float64)
    return Pruned(x, x_hat, weight, weight[:, :left])


@pytest.mark.parametrize("rows", [4, 9])
@pytest.mark.parametrize("left", [1, 6, 9])
@pytest.mark.parametrize("centered", [True, False])
def test_a_layer_without_a_rank_is_solved_by_least_squares(rows: int, left: int, centered: bool) -> None:
    problem = pruned_problem(rows, left)
    target = problem.target(centered)
    solved, down, bias = solve_residual(target, None, 0.5, problem.moments(), 1e-6)
    assert down is None
    assert bias is not None
    x_hat = problem.x_hat - problem.x_hat.mean(0) if centered else problem.x_hat
    wanted = (problem.x - problem.x.mean(0) if centered else problem.x) @ problem.weight.T
    ridge = RIDGE * float((x_hat.T @ x_hat).diagonal().mean()) / len(x_hat)
    # The ridge as rows of its own: it asks for the closed form's weight.
    rows_of_ridge = (ridge * len(x_hat)) ** 0.5 * torch.eye(left, dtype=torch.float64)
    both = torch.cat([x_hat, rows_of_ridge]), torch.cat([wanted, rows_of_ridge @ problem.start.T])
    assert torch.allclose(solved, torch.linalg.lstsq(*both).solution.T, rtol=1e-8, atol=1e-8)
    offset = problem.x_hat @ solved.T + bias - problem.x @ problem.weight.T - target.bias
    assert (float(offset.mean(0).norm()) < 1e-9) is centered
    assert torch.equal(bias, target.bias) is not centered


def test_a_layer_whose_input_is_as_it_was_stays_as_it_is() -> None:
    problem = pruned_problem(left=9)
    problem.x_hat = problem.x
    for on_output in (True, False):
        solved, _, bias = solve_residual(problem.target(True, on_output), None, 1.0, problem.moments(), 1e-6)
        assert torch.allclose(solved, problem.weight, atol=1e-9)
        assert torch.allclose(bias, problem.target(True).bias, atol=1e-9)
