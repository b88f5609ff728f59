"""Judging a compressed model: accuracy with its interval, agreement with the dense model, KL divergence."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import datasets
import evaluate as hf_evaluate
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from .data import Batch, ImageSource
from .distribution import gather_objects, gather_rows, local_work, new_accelerator, own_share, sum_numbers
from .errors import DataError
from .fingerprints import model_digest
from .modes import autocast, resolve_precision

Z95 = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""


class Accuracy(hf_evaluate.Metric):
    """Top-1 accuracy; `evaluate.load("accuracy")` is the same but has to be downloaded."""

    def _info(self) -> hf_evaluate.MetricInfo:
        return hf_evaluate.MetricInfo(
            description="Share of predictions that equal their reference.",
            citation="",
            inputs_description="predictions, references: class indices.",
            features=datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}),
        )

    def _compute(self, predictions: Iterable[int], references: Iterable[int]) -> dict[str, float]:
        pairs = list(zip(predictions, references, strict=True))
        return {"accuracy": sum(p == r for p, r in pairs) / len(pairs)}


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Evaluation:
    """How a model does on `images` images.

    Attributes:
        images: images judged.
        top1: accuracy with its Wilson interval; `None` without labels.
        agreement: share of images on which model and reference predict the same class; `None` without reference.
        kl: KL divergence from the reference's class probabilities to the model's, nats per image, mean with its
            interval; for a model without classes, the relative squared error of its output.
        top1_drop: accuracy of the reference − of the model, with its paired interval.
        reference_top1: accuracy of the reference.
        bad_images: images that could not be read and were left out.
        precision: the model computed in.
        dataset: Hub id of the images; `None` for others.
        weights: digest of the weights that were judged, see `fingerprints`.
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
    weights: str | None = None


def wilson_interval(successes: int, trials: int) -> Interval:
    """Wilson's score interval of a proportion (Wilson 1927), honest near 0 and 1 where the normal one is not."""
    if trials == 0:
        raise DataError("An interval needs at least one image.")
    share = successes / trials
    centre = share + Z95**2 / (2 * trials)
    spread = Z95 * math.sqrt(share * (1 - share) / trials + Z95**2 / (4 * trials**2))
    scale = 1 + Z95**2 / trials
    return Interval(share, max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale))


def mean_interval(values: Tensor) -> Interval:
    """Mean of `values (n,)` with its normal interval; for paired 0/1 differences it is the paired interval."""
    values = values.double()
    mean = float(values.mean())
    spread = Z95 * float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return Interval(mean, mean - spread, mean + spread)


def model_outputs(
    model: PreTrainedModel, batches: Iterable[Batch], precision: str = "float32", bar: Any = None, processes: int = 1
) -> tuple[Tensor, Tensor | None]:
    """Outputs (n, classes), or (n, features) for a model without classes, and labels (n,) where all are known.

    Without batches, (0, 1). `bar` advances for all `processes` that do the same.
    """
    outputs, labels = [], []
    training = model.training
    model.eval()
    try:
        for batch in batches:
            with torch.inference_mode(), autocast(model.device, precision):
                result = model(pixel_values=batch.pixel_values.to(model.device, model.dtype))
            outputs.append(output_of(result).float().cpu())
            if batch.labels is not None:
                labels.append(batch.labels)
            if bar is not None:
                bar.update(min(processes * len(batch.pixel_values), bar.total - bar.n))
    finally:
        model.train(training)
    if not outputs:
        return torch.empty(0, 1), None
    return torch.cat(outputs), torch.cat(labels) if len(labels) == len(outputs) else None


def output_of(result: Any) -> Tensor:
    """The logits (n, classes) of a classifier, else the flattened output (n, features)."""
    if "logits" in result:
        return result["logits"]
    return (result["reconstruction"] if "reconstruction" in result else result["last_hidden_state"]).flatten(1)


def divergence(reference: Tensor, outputs: Tensor, classes: bool) -> Tensor:
    """Per image (n,): KL divergence of class probabilities, or ½ · relative squared error of features."""
    if not classes:
        return (outputs - reference).square().sum(1) / reference.square().sum(1).clamp_min(1e-12) / 2
    log_p, log_q = reference.double().log_softmax(-1), outputs.double().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def is_classifier(model: PreTrainedModel) -> bool:
    return "ImageClassification" in type(model).__name__


def evaluate_model(
    model: PreTrainedModel,
    images: ImageSource,
    image_processor: Any = None,
    against: PreTrainedModel | None = None,
    batch_size: int = 64,
    precision: str = "float32",
    progress: bool = True,
    accelerator: Accelerator | None = None,
) -> Evaluation:
    """Judge `model` on `images`, and against the dense model where one is given.

    Several processes share the images, and all get the same figures.

    Args:
        precision: `"float32"` judges what a user runs; `"bfloat16"` and `"auto"` are faster where the device gains.

    Raises:
        DataError: there are neither labels nor a model to compare with.
    """
    classes = is_classifier(model)
    if against is None and (images.labels is None or not classes):
        raise DataError(
            "There is nothing to judge by: the images have no labels that fit the model's classes, and no dense model "
            "was given to compare with (against=…, --against)."
        )
    precision = resolve_precision(precision, model.device)
    accelerator = accelerator or new_accelerator()
    share = own_share(accelerator, images.batch_count(batch_size))
    models = [model] if against is None else [model, against]
    progress = progress and accelerator.is_main_process
    results = []
    with tqdm(total=len(images) * len(models), desc="evaluating", unit=" images", disable=not progress) as bar:
        for judged in models:
            own = images.select(range(len(images)))
            with local_work(accelerator, "Evaluation"):
                batches = own.batches(image_processor, batch_size, share)
                found = model_outputs(judged, batches, precision, bar, accelerator.num_processes)
            results.append(_gathered(accelerator, *found))
    outputs, labels = results[0]
    bad_images = round(sum_numbers(accelerator, [len(own.bad_images)])[0])
    if not len(outputs):
        raise own.unreadable()
    reference = results[1][0] if against is not None else None
    evaluation = judge(outputs, reference, labels if classes else None, classes, bad_images)
    return replace(evaluation, precision=precision, dataset=images.hub_id, weights=model_digest(model))


def _gathered(accelerator: Accelerator, outputs: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Process by process; two models judged in the same shares stay paired."""
    known = gather_objects(accelerator, len(outputs) == 0 or labels is not None)
    if not all(known):
        return gather_rows(accelerator, outputs), None
    labels = torch.empty(0, dtype=torch.int64) if labels is None else labels
    return gather_rows(accelerator, outputs), gather_rows(accelerator, labels)


def judge(
    outputs: Tensor, reference: Tensor | None, labels: Tensor | None, classes: bool, bad_images: int = 0
) -> Evaluation:
    """The figures of `Evaluation` from outputs (n, classes or features) and labels (n,)."""
    n = len(outputs)
    top1 = reference_top1 = drop = agreement = None
    predicted = outputs.argmax(-1)
    if labels is not None:
        top1 = _accuracy(predicted, labels)
        if reference is not None:
            reference_top1 = _accuracy(reference.argmax(-1), labels)
            drop = mean_interval((reference.argmax(-1) == labels).double() - (predicted == labels).double())
    kl = None if reference is None else mean_interval(divergence(reference, outputs, classes))
    if reference is not None and classes:
        agreement = _accuracy(predicted, reference.argmax(-1))
    return Evaluation(n, top1, agreement, kl, drop, reference_top1, bad_images)


def _accuracy(predictions: Tensor, references: Tensor) -> Interval:
    metric = Accuracy(keep_in_memory=True)
    share = metric.compute(predictions=predictions.tolist(), references=references.tolist())["accuracy"]
    return wilson_interval(round(share * len(predictions)), len(predictions))
