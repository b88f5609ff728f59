"""Whether two models can be held against each other, asked before either runs."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel

from ..architectures.outputs import Term, is_classifier
from ..errors import ConfigError, shown
from ..images.images import ImageSource
from ..runtime.arguments import require, require_count

REMEDY = "Give against (--against) the dense model that this one was made of."


def check_evaluation(model: Any, images: Any, against: Any, metrics: Any, batch_size: Any) -> None:
    """Refuse arguments of `evaluate_model` of another kind.

    Raises:
        ConfigError: naming the argument.
    """
    require("model", model, PreTrainedModel, "Load it with from_pretrained.")
    require("against", against, (PreTrainedModel, type(None)), "Load it with from_pretrained.")
    require("images", images, ImageSource, "`hf_vitcompress.images.open_images` makes one of a folder or data set.")
    require("metrics", metrics, (list, tuple), 'Give a list, such as ["f1"].')
    require_count("batch_size", batch_size)


def check_comparable(model: PreTrainedModel, against: PreTrainedModel) -> None:
    """Refuse models that do not answer the same question.

    Raises:
        ConfigError: one has classes and the other none, or they have other classes.
    """
    names = [type(one).__name__ for one in (model, against)]
    classifiers = [is_classifier(one) for one in (model, against)]
    if classifiers[0] != classifiers[1]:
        raise ConfigError(f"{names[0]} and {names[1]} cannot be compared: only one of them has classes. {REMEDY}")
    if not all(classifiers):
        return
    ours, theirs = (_classes(one) for one in (model, against))
    if len(ours) != len(theirs):
        raise ConfigError(f"The models cannot be compared: they have {len(ours)} and {len(theirs)} classes. {REMEDY}")
    if not (_unnamed(ours) or _unnamed(theirs)):
        for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            if one.strip().lower() != other.strip().lower():
                raise ConfigError(
                    f"The models cannot be compared: class {index} is {shown(one)} to one and {shown(other)} to the "
                    f"other. {REMEDY}"
                )


def check_same_form(ours: Sequence[Term], theirs: Sequence[Term]) -> None:
    """Refuse outputs of two models on one batch that cannot be subtracted.

    Raises:
        ConfigError: they differ in number or shape.
    """
    shapes = [[tuple(term.values.shape) for term in terms] for terms in (ours, theirs)]
    if shapes[0] != shapes[1]:
        raise ConfigError(
            f"The models cannot be compared: their outputs have the shapes {shapes[0]} and {shapes[1]}. {REMEDY}"
        )


def _classes(model: PreTrainedModel) -> list[str]:
    return [str(name) for _, name in sorted((model.config.id2label or {}).items())]


def _unnamed(classes: Sequence[str]) -> bool:
    return all(name.startswith("LABEL_") for name in classes)
