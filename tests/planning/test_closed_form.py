"""The closed forms against the measured objective and the brute-force optimum, in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hf_vitcompress.config import CompressionConfig
from hf_vitcompress.errors import CalibrationError
from hf_vitcompress.planning.closed_form import factorize
from hf_vitcompress.planning.layer_moments import LayerMoments
from hf_vitcompress.statistics.moments import Moment
from support.pairs import pairwise
from support.problems import CPU, METRICS, approximation, make, objective, optimal_errors

SHAPES = {"wide_output": (24, 10), "square": (16, 16), "wide_input": (10, 24)}
"""(out, in)"""
BIASES = {"corrected": (True, True), "uncorrected": (True, False), "no_bias": (False, True)}
"""Whether there is one, and whether it is to be corrected."""


def steep(size: int) -> Tensor:
    """Eigenvalues from 1 to 1e-12."""
    return torch.logspace(0, -12, size)


def singular(size: int) -> Tensor:
    """Half of the eigenvalues are zero."""
    return (torch.arange(size) < size // 2).float()


every_metric = pytest.mark.parametrize("metric", METRICS)
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
every_bias = pytest.mark.parametrize(("bias", "correct_bias"), BIASES.values(), ids=BIASES)


@pairwise({"metric": METRICS, "shape": SHAPES, "bias, correct_bias": BIASES})
def test_errors_are_the_objective_and_the_optimum(
    metric: str, shape: tuple[int, int], bias: bool, correct_bias: bool
) -> None:
    problem = make(metric, shape, bias, correct_bias=correct_bias)
    factorization = problem.factorize()
    best = optimal_errors(problem.output_side, problem.weight, problem.input_side)
    assert factorization.errors.shape == (min(shape) + 1,)
    for rank in range(min(shape) + 1):
        measured = problem.error(approximation(factorization, rank))
        assert measured == pytest.approx(float(factorization.errors[rank]), rel=1e-4, abs=1e-6 * float(best[0]))
        assert measured == pytest.approx(float(best[rank]), rel=1e-4, abs=1e-6 * float(best[0]))


@pairwise({"metric": METRICS, "shape": SHAPES, "rank": [1, 4, 8]})
def test_nothing_nearby_is_better(metric: str, shape: tuple[int, int], rank: int) -> None:
    problem = make(metric, shape)
    up, down = (factor.double() for factor in problem.factorize().factors(rank))
    best = problem.error(up @ down)
    generator = torch.Generator().manual_seed(0)
    for scale in (1e-3, 1e-2, 1e-1):
        for _ in range(10):
            noise_up = scale * torch.randn(up.shape, generator=generator, dtype=up.dtype)
            noise_down = scale * torch.randn(down.shape, generator=generator, dtype=up.dtype)
            assert problem.error((up + noise_up) @ (down + noise_down)) > best * (1 - 1e-6)


@every_metric
@every_shape
def test_alternating_least_squares_finds_nothing_better(metric: str, shape: tuple[int, int]) -> None:
    problem = make(metric, shape)
    m_out, m_in, weight = problem.output_side, problem.input_side, problem.weight
    up, down = (factor.double() for factor in problem.factorize().factors(3))
    best = problem.error(up @ down)
    up = up + 0.1 * torch.randn(up.shape, generator=torch.Generator().manual_seed(0), dtype=up.dtype)
    for _ in range(200):
        down = torch.linalg.solve(up.T @ m_out @ up, up.T @ m_out @ weight)
        up = torch.linalg.solve(down @ m_in @ down.T, down @ m_in @ weight.T).T
    assert problem.error(up @ down) > best * (1 - 1e-6)


@pairwise(
    {
        "metric": METRICS,
        "shape": SHAPES,
        "spectrum": [singular, steep, torch.zeros],
        "sides": ["input", "output", "both"],
    }
)
def test_singular_moments_work(
    metric: str, shape: tuple[int, int], spectrum: Callable[[int], Tensor], sides: str
) -> None:
    chosen = {"input": ("input_spectrum",), "output": ("output_spectrum",)}.get(
        sides, ("input_spectrum", "output_spectrum")
    )
    problem = make(metric, shape, damping=1e-6, **dict.fromkeys(chosen, spectrum))
    factorization = problem.factorize()
    m_out, m_in = problem.damped_sides()
    damped = optimal_errors(m_out, problem.weight, m_in)
    energy = objective(problem.output_side, problem.weight, problem.input_side)
    for factor in (factorization.up, factorization.down, factorization.errors):
        assert torch.isfinite(factor).all()
    for rank in range(min(shape) + 1):
        # Damping only adds to the objective: the prediction is an upper bound of what is measured.
        measured = problem.error(approximation(factorization, rank))
        assert measured <= float(factorization.errors[rank]) + 2e-6 * energy
        if energy > 0:
            assert float(factorization.errors[rank]) == pytest.approx(float(damped[rank]), rel=1e-3, abs=2e-6 * energy)


@pairwise({"metric": METRICS, "shape": SHAPES, "spectrum": [torch.ones, singular, steep, torch.zeros]})
def test_full_rank_returns_the_weight(metric: str, shape: tuple[int, int], spectrum: Callable[[int], Tensor]) -> None:
    problem = make(metric, shape, input_spectrum=spectrum, output_spectrum=spectrum, damping=1e-6)
    difference = approximation(problem.factorize(), min(shape)) - problem.weight
    assert difference.norm() < 1e-5 * problem.weight.norm()


@pairwise({"metric": METRICS, "shape": SHAPES, "spectrum": [torch.ones, steep]})
def test_errors_fall_ever_more_slowly_to_zero(
    metric: str, shape: tuple[int, int], spectrum: Callable[[int], Tensor]
) -> None:
    errors = make(metric, shape, input_spectrum=spectrum, output_spectrum=spectrum).factorize().errors
    gains = errors[:-1] - errors[1:]
    assert errors[-1] == 0
    assert (gains >= 0).all()
    assert (gains[1:] <= gains[:-1] + 1e-12 * errors[0]).all()
    assert errors[0] > 0


@every_shape
@every_bias
def test_activation_error_is_the_mean_squared_output_error(
    shape: tuple[int, int], bias: bool, correct_bias: bool
) -> None:
    problem = make("activation", shape, bias, correct_bias=correct_bias)
    factorization = problem.factorize()
    for rank in (1, 5, 9):
        shift = factorization.corrected_bias(problem.linear.weight.detach(), problem.linear.bias, rank)
        x = problem.x.double()
        ours = x @ approximation(factorization, rank).T + (0 if shift is None else shift.detach().double())
        theirs = x @ problem.weight.T + (problem.linear.bias.detach().double() if bias else 0)
        measured = float((ours - theirs).square().sum(-1).mean() / 2)
        assert measured == pytest.approx(float(factorization.errors[rank]), rel=1e-4)


@pairwise({"metric": METRICS, "shape": SHAPES, "mean": [1.0, 100.0]})
def test_corrected_bias_centres_the_error(metric: str, shape: tuple[int, int], mean: float) -> None:
    problem = make(metric, shape, mean=mean)
    factorization = problem.factorize()
    for rank in (1, 5):
        bias = factorization.corrected_bias(problem.linear.weight.detach(), problem.linear.bias.detach(), rank)
        x = problem.x.double()
        dense = x @ problem.weight.T + problem.linear.bias.detach().double()
        plain = x @ approximation(factorization, rank).T
        offset = (plain + bias.double() - dense).mean(0)
        uncorrected = (plain + problem.linear.bias.detach().double() - dense).mean(0)
        assert offset.abs().max() < 1e-5 * uncorrected.abs().max()


@pytest.mark.parametrize(("bias", "correct_bias"), [(True, False), (False, True), (False, False)])
def test_bias_is_kept_where_it_is_not_to_be_corrected(bias: bool, correct_bias: bool) -> None:
    problem = make("fisher", (16, 16), bias, correct_bias=correct_bias)
    before = problem.linear.bias
    assert problem.factorize().corrected_bias(problem.linear.weight.detach(), before, 3) is before


@every_metric
@every_shape
def test_factors_are_balanced_and_have_the_same_product(metric: str, shape: tuple[int, int]) -> None:
    factorization = make(metric, shape, output_spectrum=steep, damping=1e-6).factorize()
    for rank in (1, 6, 10):
        up, down = factorization.factors(rank)
        assert up.shape == (shape[0], rank)
        assert down.shape == (rank, shape[1])
        assert torch.allclose(up.norm(dim=0), down.norm(dim=1), rtol=1e-5)
        product = factorization.up[:, :rank].double() @ factorization.down[:rank].double()
        assert (up.double() @ down.double() - product).norm() < 1e-6 * product.norm()


@every_metric
@every_shape
def test_scale_of_the_data_does_not_matter(metric: str, shape: tuple[int, int]) -> None:
    def scaled(by: float) -> Callable[[int], Tensor]:
        return lambda size: torch.full((size,), by)

    plain = make(metric, shape, mean=0.0)
    tiny = make(metric, shape, mean=0.0, input_spectrum=scaled(1e-8), output_spectrum=scaled(1e-16))
    expected, found = (approximation(problem.factorize(), 4) for problem in (plain, tiny))
    assert (found - expected).norm() < 1e-3 * expected.norm()


@pairwise({"metric": METRICS, "shape": SHAPES, "gradients": [1.0, 1e-20]})
def test_zero_weight_gives_zero_factors(metric: str, shape: tuple[int, int], gradients: float) -> None:
    problem = make(
        metric, shape, weight_scale=0.0, damping=1e-6, output_spectrum=lambda size: torch.full((size,), gradients)
    )
    factorization = problem.factorize()
    assert torch.equal(approximation(factorization, 3), torch.zeros(shape, dtype=torch.float64))
    assert torch.equal(factorization.errors, torch.zeros(min(shape) + 1, dtype=torch.float64))


@every_shape
def test_weight_of_low_rank_is_found(shape: tuple[int, int]) -> None:
    problem = make("fisher", shape)
    generator = torch.Generator().manual_seed(0)
    low = torch.randn(shape[0], 3, generator=generator) @ torch.randn(3, shape[1], generator=generator)
    problem.linear.weight.data.copy_(low)
    if shape[1] > shape[0]:
        problem.statistics.outputs["layer"] = Moment.empty(shape[0], True, CPU)
        problem.statistics.outputs["layer"].update(problem.linear(problem.x).detach(), None)
    elif shape[1] < shape[0]:
        carried = problem.g @ low
        problem.statistics.gradients["layer"].second = carried.T @ carried
    factorization = problem.factorize()
    assert factorization.errors[3] < 1e-5 * factorization.energy
    assert (approximation(factorization, 3) - low).norm() < 1e-4 * low.norm()


@pytest.mark.parametrize("metric", ["fisher", "row_fisher"])
@pytest.mark.parametrize("shape", [(24, 10), (10, 24)])
def test_missing_gradients_are_refused(metric: str, shape: tuple[int, int]) -> None:
    problem = make(metric, shape)
    problem.statistics.gradients.clear()
    with pytest.raises(CalibrationError, match=metric):
        problem.factorize()


def test_statistics_of_a_simpler_metric_are_refused() -> None:
    problem = make("weight", (24, 10))
    with pytest.raises(CalibrationError, match="calibrate again"):
        factorize(
            LayerMoments.of(problem.layer, problem.linear, problem.statistics, CompressionConfig(metric="activation")),
            CompressionConfig(metric="activation").damping,
        )


def test_factorizing_leaves_the_layer_and_the_statistics_alone() -> None:
    problem = make("fisher", (16, 16))
    weight, second = problem.linear.weight.detach().clone(), problem.statistics.inputs["input"].second.clone()
    problem.factorize()
    assert torch.equal(problem.linear.weight, weight)
    assert torch.equal(problem.statistics.inputs["input"].second, second)
