"""Measured losses of planned models: for correcting predicted ones and for searching a budget."""

from collections.abc import Callable, Mapping

from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..config import CompressionConfig
from ..evaluation.reference import Reference, check_classes
from ..statistics.loss_correction import CurveScaling
from .building import build_model
from .correction import fit_scaling
from .plan import CompressionPlan
from .planner import Prepared

KEEP_RATIO_STEP = 0.01
"""How finely `max_accuracy_drop` searches."""


def measure_scaling(
    prepared: Prepared, reference: Reference, config: CompressionConfig, progress: bool = True
) -> CurveScaling:
    """Correct the predicted losses of a model by measured ones, see `scaling`."""

    def measure(weights: Mapping[str, float], keep_ratio: float) -> tuple[float, Tensor]:
        plan = prepared.plan(config.with_budget(keep_ratio=keep_ratio), weights, exact=False)
        measured = reference.losses_of(_trial(prepared, plan, reference.accelerator))
        bar.update()
        return prepared.predicted(plan, weights), measured

    search = config.metric == "fisher" and config.allocation == "greedy"
    # A hair above the smallest model, which rounding must not put out of reach.
    lowest = min(1.0, prepared.lowest_keep_ratio(config.rank_multiple) * 1.001)
    with tqdm(desc="measuring", unit=" models", disable=not progress) as bar:
        return fit_scaling(measure, prepared.roles, search, lowest)


def _trial(prepared: Prepared, plan: CompressionPlan, accelerator: Accelerator) -> PreTrainedModel:
    """The model of a plan, only to be looked at."""
    return build_model(prepared.model, plan, prepared.parts, accelerator, share_memory=True)


def search_accuracy(
    prepared: Prepared,
    reference: Reference,
    config: CompressionConfig,
    progress: bool = True,
    drop_of: Callable[[CompressionPlan], float] | None = None,
    known: CompressionPlan | None = None,
) -> CompressionPlan:
    """The smallest plan that loses no more than `max_accuracy_drop`, by bisection of the keep ratio.

    Where the images have no labels, agreement with the dense model takes the place of accuracy.

    Args:
        drop_of: accuracy lost by a plan's model; by default that of the closed form alone.
        known: a plan that holds it, to look for smaller ones; by default the dense model.

    Raises:
        BudgetError: the model has no classes.
    """
    allowed = config.max_accuracy_drop or 0.0
    check_classes(prepared.model)

    def closed_form_drop(plan: CompressionPlan) -> float:
        return reference.drop_of(_trial(prepared, plan, reference.accelerator))

    best = known or prepared.completed(CompressionPlan({}), config)
    low, high = prepared.lowest_keep_ratio(config.rank_multiple), best.keep_ratio or 1.0
    with tqdm(desc="searching", unit=" models", disable=not progress) as bar:
        while high - low > KEEP_RATIO_STEP:
            ratio = (low + high) / 2
            plan = prepared.plan(config.with_budget(keep_ratio=ratio), exact=False)
            drop = (drop_of or closed_form_drop)(plan)
            bar.set_postfix_str(f"keep ratio {ratio:.3f}, drop {drop:.4f}")
            bar.update()
            if drop <= allowed:
                high, best = ratio, prepared.completed(plan, config)
            else:
                low = ratio
    return best
