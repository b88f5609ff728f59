"""The meaning of a model's result, and the divergence between two results: for calibration, training and evaluation.

A result is read as a list of terms, each of them either the logits of classes or features:

    image classification    logits: classes of one item, the image; of one item a label where an image has several;
                            features where they are numbers to be predicted, as a single one is, or there is no head
    semantic segmentation   logits: classes of each pixel
    object detection        logits: classes of each query; boxes: features, as far as the query holds an object
    masked image modeling   reconstruction: features; or logits: classes (of visual tokens) of each patch
    masked autoencoder      logits: features of the patches that were masked; they are pixels and no classes
    depth, projection       predicted depth, image embedding: features
    backbone                feature maps: features, a term each
    headless                hidden states, and the pooled output if the family counts it as an output: features

Classes differ by the KL divergence, its mean over the items; features by half their relative squared error. What the
terms of an image come to is added. A head of another kind is one call of `register_reader`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import UnsupportedModelError
from .families import row_of
from .inputs import subject_inputs
from .subject import Reading, Subject

SEVERAL_LABELS, NUMBERS = "multi_label_classification", "regression"
"""Problem types of transformers for which the logits of an image are not those of one class."""

CLASS_VALUES = 2**18
"""About so many logits of an image, evenly over its items, make a loss: those of all pixels would fill memory."""


@dataclass(frozen=True)
class Term:
    """One quantity that a model computes for each of n images.

    Attributes:
        values: logits (n, items, classes), or features (n, features).
        weight: (n, features) weight of each feature's error; `None`: all 1. When two models are compared, the
            reference's weights are used.
    """

    values: Tensor
    weight: Tensor | None = None

    @property
    def classes(self) -> bool:
        """Whether the values are logits."""
        return self.values.dim() == 3

    def __len__(self) -> int:
        return len(self.values)

    def cpu(self) -> "Term":
        return Term(self.values.cpu(), None if self.weight is None else self.weight.cpu())


Result = Mapping[str, Any]
Reader = Callable[[PreTrainedModel, Result], list[Term]]


def outputs_of(subject: Subject, pixel_values: Tensor, extra: Mapping[str, Tensor] | None = None) -> list[Term]:
    """Run a model on images; see `inputs.model_inputs` and `read_outputs`."""
    inputs = subject_inputs(subject, pixel_values, extra)
    return read_outputs(subject, subject.model(**inputs), inputs)


def read_outputs(subject: Subject, result: Any, inputs: Mapping[str, Tensor] | None = None) -> list[Term]:
    """The terms of the result that the subject's model returned for `inputs`, in float32.

    Raises:
        UnsupportedModelError: the result has no known entry.
    """
    found = dict(result) if isinstance(result, Mapping) else {}
    mask = (inputs or {}).get("pixel_attention_mask")
    if mask is not None and found.get("last_hidden_state") is not None:
        # What stands at padding is arbitrary.
        found["last_hidden_state"] = found["last_hidden_state"] * mask.to(found["last_hidden_state"].dtype)[..., None]
    name = type(subject.model).__name__
    reader = next((reader for head, reader in READERS.items() if head in name), _other)
    try:
        terms = reader(subject.model, found) if subject.reading is None else _as_read(subject.reading, found)
    except KeyError:
        terms = []
    if not terms:
        returned = ", ".join(found) if found else f"a {type(result).__name__}"
        raise UnsupportedModelError(
            f"{name} returns nothing that its compressed form could be compared by (it returned {returned}). Say what "
            "its result means with hf_vitcompress.register_reader."
        )
    return terms


def is_classifier(model: PreTrainedModel) -> bool:
    """Whether the model assigns one class to every image."""
    return "ImageClassification" in type(model).__name__ and _problem(model) not in (SEVERAL_LABELS, NUMBERS)


def _problem(model: PreTrainedModel) -> str | None:
    """The config's problem type; where it has none, transformers takes a single number for a regression.

    Without a head, what a classifier returns are features.
    """
    kind = getattr(model.config, "problem_type", None)
    single = kind is None and getattr(model.config, "num_labels", None) == 1
    return NUMBERS if single or _is_headless(model) else kind


def _is_headless(model: PreTrainedModel) -> bool:
    """Whether the head is an identity: `num_labels=0` makes one, and people put one in its place."""
    heads = [module for name, module in model.named_children() if name != model.base_model_prefix]
    return bool(heads) and isinstance(heads[-1], nn.Identity)


def class_logits(terms: Sequence[Term]) -> Tensor:
    """Logits (n, classes) of a classifier."""
    return terms[0].values[:, 0]


def features(values: Tensor, weight: Tensor | None = None) -> Term:
    """A term of features (n, …)."""
    return Term(values.float().flatten(1), None if weight is None else weight.float().flatten(1))


def _classification(model: PreTrainedModel, result: Result) -> list[Term]:
    logits, kind = result["logits"].float(), _problem(model)
    if kind == NUMBERS:
        return [features(logits)]
    if kind == SEVERAL_LABELS:
        return [Term(torch.stack([torch.zeros_like(logits), logits], -1))]  # a sigmoid is a softmax of two
    return [Term(logits[:, None])]


def _segmentation(model: PreTrainedModel, result: Result) -> list[Term]:
    return [Term(result["logits"].float().flatten(2).transpose(1, 2))]


def _detection(model: PreTrainedModel, result: Result) -> list[Term]:
    logits, boxes = result["logits"].float(), result["pred_boxes"]
    objects = 1 - logits.detach().softmax(-1)[..., -1:]  # the last class is "no object"
    return [Term(logits), features(boxes, objects.expand_as(boxes))]


def _masked_image(model: PreTrainedModel, result: Result) -> list[Term]:
    return [features(result["reconstruction"])] if "reconstruction" in result else [Term(result["logits"].float())]


def _pretraining(model: PreTrainedModel, result: Result) -> list[Term]:
    if "mask" not in result:
        return _other(model, result)
    # It never learnt to say anything about the patches that it sees.
    return [features(result["logits"] * result["mask"][..., None])]


def _features_at(name: str) -> Reader:
    def read(model: PreTrainedModel, result: Result) -> list[Term]:
        found = result[name]
        return [features(values) for values in (found if isinstance(found, tuple | list) else [found])]

    return read


def _as_read(reading: Reading, result: Result) -> list[Term]:
    if not reading.layers:
        return [features(result["pooler_output"])]
    return [features(result["hidden_states"][layer][:, reading.skipped :]) for layer in reading.layers]


def _other(model: PreTrainedModel, result: Result) -> list[Term]:
    if "logits" in result:
        logits = result["logits"]
        classes = logits.dim() == 2 and logits.shape[1] > 1  # of one class the probability is always 1
        return [Term(logits.float()[:, None]) if classes else features(logits)]
    if result.get("last_hidden_state") is None:
        tensors = [value for value in result.values() if isinstance(value, Tensor)]
        return [features(values) for values in tensors if values.dim() > 1 and values.is_floating_point()]
    terms, row = _features_at("last_hidden_state")(model, result), row_of(model)  # several maps of `features_only`
    if row is not None and row.pooled and result.get("pooler_output") is not None:
        terms.append(features(result["pooler_output"]))
    return terms


READERS: dict[str, Reader] = {
    "ForImageClassification": _classification,
    "ForSemanticSegmentation": _segmentation,
    "ForObjectDetection": _detection,
    "ForMaskedImageModeling": _masked_image,
    "ForPreTraining": _pretraining,
    "ForDepthEstimation": _features_at("predicted_depth"),
    "WithProjection": _features_at("image_embeds"),
    "Backbone": _features_at("feature_maps"),
}
"""How to read a result, by a part of the class's name; others have 2-d logits of classes, or features."""


def register_reader(head: str, reader: Reader) -> None:
    """Say what the results of a head from outside mean, so that models with it can be calibrated and judged.

    Args:
        head: a part of the names of its model classes, such as `"ForPoseEstimation"`. A later call with the same name
            takes the place of the former, and names that were registered first are looked for first.
        reader: (model, its result as a mapping) → the `Term`s to compare; a missing key may raise `KeyError`.
    """
    READERS[head] = reader


def divergence(
    reference: Sequence[Term], terms: Sequence[Term], temperature: float = 1.0, dtype: torch.dtype = torch.float64
) -> Tensor:
    """How far `terms` are from `reference`, per image (n,): nats, plus ½ · relative squared errors of features.

    Args:
        temperature: T; the divergence of classes is T² KL(softmax(z/T) ‖ softmax(ẑ/T)).
        dtype: dtype in which the divergence of classes is computed.
    """
    return torch.stack(
        [
            _class_divergence(ours.values.to(dtype), theirs.values.to(dtype), temperature)
            if ours.classes
            else _relative_error(ours, theirs.values)
            for ours, theirs in zip(reference, terms, strict=True)
        ]
    ).sum(0)


def _class_divergence(reference: Tensor, logits: Tensor, temperature: float) -> Tensor:
    log_p, log_q = ((z / temperature).log_softmax(-1) for z in (reference, logits))
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(-1).mean(-1)


def _relative_error(reference: Term, values: Tensor) -> Tensor:
    """`½ Σ_j w_j (ŷ_j − y_j)² / Σ_j y_j²`: not relative to the weights, so that an empty image costs nothing."""
    error = (values - reference.values).square()
    if reference.weight is not None:
        error = error * reference.weight
    return error.sum(1) / reference.values.square().sum(1).clamp_min(1e-12) / 2


def agreement(reference: Sequence[Term], terms: Sequence[Term]) -> Tensor | None:
    """Share of an image's items whose likeliest class is the same (n,); `None` without classes."""
    pairs = [(ours.values, theirs.values) for ours, theirs in zip(reference, terms, strict=True) if ours.classes]
    shares = [(ours.argmax(-1) == theirs.argmax(-1)).double().mean(-1) for ours, theirs in pairs]
    return torch.stack(shares).mean(0) if shares else None


def thinned(terms: Sequence[Term], limit: int) -> list[Term]:
    """At most about `limit` values per image of each term, evenly over all: items of classes, or features."""
    return [_thin(term, limit) for term in terms]


def thinned_classes(terms: Sequence[Term]) -> list[Term]:
    """As `thinned`, to `CLASS_VALUES` and of classes only; features stay whole.

    Two models' terms keep the same items.
    """
    return [_thin(term, CLASS_VALUES) if term.classes else term for term in terms]


def _thin(term: Term, limit: int) -> Term:
    count = term.values.shape[1]
    stride = -(-term.values[0].numel() // limit) if len(term) else 1
    # Without a common divisor, or the same columns would be taken from every row of what was flattened.
    while stride > 1 and math.gcd(stride, count) > 1:
        stride += 1
    weight = None if term.weight is None else term.weight[:, ::stride]
    return term if stride == 1 else Term(term.values[:, ::stride].clone(), weight)
