"""Measured losses that correct the predicted ones, with losses made up by the tests."""

import itertools
import math
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor

from hf_vitcompress.planning.correction import fit_correction
from hf_vitcompress.statistics.loss_correction import PRIOR_WEIGHT, WEIGHTED_ROLES, LossCorrection

POINTS = [(0.01, 0.02), (0.1, 0.3), (0.5, 0.9)]
ROLES = ["q", "k", "v", "o", "fc1", "fc2"]


def test_loss_passes_through_the_points() -> None:
    correction = LossCorrection(points=POINTS)
    for predicted, measured in POINTS:
        assert correction.loss(predicted) == pytest.approx(measured, rel=1e-12)


def test_loss_rises_and_is_continuous() -> None:
    correction = LossCorrection(points=POINTS)
    grid = [10 ** (i / 200 - 5) for i in range(1400)]
    losses = [correction.loss(x) for x in grid]
    for lower, upper in itertools.pairwise(losses):
        assert lower < upper < 1.1 * lower


def test_loss_between_points_is_linear_in_logarithms() -> None:
    middle = LossCorrection(points=POINTS).loss(math.sqrt(0.1 * 0.5))
    assert middle == pytest.approx(math.sqrt(0.3 * 0.9))


def test_loss_beyond_the_points_follows_the_nearest_two() -> None:
    correction = LossCorrection(points=POINTS)
    assert correction.loss(0.5 * 5) == pytest.approx(0.9 * 3)
    assert correction.loss(0.001) == pytest.approx(0.02 / 15)


def test_small_losses_fall_at_least_in_proportion() -> None:
    flat = LossCorrection(points=[(0.1, 0.2), (0.4, 0.25)])
    assert flat.loss(0.01) == pytest.approx(0.02)
    assert flat.loss(0.0) == 0.0
    assert flat.loss(1e-300) < 1e-200


def test_one_point_scales_in_proportion() -> None:
    correction = LossCorrection(points=[(0.2, 0.3)])
    assert [correction.loss(x) for x in (0.0, 0.1, 0.2, 0.4)] == pytest.approx([0.0, 0.15, 0.3, 0.6])


@pytest.mark.parametrize("points", [[], [(0.0, 0.0)]])
def test_without_points_no_loss_is_given(points: list[tuple[float, float]]) -> None:
    assert LossCorrection(points=points).loss(0.3) is None


def test_interval_is_as_wide_as_the_images_differ() -> None:
    """Against the normal interval of a mean, which that of a logarithm is for small errors."""
    losses = 0.2 + 0.01 * torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    correction = fit_correction(lambda weights, ratio: (1 - ratio, losses * (1 - ratio)), ["v"], False, 0.1)
    low, high = correction.interval(0.2)
    half = 1.96 * float(losses.std()) / 20
    assert correction.images == 400
    assert (low, high) == (pytest.approx(0.2 - half, rel=1e-3), pytest.approx(0.2 + half, rel=1e-3))
    assert low * high == pytest.approx(0.04)


@pytest.mark.parametrize("losses", [[0.3], [0.0, 0.0], [math.nan, 0.1]])
def test_interval_is_a_point_where_no_spread_is_known(losses: list[float]) -> None:
    correction = fit_correction(lambda weights, ratio: (1 - ratio, torch.tensor(losses)), ["v"], False, 0.1)
    assert correction.interval(0.3) == (0.3, 0.3)


class Measure:
    """Losses by the weight of `q` and the keep ratio; counts its calls, and gives up where they do not end.

    All images lose the same, but for what `differences (images,)` adds to them for each unit of the weight.
    """

    def __init__(self, loss: Callable[[float, float], float], differences: Tensor | None = None) -> None:
        self.loss, self.differences = loss, torch.zeros(8) if differences is None else differences
        self.calls: list[tuple[dict[str, float], float]] = []

    def __call__(self, weights: Mapping[str, float], keep_ratio: float) -> tuple[float, Tensor]:
        self.calls.append((dict(weights), keep_ratio))
        assert len(self.calls) < 100, "the search does not end"
        weight = weights.get("q", 1.0)
        return (1 - keep_ratio) ** 3, self.loss(weight, keep_ratio) + weight * self.differences.double()


def bowl(best: float) -> Callable[[float, float], float]:
    """Least where the weight is `best`."""
    return lambda weight, ratio: (1 - ratio) ** 2 * (1 + 0.1 * math.log2(weight / best) ** 2)


@pytest.mark.parametrize("best", [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0])
def test_best_weight_is_found(best: float) -> None:
    correction = fit_correction(Measure(bowl(best)), ROLES, True, 0.1)
    assert correction.weights == dict.fromkeys(WEIGHTED_ROLES, best)


def test_prior_stays_where_weights_make_no_difference() -> None:
    measure = Measure(lambda weight, ratio: (1 - ratio) ** 2)
    assert fit_correction(measure, ROLES, True, 0.1).weights == dict.fromkeys(WEIGHTED_ROLES, PRIOR_WEIGHT)
    assert len(measure.calls) <= 6


def test_small_gain_is_not_taken() -> None:
    measure = Measure(lambda weight, ratio: (1 - ratio) ** 2 * (1 - 0.005 * math.log2(weight)))
    assert fit_correction(measure, ROLES, True, 0.1).weights["q"] == PRIOR_WEIGHT


@pytest.mark.parametrize(("images", "best"), [(10, PRIOR_WEIGHT), (4000, 8.0)])
def test_gain_within_the_noise_of_the_images_is_not_taken(images: int, best: float) -> None:
    differences = torch.tensor([0.2, -0.2]).repeat(images // 2)
    assert fit_correction(Measure(bowl(8.0), differences), ROLES, True, 0.1).weights["q"] == best


def test_one_image_alone_moves_no_weight() -> None:
    assert fit_correction(Measure(bowl(8.0), torch.zeros(1)), ROLES, True, 0.1).weights["q"] == PRIOR_WEIGHT


@pytest.mark.parametrize("loss", [0.0, math.nan, math.inf])
def test_search_ends_where_no_loss_can_be_compared(loss: float) -> None:
    correction = fit_correction(Measure(lambda weight, ratio: loss), ROLES, True, 0.1)
    assert correction.weights == dict.fromkeys(WEIGHTED_ROLES, PRIOR_WEIGHT)


@pytest.mark.parametrize(("roles", "search"), [(ROLES, False), (["v", "o", "fc1", "fc2"], True)])
def test_without_a_search_all_weights_are_one(roles: list[str], search: bool) -> None:
    measure = Measure(bowl(8.0))
    assert fit_correction(measure, roles, search, 0.1).weights == {}
    assert all(weights == {} for weights, _ in measure.calls)


def test_only_the_roles_that_occur_are_weighted() -> None:
    assert set(fit_correction(Measure(bowl(2.0)), ["q", "fc1"], True, 0.1).weights) == {"q"}


def test_points_are_measured_with_the_weights_that_were_found() -> None:
    measure = Measure(bowl(8.0))
    correction = fit_correction(measure, ROLES, True, 0.1)
    assert len(correction.points) == 4
    for keep_ratio in (0.7, 0.5, 0.4, 0.3):
        assert ({"q": 8.0, "k": 8.0}, keep_ratio) in measure.calls
        assert correction.loss((1 - keep_ratio) ** 3) == pytest.approx((1 - keep_ratio) ** 2)


@pytest.mark.parametrize("lowest", [0.05, 0.35, 0.45, 0.6, 0.8])
def test_no_model_below_the_lowest_ratio_is_measured(lowest: float) -> None:
    measure = Measure(bowl(2.0))
    correction = fit_correction(measure, ROLES, True, lowest)
    assert all(keep_ratio >= lowest for _, keep_ratio in measure.calls)
    assert correction.points


@pytest.mark.parametrize(
    "losses",
    [
        {0.7: 0.1, 0.5: 0.3, 0.4: 0.2, 0.3: 0.5},
        {0.7: 0.1, 0.5: 0.1, 0.4: 0.1, 0.3: 0.1},
        {0.7: 0.5, 0.5: 0.4, 0.4: 0.3, 0.3: 0.2},
        {0.7: 0.0, 0.5: 0.1, 0.4: 0.2, 0.3: 0.3},
    ],
)
def test_points_rise_whatever_was_measured(losses: dict[float, float]) -> None:
    correction = fit_correction(Measure(lambda weight, ratio: losses[ratio]), ROLES, True, 0.1)
    assert correction.points
    for (p0, m0), (p1, m1) in itertools.pairwise(correction.points):
        assert p0 < p1
        assert m0 < m1
    values = [correction.loss(x / 100) for x in range(1, 100)]
    assert values == sorted(values)
