"""Labels of images as classes of the model."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError, DataWarning


@dataclass(frozen=True)
class FoundLabels:
    """Labels as the images have them, not matched to any model.

    Attributes:
        values: of each image a number, or more than a class; `None` or a negative number where it is withheld.
        names: of the classes that the numbers stand for, in their order; `None` where the numbers are the model's own.
        where: what holds them, such as `the column 'label'`, for messages.
    """

    values: Sequence[Any]
    names: Sequence[str] | None
    where: str


def labels_for(
    found: FoundLabels, label2id: Mapping[str, Any] | None, name: str
) -> tuple[list[int] | None, list[Any] | None]:
    """Indices of a model's classes, and targets that are more than classes; `None` of what there is not.

    Args:
        label2id: index by name of the model's classes.
        name: of the images.

    Raises:
        DataError: labels are of no kind that a model takes.
    """
    values = found.values
    if not all(map(is_class, values)):
        return None, known_targets(values, name)
    ids = None if found.names is None else class_ids(found.names, label2id)
    if found.names is not None and ids is None:
        return None, None
    known = known_classes(values, label2id, name)
    if known is None or ids is None or found.names is None:
        return known, None
    return [ids[found.names[value]] for value in known], None


def class_ids(names: Sequence[str], label2id: Mapping[str, Any] | None) -> dict[str, int] | None:
    """Class name → the model's index; by position where the model's classes have no names of their own."""
    if label2id and all(name in label2id for name in names):
        return {name: int(label2id[name]) for name in names}
    if not label2id or all(name.startswith("LABEL_") for name in label2id):
        return {name: i for i, name in enumerate(names)}
    return None  # other classes than the model's: the images are unlabelled for it


def is_class(label: Any) -> bool:
    """Whether it is the index of a class, and not a map of pixels, some boxes or a number that is to be predicted."""
    if isinstance(label, Tensor):
        return label.dim() == 0 and not (label.is_floating_point() or label.is_complex())
    return label is None or isinstance(label, Integral)


def known_classes(labels: Sequence[Any], label2id: Mapping[str, Any] | None, name: str) -> list[int] | None:
    """Indices of classes as plain numbers; `None` where some are withheld, as `None` or −1, or are not classes.

    Yes and no are classes of a model that has two.

    Args:
        labels: of which each `is_class`.
        name: of the images.
    """
    if any(label is None or label < 0 for label in labels):
        return None
    if all(isinstance(label, bool) or (isinstance(label, Tensor) and label.dtype == torch.bool) for label in labels):
        classes = len(label2id or ())
        if classes != 2:
            warnings.warn(
                f"The labels of {name} are yes and no, and the model has {classes or 'unknown'} classes: they are not "
                "used. Give the indices of the model's classes.",
                DataWarning,
                stacklevel=2,
            )
            return None
    return [int(label) for label in labels]


def known_targets(labels: Sequence[Any], name: str) -> list[Any]:
    """Targets that are more than classes: mappings, such as boxes, as they are, and all else as tensors.

    Args:
        name: of the images.

    Raises:
        DataError: a label is neither.
    """
    try:
        return [label if isinstance(label, Mapping) else torch.as_tensor(label) for label in labels]
    except (TypeError, ValueError, RuntimeError) as error:
        kinds = sorted({type(label).__name__ for label in labels})
        raise DataError(
            f"The labels of {name} are of type {', '.join(kinds)}. Give indices of the model's classes, or tensors or "
            "mappings as the model takes them."
        ) from error


def check_labels(labels: Sequence[int] | None, classes: int | None, name: str) -> None:
    """That labels are among the model's classes.

    Args:
        classes: how many the model has; `None` if it does not say.
        name: of the images.

    Raises:
        DataError: a label is past the last class.
    """
    largest = max(labels or [0])
    if classes and largest >= classes:
        raise DataError(
            f"A label of {name} is {largest}, and the model's {classes} classes are numbered from 0 to {classes - 1}. "
            "Give labels of this model's classes: numbers that start from 0, or names that are in its label2id."
        )
