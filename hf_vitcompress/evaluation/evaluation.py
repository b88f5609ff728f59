"""Judging a compressed model: accuracy with its interval, agreement with the dense model, divergence from it."""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from ..architectures.outputs import Term, agreement, class_logits, divergence, is_classifier, outputs_of, thinned
from ..architectures.running import passing, without_dropout
from ..architectures.subject import Subject
from ..errors import DataError, DataWarning
from ..images.classes import UNLABELLED, Classes
from ..images.images import Batch, ImageSource
from ..model.towers import compressed_part
from ..runtime.devices import autocast, resolve_precision
from ..runtime.distributed import gather_objects, local_work, new_accelerator, own_share
from ..runtime.run import progress_bar
from ..runtime.weights import model_digest
from .checks import check_comparable, check_evaluation, check_same_form
from .intervals import Interval, mean_interval, wilson_interval
from .labels import checked_labels, guessing, is_guessing
from .metrics import Metrics

if TYPE_CHECKING:
    from evaluate import EvaluationModule

VALUES_PER_IMAGE = 2**16
"""At most about so many values of each term are kept, evenly over them: the logits of all pixels would fill memory."""

Outputs = list[list[Term]]
"""Batch by batch, on the CPU."""


@dataclass(frozen=True)
class Evaluation:
    """How a model does on `images` images.

    Attributes:
        images: images judged.
        top1: accuracy on the labelled images, with its Wilson interval; `None` without labels.
        agreement: share of images on which model and reference predict the same class; where an image has more
            items than one, such as pixels, the mean share of them. `None` without reference or classes.
        kl: divergence from the reference (see `outputs.divergence`), mean with its interval: of a classifier the KL
            divergence of class probabilities, nats per image; of a model without classes half the relative squared
            error of its output.
        top1_drop: accuracy of the reference − of the model, with its paired interval.
        reference_top1: accuracy of the reference.
        bad_images: images that could not be read and were left out.
        precision: the model computed in.
        dataset: Hub id of the images; `None` for others.
        split: of the data set; `None` if it has only one.
        labelled: how many images have a label among the model's classes; those count for accuracies and metrics.
            `None` without labels, and in reports of earlier versions, where all images are labelled or none.
        labels: how the labels were matched to the model's classes; `None` without.
        weights: digest of the weights that were judged, see `runtime.weights.model_digest`.
        metrics: the model's values of metrics of the `evaluate` library, by name.
        reference_metrics: the reference's.
    """

    images: int
    top1: Interval | None = None
    agreement: Interval | None = None
    kl: Interval | None = None
    top1_drop: Interval | None = None
    reference_top1: Interval | None = None
    bad_images: int = 0
    precision: str = "float32"
    dataset: str | None = None
    split: str | None = None
    labelled: int | None = None
    labels: str | None = None
    weights: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    reference_metrics: dict[str, float] = field(default_factory=dict)


def model_outputs(
    subject: Subject, batches: Iterable[Batch], precision: str = "float32", bar: Any = None, processes: int = 1
) -> tuple[Outputs, Tensor | None]:
    """What the subject's model says about the images, and labels (n,), `UNLABELLED` where one is not known.

    `bar` advances for all `processes` that do the same.
    """
    outputs, labels, model = [], [], subject.model
    with without_dropout(model):
        for batch in batches:
            with passing(model, batch.pixel_values), torch.inference_mode(), autocast(model.device, precision):
                terms = thinned(outputs_of(subject, batch.pixel_values, batch.inputs), VALUES_PER_IMAGE)
            outputs.append([term.cpu() for term in terms])
            if batch.labels is not None:
                labels.append(batch.labels)
            if bar is not None:
                bar.update(min(processes * len(batch.pixel_values), bar.total - bar.n))
    return outputs, torch.cat(labels) if labels and len(labels) == len(outputs) else None


def divergences(reference: Outputs, outputs: Outputs) -> Tensor:
    """Divergence of each image (n,) float64; see `outputs.divergence`."""
    found = [divergence(ours, theirs).double() for ours, theirs in zip(reference, outputs, strict=True)]
    return torch.cat(found) if found else torch.empty(0, dtype=torch.float64)


def predictions(outputs: Outputs) -> Tensor:
    """A classifier's likeliest class of each image (n,)."""
    found = [class_logits(terms).argmax(-1) for terms in outputs]
    return torch.cat(found) if found else torch.empty(0, dtype=torch.int64)


def evaluate_model(
    model: PreTrainedModel,
    images: ImageSource,
    image_processor: Any = None,
    against: PreTrainedModel | None = None,
    *,
    metrics: Sequence["str | EvaluationModule"] = (),
    batch_size: int = 64,
    precision: str = "float32",
    progress: bool = True,
    accelerator: Accelerator | None = None,
) -> Evaluation:
    """Judge `model` on `images`, and against the dense model where one is given.

    Of a model in which only a `target` is compressed, that is judged. Several processes share the images, and all get
    the same figures.

    Args:
        metrics: of the `evaluate` library, computed of both models from predicted classes and labels: names on the Hub
            such as `"f1"`, folders with a script, or loaded modules. Of more than two classes, those that are made for
            two (F1, precision, recall) are averaged with equal weights.
        precision: `"float32"` judges what a user runs; `"bfloat16"` and `"auto"` are faster where the device gains.

    Raises:
        ConfigError: an argument is of another kind, or the precision is unknown; a metric cannot be loaded, or not be
            computed from classes; or the models have other classes or outputs of other shapes.
        DataError: there are neither labels nor a model to compare with; or metrics, and no labels of classes; or a
            label is past the model's last class, or most images cannot be read.
    """
    check_evaluation(model, images, against, metrics, batch_size)
    subjects = [compressed_part(model, model, image_processor)]
    if against is not None:
        subjects.append(compressed_part(against, model, image_processor))
        check_comparable(subjects[0].model, subjects[1].model)
    classes = is_classifier(subjects[0].model)
    images = images.matched(Classes.of(subjects[0].model.config))
    _check_can_judge(images, classes, against is not None, bool(metrics))
    images = checked_labels(images, subjects[0].model)
    precision = resolve_precision(precision, model.device)
    accelerator = accelerator or new_accelerator()
    with local_work(accelerator, "Loading the metrics"):
        chosen = Metrics.load(metrics, subjects[0].model.config.num_labels or 0)
    share = own_share(accelerator, images.batch_count(batch_size))
    results, shown = [], progress and accelerator.is_main_process
    for subject, doing in zip(subjects, ("evaluating", "evaluating the dense model"), strict=False):
        own = images.select(range(len(images)))
        with progress_bar(doing, "images", shown, total=len(images)) as bar, local_work(accelerator, "Evaluation"):
            batches = own.batches(subject.processor, batch_size, share)
            results.append(model_outputs(subject, batches, precision, bar, accelerator.num_processes))
    outputs, labels = results[0]
    bad_images = own.account(accelerator)
    figures = _image_figures(outputs, results[1][0] if against is not None else None, labels, classes)
    figures = _gathered(accelerator, figures if outputs else None)
    judged = _evaluation(figures, bad_images)
    if accelerator.is_main_process:
        _distrust_guesses(judged, images.name, subjects[0].model.config.num_labels)
    return replace(
        judged,
        precision=precision,
        dataset=images.hub_id,
        split=images.split,
        labels=None if judged.top1 is None or images.matching is None else images.matching.how or None,
        weights=model_digest(model),
        metrics=_metric_values(chosen, figures, "predicted"),
        reference_metrics=_metric_values(chosen, figures, "reference"),
    )


def _distrust_guesses(judged: Evaluation, name: str, classes: int | None) -> None:
    whose, top1 = "The dense model's", judged.reference_top1
    if top1 is None:
        whose, top1 = "The model's", judged.top1
    if top1 is not None and is_guessing(top1, judged.labelled or 0, classes):
        said = f"{guessing(whose, top1, name)}. Accuracies on these labels say nothing."
        warnings.warn(said, DataWarning, stacklevel=3)


def _check_can_judge(images: ImageSource, classes: bool, compared: bool, metrics: bool) -> None:
    """That there is what figures are made from.

    Args:
        images: with labels in terms of the model.
        classes: whether the model has some.
        compared: whether there is a dense model.
        metrics: whether metrics were asked for.

    Raises:
        DataError: there is not.
    """
    if classes and images.labels is not None:
        return
    why = "the images have no labels that fit the model's classes" if classes else "the model has no classes"
    problem = images.matching.problem if classes and images.matching is not None else ""
    refusal = ""
    if metrics:
        refusal = f"Metrics (metrics=…, --metric) are computed from predicted classes and labels, and {why}."
    elif not compared:
        refusal = f"There is nothing to judge by: {why}, and no dense model was given (against=…, --against)."
    if refusal:
        raise DataError(f"{refusal} {problem}".rstrip())


def _metric_values(metrics: Metrics, figures: dict[str, Tensor], whose: str) -> dict[str, float]:
    if not ({whose, "label"} <= figures.keys() and (known := figures["label"] != UNLABELLED).any()):
        return {}
    return metrics.values(figures[whose][known], figures["label"][known])


def judge(
    outputs: Outputs, reference: Outputs | None, labels: Tensor | None, classes: bool, bad_images: int = 0
) -> Evaluation:
    """The figures of `Evaluation` from what two models say about the same batches, and labels (n,).

    Args:
        classes: whether every image has one class, see `outputs.is_classifier`.
    """
    return _evaluation(_image_figures(outputs, reference, labels, classes), bad_images)


def _image_figures(
    outputs: Outputs, reference: Outputs | None, labels: Tensor | None, classes: bool
) -> dict[str, Tensor]:
    """Of each image (n,), as far as they can be known: `predicted` class, `reference`'s, `label`, `kl`, `agreement`."""
    figures = {}
    if classes:
        figures["predicted"] = predictions(outputs)
        if labels is not None:
            figures["label"] = labels
    if reference is not None:
        for ours, theirs in zip(outputs[:1], reference[:1], strict=True):
            check_same_form(ours, theirs)
        figures["kl"] = divergences(reference, outputs)
        if classes:
            figures["reference"] = predictions(reference)
        shares = [agreement(ours, theirs) for ours, theirs in zip(reference, outputs, strict=True)]
        known = [share for share in shares if share is not None]
        if known:
            figures["agreement"] = torch.cat(known)
    return figures


def _gathered(accelerator: Accelerator, figures: dict[str, Tensor] | None) -> dict[str, Tensor]:
    """Of all processes; those that are known on each that has images."""
    parts = [part for part in gather_objects(accelerator, figures) if part is not None]
    known = set.intersection(*(set(part) for part in parts)) if parts else set()
    return {name: torch.cat([part[name] for part in parts]) for name in sorted(known)}


def _evaluation(figures: dict[str, Tensor], bad_images: int) -> Evaluation:
    top1 = reference_top1 = drop = agreed = labelled = None
    predicted, reference, labels = (figures.get(name) for name in ("predicted", "reference", "label"))
    if predicted is not None and labels is not None and (known := labels != UNLABELLED).any():
        labelled, truth = int(known.sum()), labels[known]
        top1 = _accuracy(predicted[known], truth)
        if reference is not None:
            reference_top1 = _accuracy(reference[known], truth)
            drop = mean_interval((reference[known] == truth).double() - (predicted[known] == truth).double())
    if predicted is not None and reference is not None:
        agreed = _accuracy(predicted, reference)
    elif "agreement" in figures:
        agreed = mean_interval(figures["agreement"])
    kl = mean_interval(figures["kl"]) if "kl" in figures else None
    images = len(next(iter(figures.values())))
    return Evaluation(images, top1, agreed, kl, drop, reference_top1, bad_images, labelled=labelled)


def _accuracy(predictions: Tensor, references: Tensor) -> Interval:
    return wilson_interval(int((predictions == references).sum()), len(predictions))
