"""Measured losses of planned models, without building them: for correcting curves and for searching a budget."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from tqdm.auto import tqdm

from .building import approximated
from .config import CompressionConfig
from .data import Batch, ImageSource
from .errors import BudgetError
from .evaluation import divergence, is_classifier, model_outputs
from .modes import resolve_precision
from .planning import CompressionPlan
from .preparation import Prepared
from .scaling import CurveScaling, fit_scaling

KEEP_RATIO_STEP = 0.01
"""How finely `max_accuracy_drop` searches."""


@dataclass
class Reference:
    """A prepared model's own outputs on some images, to hold planned models against.

    Attributes:
        outputs: (n, classes or features) of the dense model.
        labels: (n,), or `None`.
    """

    prepared: Prepared
    batches: list[Batch]
    precision: str
    outputs: Tensor
    labels: Tensor | None

    @classmethod
    def of(cls, prepared: Prepared, images: ImageSource, processor: Any, config: CompressionConfig) -> "Reference":
        precision = resolve_precision(config.precision, prepared.model.device)
        batches = list(images.batches(processor, 2 * config.batch_size))
        return cls(prepared, batches, precision, *model_outputs(prepared.model, batches, precision))

    def outputs_of(self, plan: CompressionPlan) -> Tensor:
        """(n, classes or features) of the dense model with the plan's layers approximated."""
        with approximated(self.prepared.model, plan.ranks, self.prepared.factorizations):
            return model_outputs(self.prepared.model, self.batches, self.precision)[0]


def measure_scaling(reference: Reference, config: CompressionConfig, progress: bool = True) -> CurveScaling:
    """Correct the predicted losses of a model by measured ones, see `scaling`."""
    prepared = reference.prepared
    classes = is_classifier(prepared.model)

    def measure(weights: Mapping[str, float], keep_ratio: float) -> tuple[float, float]:
        plan = prepared.plan(config.with_budget(keep_ratio=keep_ratio), weights, exact=False)
        outputs = reference.outputs_of(plan)
        bar.update()
        return prepared.predicted(plan, weights), float(divergence(reference.outputs, outputs, classes).mean())

    roles = list(dict.fromkeys(layer.role for layer in prepared.layers))
    search = config.metric == "fisher" and config.allocation == "greedy"
    # A hair above the smallest model, which rounding must not put out of reach.
    lowest = min(1.0, prepared.lowest_keep_ratio(config.rank_multiple) * 1.001)
    with tqdm(desc="measuring", unit=" models", disable=not progress) as bar:
        return fit_scaling(measure, roles, search, lowest)


def search_accuracy(reference: Reference, config: CompressionConfig, progress: bool = True) -> CompressionPlan:
    """The smallest plan that loses no more than `max_accuracy_drop`, by bisection of the keep ratio.

    Where the images have no labels, agreement with the dense model takes the place of accuracy.

    Raises:
        BudgetError: the model has no classes.
    """
    prepared, allowed = reference.prepared, config.max_accuracy_drop or 0.0
    if not is_classifier(prepared.model):
        raise BudgetError(
            f"max_accuracy_drop needs a classifier, and {type(prepared.model).__name__} has no classes. Use keep_ratio."
        )
    dense_classes = reference.outputs.argmax(-1)
    truth = dense_classes if reference.labels is None else reference.labels
    best = prepared.completed(CompressionPlan({}), config)
    low, high = prepared.lowest_keep_ratio(config.rank_multiple), 1.0
    with tqdm(desc="searching", unit=" models", disable=not progress) as bar:
        while high - low > KEEP_RATIO_STEP:
            ratio = (low + high) / 2
            plan = prepared.plan(config.with_budget(keep_ratio=ratio), exact=False)
            correct = reference.outputs_of(plan).argmax(-1) == truth
            drop = float(((dense_classes == truth).double() - correct.double()).mean())
            bar.set_postfix_str(f"keep ratio {ratio:.3f}, drop {drop:.4f}")
            bar.update()
            if drop <= allowed:
                high, best = ratio, prepared.completed(plan, config)
            else:
                low = ratio
    return best
