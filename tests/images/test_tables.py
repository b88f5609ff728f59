"""Columns of images and of labels in data sets."""

from typing import Any

import datasets
import pytest
from PIL import Image

from hf_vitcompress.errors import DataError
from hf_vitcompress.images.classes import Classes
from hf_vitcompress.images.options import DataOptions
from hf_vitcompress.images.sources import open_images

ABC = Classes({0: "c", 1: "b", 2: "a"}, 3)
CLASS = datasets.ClassLabel(names=["a", "b", "c"])


def with_columns(six: list[Image.Image], **columns: tuple[list[Any], Any]) -> datasets.Dataset:
    """A column of pictures, and others by name: their values and feature."""
    features = {name: feature for name, (_, feature) in columns.items()}
    content = {name: values for name, (values, _) in columns.items()}
    return datasets.Dataset.from_dict(
        {"image": six[:3], **content}, features=datasets.Features({"image": datasets.Image(), **features})
    )


@pytest.mark.parametrize("column", ["label", "labels", "target", "class", "fine_label", "Category", "species"])
def test_columns_of_classes_are_found(column: str, six: list[Image.Image]) -> None:
    source = open_images(with_columns(six, **{column: ([0, 1, 2], CLASS)})).matched(ABC)
    assert source.labels == [2, 1, 0]
    assert source.matching is not None
    assert source.matching.how == f"by name (3 of 3 classes), from the column {column!r}"


@pytest.mark.parametrize("column", ["label", "target", "class", "cls"])
@pytest.mark.parametrize("values", [[0, 1, 2], ["c", "b", "a"]])
def test_columns_of_numbers_and_names_are_found(column: str, values: list[Any], six: list[Image.Image]) -> None:
    kind = datasets.Value("int64" if values[0] == 0 else "string")
    assert open_images(with_columns(six, **{column: (values, kind)})).matched(ABC).labels == [0, 1, 2]


def test_of_several_columns_the_best_known_is_taken(six: list[Image.Image]) -> None:
    rows = with_columns(six, coarse_label=([2, 2, 2], CLASS), fine_label=([0, 1, 2], CLASS))
    assert open_images(rows).labels == [0, 1, 2]
    assert open_images(rows, options=DataOptions(label_column="coarse_label")).labels == [2, 2, 2]


def test_several_columns_of_classes_are_a_question(six: list[Image.Image]) -> None:
    source = open_images(with_columns(six, weather=([0, 1, 2], CLASS), season=([0, 1, 2], CLASS))).matched(ABC)
    assert source.labels is None
    assert source.matching is not None
    assert "has several columns of classes: weather, season. Say which" in source.matching.problem


def test_a_mask_is_no_label_and_not_the_image(six: list[Image.Image]) -> None:
    rows = with_columns(six, label=(six[3:], datasets.Image())).select_columns(["label", "image"])
    source = open_images(rows)
    assert source.found is None
    assert source.decoded(0).tobytes() == six[0].tobytes()


def test_two_columns_of_images_are_a_question(six: list[Image.Image]) -> None:
    rows = with_columns(six, right=(six[3:], datasets.Image())).rename_column("image", "left")
    with pytest.raises(DataError, match=r"several columns of images: left, right.*--image-column"):
        open_images(rows)
    assert open_images(rows, options=DataOptions(image_column="right")).decoded(0).tobytes() == six[3].tobytes()


@pytest.mark.parametrize("options", [DataOptions(image_column="photo"), DataOptions(label_column="photo")])
def test_a_column_that_is_not_there_is_refused_with_those_that_are(
    options: DataOptions, six: list[Image.Image]
) -> None:
    with pytest.raises(DataError, match=r"no column 'photo' \(--(image|label)-column\); its columns are image, label"):
        open_images(with_columns(six, label=([0, 1, 2], CLASS)), options=options)
