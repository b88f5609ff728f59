"""A few measured losses that correct the predicted ones.

The predicted loss is a sum of second-order terms, one per layer. Two things are missing in it, and both are measured
here, on images that are kept out of the statistics: on those that made them, a model loses less than on new ones.

* Errors of `q` and `k` meet in a product and then in a softmax, so that together they cost more than their sum, unless
  both read the same projection (`query_key.QueryKeyGroup`). Where they do not, their weight relative to the other
  layers starts from a prior and is searched by factors of two: plan, build, measure.
* The sum as a whole is not the loss. (predicted, measured) points of whole models at several budgets map one to the
  other, so that no figure is shown that was not scaled to measured ones.
"""

import math
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from ..statistics.loss_correction import LossCorrection

STEP = 2.0
LEAST_GAIN = 0.01
"""Share by which a step must lower the measured loss to be taken."""
LEAST_ERRORS = 2.0
"""And by how many standard errors of the images' differences: a search must not follow noise."""

REFERENCE_KEEP_RATIO = 0.4
POINT_KEEP_RATIOS = (0.7, 0.5, 0.3)


Measure = Callable[[Mapping[str, float], float], tuple[float, Tensor]]
"""(weights, keep ratio) → predicted loss of the model planned that way, and its measured losses by image (n,)."""


def fewest_measurements(roles: Sequence[str], search_weights: bool, lowest_keep_ratio: float) -> int:
    """How many models `fit_correction` measures at least: more where the search finds better weights."""
    searched = search_weights and bool(LossCorrection.prior(roles).weights)
    return 1 + 2 * searched + len(_further_ratios(lowest_keep_ratio))


def fit_correction(
    measure: Measure, roles: Sequence[str], search_weights: bool, lowest_keep_ratio: float
) -> LossCorrection:
    """Search the weight of `q` and `k`, then measure the points.

    Args:
        measure: plans with the weights and measures the whole model; every call costs one pass over the images.
        roles: the roles that occur.
        search_weights: false for metrics whose curves are not losses; all weights are then 1.
        lowest_keep_ratio: no model is smaller; the search moves up to it, points below it are left out.
    """
    weights = LossCorrection.prior(roles).weights if search_weights else {}
    reference = max(REFERENCE_KEEP_RATIO, lowest_keep_ratio)
    best = measure(weights, reference)
    for factor in (STEP, 1 / STEP) if weights else ():
        start = weights
        while True:
            candidate = {role: weight * factor for role, weight in weights.items()}
            result = measure(candidate, reference)
            if not _clearly_lower(result[1], best[1]):
                break
            weights, best = candidate, result
        if weights is not start:
            break
    measured = [best, *(measure(weights, ratio) for ratio in _further_ratios(lowest_keep_ratio))]
    points = {(predicted, float(own.mean())) for predicted, own in measured}
    losses = [own for _, own in measured]
    return LossCorrection(weights, _rising(sorted(points)), len(losses[0]), _relative_error(losses))


def _further_ratios(lowest_keep_ratio: float) -> list[float]:
    """Those of the points beside the one that the search measures."""
    reference = max(REFERENCE_KEEP_RATIO, lowest_keep_ratio)
    return [ratio for ratio in POINT_KEEP_RATIOS if ratio > lowest_keep_ratio and ratio != reference]


def _relative_error(measured: Sequence[Tensor]) -> float:
    """Standard error ÷ mean, of losses by image (n,): the largest of all models, all of which saw the same images."""
    errors = [float(losses.std() / losses.mean()) / len(losses) ** 0.5 for losses in measured if len(losses) > 1]
    return max((error for error in errors if math.isfinite(error)), default=0.0)


def _clearly_lower(losses: Tensor, best: Tensor) -> bool:
    """Whether images lose clearly less, pair by pair."""
    gain = best.double() - losses.double()
    if len(gain) < 2 or float(gain.mean()) <= LEAST_GAIN * float(best.mean()):
        return False
    return float(gain.mean()) > LEAST_ERRORS * float(gain.std()) / len(gain) ** 0.5


def _rising(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Without the points that break the rule that a larger prediction means a larger loss."""
    kept: list[tuple[float, float]] = []
    for predicted, measured in points:
        if not kept or (predicted > kept[-1][0] and measured > kept[-1][1]):
            kept.append((predicted, measured))
    return kept
