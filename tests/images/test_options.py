"""Which split is taken."""

import pytest

from hf_vitcompress.errors import DataError, DataWarning
from hf_vitcompress.images.options import (
    TESTING,
    VALIDATION,
    DataOptions,
    chosen_split,
    split_of_file,
    split_of_folder,
)

ALL = ["train", "val", "test"]


@pytest.mark.parametrize(
    ("names", "options", "expected"),
    [
        (ALL, DataOptions(), "train"),
        (ALL, VALIDATION, "val"),
        (ALL, TESTING, "test"),
        (["train", "val"], TESTING, "val"),
        (["train", "test"], VALIDATION, "test"),
        (["Training", "Testing"], TESTING, "Testing"),
        (ALL, DataOptions(split="validation"), "val"),
        (["extra", "test"], DataOptions(split="extra"), "extra"),
        (["first", "second"], DataOptions(), "first"),
    ],
)
def test_a_split_is_chosen(names: list[str], options: DataOptions, expected: str) -> None:
    assert chosen_split(names, "photos", options) == expected


def test_to_judge_by_training_images_is_said() -> None:
    with pytest.warns(DataWarning, match="photos has no test or validation split: the images of 'train' are taken"):
        assert chosen_split(["extra", "train"], "photos", TESTING) == "train"


@pytest.mark.parametrize(("names", "said"), [(["a", "b"], "no split 'c'; it has a, b"), ([], "it has no splits")])
def test_a_split_that_is_not_there_is_refused(names: list[str], said: str) -> None:
    with pytest.raises(DataError, match=said):
        chosen_split(names, "photos", DataOptions(split="c"))


@pytest.mark.parametrize(
    ("name", "kind"),
    [("train", "train"), ("Val", "validation"), ("test_images", "test"), ("testset", "test"), ("test tube", None)],
)
def test_folders_of_splits_are_known(name: str, kind: str | None) -> None:
    assert split_of_folder(name) == kind


@pytest.mark.parametrize(
    ("stem", "kind"),
    [("train-00000-of-00004", "train"), ("cats_val", "validation"), ("contest", None), ("0000", None)],
)
def test_files_of_splits_are_known(stem: str, kind: str | None) -> None:
    assert split_of_file(stem) == kind
