"""Labels as classes of the model: yes and no, withheld ones, and those past the last class."""

from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from hf_vitcompress.errors import DataError, DataWarning
from hf_vitcompress.images.labels import check_labels, is_class
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
        with pytest.warns(
            DataWarning, match="are yes and no, and the model has (5|unknown) classes: they are not used"
        ):
            assert open_images(images, label2id=label2id).labels is None


@pytest.mark.parametrize("withheld", [None, -1])
def test_a_label_that_is_withheld_withholds_all(withheld: int | None, six: list[Image.Image]) -> None:
    assert open_images(with_labels(six, [0, 1, withheld, 2, 3, 4]), label2id=FIVE).labels is None


def test_labels_of_batches_that_are_withheld_are_none(pixels: Tensor) -> None:
    assert open_images([(pixels[:3], torch.tensor([0, -1, 2]))], label2id=FIVE).labels is None


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
