"""Labels that are not those of the model's classes: refused before the work, or distrusted."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel

from hf_vitcompress import CompressionConfig, evaluate_model
from hf_vitcompress.architectures.subject import Subject
from hf_vitcompress.errors import DataError, DataWarning
from hf_vitcompress.evaluation.intervals import wilson_interval
from hf_vitcompress.evaluation.labels import checked_labels, is_guessing
from hf_vitcompress.evaluation.reference import Reference
from hf_vitcompress.images.images import ImageSource
from hf_vitcompress.images.sources import open_images
from support.models import DIGITS
from support.stages import quiet


@pytest.fixture(scope="module")
def digits() -> tuple[PreTrainedModel, Any, ImageSource]:
    model = AutoModelForImageClassification.from_pretrained(DIGITS / "model")
    processor = AutoImageProcessor.from_pretrained(DIGITS / "model", backend="pil")
    return model, processor, open_images(DIGITS / "test.parquet", label2id=model.config.label2id).select(range(64))


def relabelled(images: ImageSource, change: Callable[[int], int]) -> ImageSource:
    assert images.labels is not None
    part = images.select(range(len(images)))
    part.labels = [change(label) for label in images.labels]
    return part


INSTEAD = "agreement is"

WRONG: dict[str, Callable[[int], int]] = {
    "shifted": lambda label: (label + 1) % 10,
    "one class": lambda _: 0,
    "in another order": lambda label: (7 * label + 3) % 10,
}


@pytest.mark.parametrize("kind", WRONG)
def test_an_accuracy_of_guessing_is_not_believed(kind: str, digits: tuple[PreTrainedModel, Any, ImageSource]) -> None:
    model, processor, images = digits
    wrong = relabelled(images, WRONG[kind])
    with pytest.warns(DataWarning, match=r"^The model's top-1 accuracy on test\.parquet is .*no better than guessing"):
        evaluate_model(model, wrong, processor, progress=False)
    with pytest.warns(DataWarning, match="^The dense model's top-1 accuracy"):
        evaluate_model(model, wrong, processor, model, progress=False)


def test_right_labels_are_believed(digits: tuple[PreTrainedModel, Any, ImageSource]) -> None:
    model, processor, images = digits
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate_model(model, images, processor, model, progress=False)


@pytest.mark.parametrize(
    ("right", "images", "classes", "guessed"),
    [
        (0, 20, 10, True),
        (2, 20, 10, True),
        (10, 20, 10, False),
        (0, 7, 10, False),  # too few to tell
        (8, 8, 2, False),
        (10, 20, 2, True),
        (2, 1000, 1000, True),
        (20, 1000, 1000, False),
        (0, 20, None, False),
    ],
)
def test_guessing_depends_on_the_number_of_classes(right: int, images: int, classes: int | None, guessed: bool) -> None:
    assert is_guessing(wilson_interval(right, images), images, classes) is guessed


def test_a_search_of_accuracy_does_without_such_labels(digits: tuple[PreTrainedModel, Any, ImageSource]) -> None:
    model, processor, images = digits
    run = quiet(CompressionConfig(max_accuracy_drop=0.01, precision="float32"))
    subject = Subject.alone(model, processor)
    trusted = Reference.of(subject, images, run)
    trusted.distrust_guesses(INSTEAD)
    assert trusted.labels is not None
    wrong = Reference.of(subject, relabelled(images, WRONG["shifted"]), run)
    with pytest.warns(DataWarning, match="They are not used; agreement is"):
        wrong.distrust_guesses(INSTEAD)
    assert (wrong.labels, wrong.trusted, trusted.trusted) == (None, False, True)
    wrong.distrust_guesses(INSTEAD)
    assert wrong.drop_of(model) == 0


def test_labels_past_the_last_class_are_refused_before_any_image_is_read(vit: PreTrainedModel, pixels: Tensor) -> None:
    images = open_images([(pixels, torch.arange(96) % 5 + 1)])
    with pytest.raises(DataError, match=r"A label of the DataLoader is 5.*5 classes.*from 0 to 4"):
        evaluate_model(vit, images, progress=False)
    assert not images.tally.good


@pytest.mark.parametrize(
    ("settings", "used"),
    [
        ({"keep_ratio": 0.5}, False),
        ({"keep_ratio": 0.5, "label_weight": 0.5}, False),
        ({"keep_ratio": 0.5, "label_weight": 0.5, "compensation": "distill"}, True),
        ({"keep_ratio": 0.5, "calibration_loss": "task"}, True),
        ({"keep_ratio": 0.5, "calibration_loss": "task", "metric": "activation"}, False),
        ({"max_accuracy_drop": 0.01}, True),
    ],
)
def test_labels_that_a_compression_does_not_use_may_be_anything(
    settings: dict[str, Any], used: bool, vit: PreTrainedModel, pixels: Tensor
) -> None:
    recipe, images = CompressionConfig(**settings), open_images([(pixels[:2], torch.tensor([0, 59]))])
    assert recipe.uses_labels is used
    if used:
        with pytest.raises(DataError, match="is 59"):
            checked_labels(images, vit, recipe)
    else:
        assert checked_labels(images, vit, recipe).labels == [0, 59]
