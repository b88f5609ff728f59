"""Whether the labels of images are those of the model's classes."""

import warnings

from transformers import PreTrainedModel

from ..architectures.outputs import is_classifier
from ..config import CompressionConfig
from ..errors import DataWarning
from ..images.classes import Classes
from ..images.images import ImageSource
from ..images.labels import check_labels
from .intervals import Interval

FEWEST = 8
"""On fewer images a good model may be wrong on all by chance."""


def checked_labels(images: ImageSource, model: PreTrainedModel, config: CompressionConfig | None = None) -> ImageSource:
    """The images with labels in terms of the model's classes; a warning names those that cannot be used.

    Args:
        config: with which a model is to be compressed; most do not use labels, and then these may be anything.

    Raises:
        DataError: a label is past the model's last class.
    """
    matched = images.matched(Classes.of(model.config))
    if (config is None or config.uses_labels) and is_classifier(model):
        check_labels(matched.labels, model.config.num_labels, images.name)
        if matched is not images or config is None:
            _tell_problem(matched)
    return matched


def _tell_problem(images: ImageSource) -> None:
    if images.matching is not None and images.matching.problem:
        warnings.warn(images.matching.problem, DataWarning, stacklevel=2)


def is_guessing(top1: Interval, images: int, classes: int | None) -> bool:
    """Whether an accuracy on that many images cannot be told from that of guessing among so many classes."""
    chance = 1 / (classes or 1)
    # The second condition holds for few images: an interval of theirs is wide, however high the accuracy.
    return classes is not None and images >= FEWEST and top1.low <= chance and top1.value <= (1 + chance) / 2


def guessing(whose: str, top1: Interval, name: str) -> str:
    """That the labels of the images `name` are likely not the model's; without a full stop."""
    return (
        f"{whose} top-1 accuracy on {name} is {top1.value:.2%}, no better than guessing. Either it was not trained, or "
        "the labels are not those of its classes: shifted, in another order, or of another task"
    )
