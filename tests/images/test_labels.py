"""Labels as classes of the model: yes and no, withheld ones, and those past the last class."""

from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from hf_vitcompress.errors import DataError
from hf_vitcompress.images.classes import UNLABELLED, Classes
from hf_vitcompress.images.labels import FoundLabels, check_labels, is_class, labels_for
from hf_vitcompress.images.sources import open_images
from support.pictures import png

TWO, FIVE = ({f"LABEL_{i}": i for i in range(count)} for count in (2, 5))


def with_labels(six: list[Image.Image], labels: list[Any]) -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image()})
    rows = [{"bytes": png(picture), "path": None} for picture in six]
    return datasets.Dataset.from_dict({"image": rows}, features=features).add_column("label", labels)


def test_yes_and_no_are_two_classes(six: list[Image.Image], pixels: Tensor) -> None:
    labels = [True, False, True, True, False, False]
    assert open_images(with_labels(six, labels), label2id=TWO).labels == [1, 0, 1, 1, 0, 0]
    assert open_images([(pixels[:6], torch.tensor(labels))], label2id=TWO).labels == [1, 0, 1, 1, 0, 0]


@pytest.mark.parametrize("label2id", [FIVE, None])
def test_yes_and_no_are_not_the_first_two_of_more_classes(
    label2id: dict[str, int] | None, six: list[Image.Image], pixels: Tensor
) -> None:
    labels = [True, False, True, True, False, False]
    for images in (with_labels(six, labels), [(pixels[:6], torch.tensor(labels))]):
        source = open_images(images, label2id=label2id)
        assert source.labels is None
        if label2id is not None:
            assert source.matching is not None
            assert "are yes and no, and the model has 5 classes: they are not used" in source.matching.problem


WITHHELD = {
    "none": [0, 1, None, 2, 3, 4],
    "negative": [0, 1, -1, 2, 3, 4],
    "not a number": [0.0, 1.0, float("nan"), 2.0, 3.0, 4.0],
    "an empty name": ["0", "1", " ", "2", "3", "4"],
}


@pytest.mark.parametrize("kind", WITHHELD)
def test_a_label_that_is_withheld_leaves_its_image_unlabelled(kind: str, six: list[Image.Image]) -> None:
    source = open_images(with_labels(six, WITHHELD[kind]), label2id=FIVE)
    assert source.labels == [0, 1, UNLABELLED, 2, 3, 4]
    assert len(source.labelled()) == 5


def test_labels_of_batches_that_are_withheld_leave_their_images_unlabelled(pixels: Tensor) -> None:
    source = open_images([(pixels[:3], torch.tensor([0, -1, 2]))], label2id=FIVE)
    (batch,) = source.batches(None, 3)
    assert batch.labels is not None
    assert batch.labels.tolist() == source.labels == [0, UNLABELLED, 2]


@pytest.mark.parametrize("label", [[2], torch.tensor([2]), np.int64(2), "LABEL_2", "02", 2.0])
def test_a_class_may_be_written_in_many_ways(label: Any) -> None:
    found = labels_for(FoundLabels([label, label], None, "a list"), Classes.of_label2id(FIVE), "photos")
    assert found.labels == [2, 2]


def test_numbers_to_be_predicted_are_no_classes_and_may_be_withheld(pixels: Tensor) -> None:
    values = torch.tensor([0.5, float("nan"), 2.0])
    source = open_images([(pixels[:3], values)]).matched(Classes({}, 1, single=False))
    assert source.labels is None
    assert source.labelled().targets == [values[0], values[2]]
    first, second = source.batches(None, 2)
    assert first.targets is None  # no loss is computed with what is not a number
    assert second.targets == values[2:]


def test_labels_are_matched_once(six: list[Image.Image]) -> None:
    source = open_images(with_labels(six, ["b", "a", "b", "c", "a", "b"]))
    assert source.labels == [1, 0, 1, 2, 0, 1]
    matched = source.matched(Classes.of_label2id({"c": 0, "b": 1, "a": 2}))
    assert matched.labels == [1, 2, 1, 0, 2, 1]
    assert matched.matched(Classes.of_label2id(FIVE)) is matched
    assert matched.select([3, 0]).labels == [0, 1]


def test_a_label_past_the_names_is_refused() -> None:
    with pytest.raises(DataError, match="A label of photos is 3, and the column names 2 classes"):
        labels_for(FoundLabels([0, 3], ["a", "b"], "the column"), None, "photos")


@pytest.mark.parametrize(("labels", "fits"), [([0, 4], True), ([], True), (None, True), ([1, 5], False), ([59], False)])
def test_labels_past_the_last_class_are_refused(labels: list[int] | None, fits: bool) -> None:
    if fits:
        check_labels(labels, 5, "photos")
    else:
        with pytest.raises(DataError, match=rf"A label of photos is {max(labels or [])}.*5 classes.*from 0 to 4"):
            check_labels(labels, 5, "photos")


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (3, True),
        (np.int64(3), True),
        (torch.tensor(3), True),
        (torch.tensor(3.0), False),
        (torch.tensor(3j), False),
        (0.5, False),
        (torch.zeros(4, 4).long(), False),
        ({"boxes": torch.zeros(1, 4)}, False),
        ("cat", False),
    ],
)
def test_an_index_is_a_class_and_a_map_is_none(label: Any, expected: bool) -> None:
    assert is_class(label) is expected
