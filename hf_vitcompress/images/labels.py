"""Labels of images, as they are found and as classes of a model."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError
from .classes import UNLABELLED, Classes, match_names


@dataclass(frozen=True)
class FoundLabels:
    """Labels as the images have them, not matched to any model.

    Attributes:
        values: of each image a number or a name, or more than a class; `None`, NaN, a negative number or an empty name
            where it is withheld.
        names: of the classes that the numbers stand for, in their order; `None` where the numbers are the model's own.
        where: what holds them, such as `the column 'label'`, for messages.
        problem: why there are none, where all are `None`.
    """

    values: Sequence[Any]
    names: Sequence[str] | None
    where: str
    problem: str = ""


@dataclass(frozen=True)
class Matched:
    """Labels in a model's terms.

    Attributes:
        labels: of each image the index of its class, or `UNLABELLED`; `None` where none is known.
        targets: of each image what is more than a class, or `None` where it is withheld; `None` without such.
        how: they were matched, such as `by name (10 of 10 classes)`; empty without labels.
        problem: a sentence about labels that could not be used; empty where all could.
    """

    labels: list[int] | None = None
    targets: list[Any] | None = None
    how: str = ""
    problem: str = ""


def labels_for(found: FoundLabels, classes: Classes | None, name: str) -> Matched:
    """Match labels to a model's classes.

    Args:
        classes: of the model; `None` keeps the images' own numbers.
        name: of the images.

    Raises:
        DataError: labels are of no kind that a model takes.
    """
    single = classes is not None and classes.single
    values, names = [_plain(value, single) for value in found.values], found.names
    if any(isinstance(value, str) for value in values):
        values, names = _numbered(values)
    numbers = _numbers(values, floats=single)
    if numbers is None:
        return Matched(targets=known_targets(found.values, name))
    if all(number == UNLABELLED for number in numbers):
        return Matched(problem=found.problem)
    if names is None:
        problem = _yes_and_no(values, classes, name)
        return Matched(problem=problem) if problem else Matched(numbers, how=f"by index, from {found.where}")
    if max(numbers) >= len(names):
        raise DataError(f"A label of {name} is {max(numbers)}, and {found.where} names {len(names)} classes.")
    if classes is None or not classes.single:
        return Matched(numbers, how=f"by position, from {found.where}")
    return _named(numbers, names, classes, found.where, name)


def _named(numbers: list[int], names: Sequence[str], classes: Classes, where: str, name: str) -> Matched:
    """Labels that stand for names; images of other classes than the model's are unlabelled."""
    match = match_names(names, classes)
    labels = [UNLABELLED if number == UNLABELLED else match.indices[number] for number in numbers]
    lost = [number for number, label in zip(numbers, labels, strict=True) if number != UNLABELLED == label]
    if not lost:
        return Matched(labels, how=f"{match.how}, from {where}")
    unknown = [names[number] for number in sorted(set(lost))]
    verb = "has" if len(unknown) == 1 else "have"
    model = f"the model's {'' if classes.count is None else f'{classes.count} '}classes"
    model += "" if classes.names else ", which have no names"
    problem = f"{_some(unknown)} {verb} no counterpart among {model}: {len(lost)} of {len(numbers)} images of {name} "
    problem += "count as unlabelled."
    if all(label == UNLABELLED for label in labels):
        return Matched(problem=problem)
    return Matched(labels, how=f"{match.how}, from {where}", problem=problem)


def _some(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    first = ", ".join(repr(name) for name in names[:3])
    return first if len(names) <= 3 else f"{first} and {len(names) - 3} others"


def _plain(value: Any, single: bool = False) -> Any:
    """A number as Python's own; anything else as it is.

    Args:
        single: whether a list of one number is that number, as where labels are a column (n, 1).
    """
    if single and isinstance(value, list | tuple | Tensor) and getattr(value, "ndim", 1) == 1 and len(value) == 1:
        value = value[0]
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def _numbered(values: Sequence[Any]) -> tuple[list[Any], list[str]]:
    """Names as numbers in their alphabetical order; an empty one is withheld."""
    names = sorted({value.strip() for value in values if isinstance(value, str)} - {""})
    number = {name: index for index, name in enumerate(names)}
    return [number.get(value.strip()) if isinstance(value, str) else value for value in values], names


def _numbers(values: Sequence[Any], floats: bool) -> list[int] | None:
    """Of each image the number of its class, or `UNLABELLED`; `None` where some are more than classes.

    Args:
        floats: whether whole numbers may be written as floats, as tables do as soon as one is missing.
    """
    if not all(_is_withheld(value) or is_class(value) or (floats and _is_whole(value)) for value in values):
        return None
    return [UNLABELLED if _is_withheld(value) or value < 0 else int(value) for value in values]


def _is_withheld(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _is_whole(value: Any) -> bool:
    return isinstance(value, float) and value.is_integer()


def _yes_and_no(values: Sequence[Any], classes: Classes | None, name: str) -> str:
    """Why yes and no cannot be classes, if they are not those of a model that has two."""
    known = [value for value in values if not _is_withheld(value)]
    count = None if classes is None else classes.count
    if count == 2 or not all(isinstance(value, bool) for value in known):
        return ""
    return (
        f"The labels of {name} are yes and no, and the model has {count or 'unknown'} classes: they are not used. Give "
        "the indices of the model's classes."
    )


def is_class(label: Any) -> bool:
    """Whether it is the index of a class, and not a map of pixels, some boxes or a number that is to be predicted."""
    if isinstance(label, Tensor):
        return label.dim() == 0 and not (label.is_floating_point() or label.is_complex())
    return label is None or isinstance(label, Integral)


def known_targets(labels: Sequence[Any], name: str) -> list[Any]:
    """Targets that are more than classes: mappings, such as boxes, as they are, and all else as tensors.

    Those that are withheld stay `None`.

    Args:
        name: of the images.

    Raises:
        DataError: a label is neither.
    """
    try:
        return [
            label if isinstance(label, Mapping) else None if _is_withheld(_plain(label)) else torch.as_tensor(label)
            for label in labels
        ]
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
