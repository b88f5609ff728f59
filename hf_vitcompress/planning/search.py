"""Measured losses of planned models: for correcting predicted ones and for searching a budget."""

import math
from collections.abc import Callable, Mapping

from torch import Tensor
from transformers import PreTrainedModel

from ..architectures.subject import Subject
from ..config import CompressionConfig
from ..evaluation.reference import Reference, check_classes
from ..metrics import METRICS
from ..runtime.run import Run
from ..statistics.loss_correction import LossCorrection
from ..statistics.statistics import Statistics
from .building import build_model
from .correction import fewest_measurements, fit_correction
from .plan import CompressionPlan, SearchReport
from .planner import Planner
from .tokens import measure_merging, wants_merging

KEEP_RATIO_STEP = 0.01
"""How finely `max_accuracy_drop` searches."""


def is_measured(subject: Subject, statistics: Statistics, method: str, config: CompressionConfig) -> bool:
    """Whether statistics hold all measured losses that plans of `config` are made with."""
    return method in statistics.corrections and bool(statistics.merging or not wants_merging(subject, config))


def measure_losses(planner: Planner, reference: Reference, run: Run) -> None:
    """Measure what the planner's statistics lack: the correction of predicted losses, and losses of merged tokens."""
    statistics = planner.statistics
    if planner.method not in statistics.corrections:
        statistics.corrections[planner.method] = measure_correction(planner, reference, run)
    if not statistics.merging and wants_merging(planner.subject, run.config):
        statistics.merging = measure_merging(reference, run)


def measure_correction(planner: Planner, reference: Reference, run: Run) -> LossCorrection:
    """Correct the predicted losses of a model by measured ones; see `correction`."""
    config = run.config

    def measure(weights: Mapping[str, float], keep_ratio: float) -> tuple[float, Tensor]:
        plan = planner.plan(config.with_budget(keep_ratio=keep_ratio), weights, exact=False)
        measured = reference.losses_of(_trial(planner, plan, run))
        bar.total = max(bar.total or 0, bar.n + 1)
        bar.update()
        return planner.predicted(plan, weights), measured

    search = METRICS[config.metric].is_loss and config.allocation == "greedy"
    # A hair above the smallest model, which rounding must not put out of reach.
    lowest = min(1.0, planner.lowest_keep_ratio(config.rank_multiple) * 1.001)
    with run.bar("measuring", "models", total=fewest_measurements(planner.roles, search, lowest)) as bar:
        return fit_correction(measure, planner.roles, search, lowest)


def _trial(planner: Planner, plan: CompressionPlan, run: Run) -> PreTrainedModel:
    """The model of a plan, only to be looked at."""
    return build_model(planner.subject.model, plan, planner.groups, run.accelerator, share_memory=True)


def search_accuracy(
    planner: Planner,
    reference: Reference,
    run: Run,
    drop_of: Callable[[CompressionPlan], float] | None = None,
    known: CompressionPlan | None = None,
) -> CompressionPlan:
    """The smallest plan that loses no more than `max_accuracy_drop`, by bisection of the keep ratio.

    Where the images have no labels, or those are not the model's, agreement with the dense model takes the place of
    accuracy.

    Args:
        drop_of: accuracy lost by a plan's model; by default that of the closed form alone.
        known: a plan that holds it, to look for smaller ones; by default the dense model.

    Returns:
        the plan, with what was found for it in `search`.

    Raises:
        BudgetError: the model has no classes.
    """
    config = run.config
    allowed = config.max_accuracy_drop or 0.0
    check_classes(planner.subject.model)
    reference.distrust_guesses("agreement with the dense model takes their place")

    def closed_form_drop(plan: CompressionPlan) -> float:
        return reference.drop_of(_trial(planner, plan, run))

    labelled = reference.labelled_images()

    def chosen(plan: CompressionPlan, drop: float) -> CompressionPlan:
        plan, source = planner.completed(plan, config), reference.source
        images = labelled or reference.images
        plan.search = SearchReport(drop, images, labelled > 0, drop_of is not None, source.hub_id, source.split)
        return plan

    best = known or chosen(CompressionPlan({}), 0.0)
    low, high = planner.lowest_keep_ratio(config.rank_multiple), best.keep_ratio or 1.0
    trials = max(0, math.ceil(math.log2((high - low) / KEEP_RATIO_STEP))) if high > low else 0
    with run.bar("searching", "models", total=trials) as bar:
        while high - low > KEEP_RATIO_STEP:
            ratio = (low + high) / 2
            plan = planner.plan(config.with_budget(keep_ratio=ratio), exact=False)
            drop = (drop_of or closed_form_drop)(plan)
            bar.set_postfix_str(f"keep ratio {ratio:.3f}, drop {drop:.4f}")
            bar.update()
            if drop <= allowed:
                high, best = ratio, chosen(plan, drop)
            else:
                low = ratio
    return best
