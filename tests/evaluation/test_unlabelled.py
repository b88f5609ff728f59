"""Images of which some have no label, or one that the model does not know."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, ViTForImageClassification

from hf_vitcompress import CompressionConfig, evaluate_model
from hf_vitcompress.architectures.outputs import is_classifier
from hf_vitcompress.architectures.subject import Subject
from hf_vitcompress.errors import DataError, DataWarning
from hf_vitcompress.evaluation.intervals import wilson_interval
from hf_vitcompress.evaluation.reference import Reference
from hf_vitcompress.images.images import ImageSource
from hf_vitcompress.images.labels import FoundLabels
from hf_vitcompress.images.sources import open_images
from hf_vitcompress.statistics.calibration import images_to_learn
from support.models import TINY, seeded, tiny_config
from support.stages import quiet


@pytest.fixture
def truth(vit: PreTrainedModel, pixels: Tensor) -> list[int]:
    """The model's own answers."""
    with torch.no_grad():
        return vit(pixels).logits.argmax(-1).tolist()


Change = Callable[[int, int], int | None]


def labelled(pixels: Tensor, truth: list[int], change: Change) -> ImageSource:
    return open_images([(pixels, [change(index, label) for index, label in enumerate(truth)])])


def test_accuracies_are_of_the_labelled_images(vit: PreTrainedModel, pixels: Tensor, truth: list[int]) -> None:
    images = labelled(pixels, truth, lambda index, label: label if index < 40 else None)
    other = seeded(ViTForImageClassification, tiny_config(), seed=7)
    result = evaluate_model(other, images, against=vit, progress=False)
    with torch.no_grad():
        right = other(pixels[:40]).logits.argmax(-1) == torch.tensor(truth[:40])
    assert (result.images, result.labelled) == (96, 40)
    assert result.top1 == wilson_interval(int(right.sum()), 40)
    assert result.reference_top1 == wilson_interval(40, 40)
    assert result.top1_drop is not None
    assert result.top1_drop.value == pytest.approx(1 - float(right.float().mean()))
    assert result.labels == "by index, from the batches"


def test_classes_that_the_model_lacks_are_named(pixels: Tensor) -> None:
    names = {0: "cat", 1: "dog", 2: "emu"}
    model = seeded(ViTForImageClassification, tiny_config(num_labels=3, id2label=names))
    images = open_images([(pixels[:6], ["Cat", "yak", "dog", "emu", "yak", "ibex"])])
    with pytest.warns(
        DataWarning, match="^'ibex', 'yak' have no counterpart among the model's 3 classes: 3 of 6 images"
    ):
        result = evaluate_model(model, images, progress=False)
    assert (result.images, result.labelled, result.labels) == (6, 3, "by name (3 of 3 classes), from the batches")
    with pytest.raises(DataError, match=r"There is nothing to judge by.*'ibex', 'yak' have no counterpart"):
        evaluate_model(model, open_images([(pixels[:2], ["yak", "ibex"])]), progress=False)


def test_a_search_counts_the_labelled_images(vit: PreTrainedModel, pixels: Tensor, truth: list[int]) -> None:
    images = labelled(pixels, truth, lambda index, label: label if index % 4 == 0 else -1)
    reference = Reference.of(Subject.alone(vit), images, quiet(CompressionConfig(precision="float32")))
    reference.distrust_guesses("nothing")
    assert reference.trusted
    other = seeded(ViTForImageClassification, tiny_config(), seed=7)
    with torch.no_grad():
        wrong = other(pixels).logits.argmax(-1) != torch.tensor(truth)
    assert reference.drop_of(other) == pytest.approx(float(wrong[::4].double().mean()))


def test_a_search_does_not_go_by_a_few_labels(vit: PreTrainedModel, pixels: Tensor, truth: list[int]) -> None:
    images = labelled(pixels, truth, lambda index, label: label if index < 3 else None)
    reference = Reference.of(Subject.alone(vit), images, quiet(CompressionConfig(precision="float32")))
    with pytest.warns(DataWarning, match="Only 3 of 96 images of the list of batches have labels that fit the model"):
        reference.distrust_guesses("agreement takes their place")
    assert reference.labels is None


TASK = CompressionConfig(calibration_loss="task", metric="fisher")


def test_images_without_labels_are_left_out_where_a_loss_needs_them(vit: PreTrainedModel, pixels: Tensor) -> None:
    images = labelled(pixels, [0] * 96, lambda index, label: None if index < 90 else label)
    with pytest.warns(DataWarning, match="90 of 96 images of the list of batches have no label or target"):
        assert len(images_to_learn(vit, images, TASK)) == 6
    assert images_to_learn(vit, images, CompressionConfig()) is images
    with pytest.raises(DataError, match="has none"):
        images_to_learn(vit, open_images(pixels), TASK)


def test_a_question_about_columns_is_asked_where_there_is_nothing_to_judge_by(
    vit: PreTrainedModel, pixels: Tensor
) -> None:
    images = open_images(pixels[:2])
    images.found = FoundLabels([None, None], None, "the columns", "Say which column to take.")
    with pytest.raises(DataError, match=r"nothing to judge by.*Say which column to take\."):
        evaluate_model(vit, images, progress=False)


def test_a_model_without_a_head_has_no_classes(pixels: Tensor) -> None:
    headless = seeded(ViTForImageClassification, tiny_config(num_labels=0))
    replaced = seeded(ViTForImageClassification, tiny_config())
    replaced.classifier = nn.Identity()
    for model in (headless, replaced):
        assert not is_classifier(model)
        result = evaluate_model(model, open_images(pixels[:8]), against=model, progress=False)
        assert (result.agreement, result.top1) == (None, None)
        assert result.kl is not None
        assert result.kl.value == 0
    assert TINY["hidden_size"] == headless(pixels[:1]).logits.shape[-1]
