"""Measured losses of planned models: for correcting predicted ones and for searching a budget."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from .building import build_model
from .config import CompressionConfig
from .distribution import gather_rows, local_work, mean_over_processes, new_accelerator, own_share, sum_numbers
from .errors import BudgetError
from .evaluation import Outputs, divergences, model_outputs, predictions
from .images import Batch, ImageSource
from .modes import resolve_precision
from .outputs import is_classifier
from .planning import CompressionPlan
from .preparation import Prepared
from .scaling import CurveScaling, fit_scaling

KEEP_RATIO_STEP = 0.01
"""How finely `max_accuracy_drop` searches."""


@dataclass
class Reference:
    """A dense model's outputs on some images, to hold compressed ones against.

    Attributes:
        batches: this process's share of the images.
        outputs: of the dense model on them.
        labels: (n,), or `None`.
        classes: whether every image has one class.
        images: how many images all processes together have.
        accelerator: over whose processes the images are dealt out.
    """

    batches: list[Batch]
    precision: str
    outputs: Outputs
    labels: Tensor | None
    classes: bool
    images: int
    accelerator: Accelerator

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        images: ImageSource,
        processor: Any,
        config: CompressionConfig,
        accelerator: Accelerator | None = None,
    ) -> "Reference":
        accelerator = accelerator or new_accelerator()
        precision = resolve_precision(config.precision, model.device)
        with local_work(accelerator, "Reading images"):
            share = own_share(accelerator, images.batch_count(2 * config.batch_size))
            batches = list(images.batches(processor, 2 * config.batch_size, share))
            outputs, labels = model_outputs(model, batches, precision)
        count = round(sum_numbers(accelerator, [sum(len(terms[0]) for terms in outputs)])[0])
        if count == 0:
            raise images.unreadable()
        return cls(batches, precision, outputs, labels, is_classifier(model), count, accelerator)

    def losses_of(self, model: PreTrainedModel) -> Tensor:
        """Divergence from the dense model (images,), nats (see `outputs.divergence`), on every process."""
        outputs = model_outputs(model, self.batches, self.precision)[0]
        return gather_rows(self.accelerator, divergences(self.outputs, outputs))

    def loss_of(self, model: PreTrainedModel) -> float:
        """Their mean."""
        return float(self.losses_of(model).mean())

    def drop_of(self, model: PreTrainedModel) -> float:
        """Accuracy lost, as a fraction; without labels, share of images on which the two models differ."""
        dense = predictions(self.outputs)
        truth = dense if self.labels is None else self.labels
        correct = predictions(model_outputs(model, self.batches, self.precision)[0]) == truth
        return mean_over_processes(self.accelerator, (dense == truth).double() - correct.double())


def check_classes(model: PreTrainedModel) -> None:
    """That there is an accuracy to lose.

    Raises:
        BudgetError: the model has no classes.
    """
    if not is_classifier(model):
        raise BudgetError(
            f"max_accuracy_drop needs a classifier, and {type(model).__name__} has no classes. Use keep_ratio."
        )


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
