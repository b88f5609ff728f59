"""Class names of images and of a model: what stands for what."""

import pytest
from transformers import ViTConfig

from hf_vitcompress.images.classes import UNLABELLED, Classes, match_names

U = UNLABELLED
BIRDS = Classes({0: "tench, Tinca tinca", 1: "crane", 2: "sports_car", 3: "crane"}, 4)
NAMELESS = Classes({}, 4)


@pytest.mark.parametrize(
    ("names", "classes", "expected", "how"),
    [
        (["sports_car", "tench, Tinca tinca"], BIRDS, [2, 0], "by name (2 of 4 classes)"),
        (["Sports Car", "Tinca tinca", "TENCH", "bus"], BIRDS, [2, 0, 0, U], "by name (2 of 4 classes)"),
        (["sports-car, racer", "roach, tench"], BIRDS, [2, 0], "by name (2 of 4 classes)"),
        (["tench", "crane"], BIRDS, [0, U], "by name (1 of 4 classes)"),  # which crane?
        (["tench", "crane", "car", "crane"], BIRDS, [0, 1, U, 3], "by name (3 of 4 classes)"),
        (["c++", "c#", "c"], Classes({0: "c", 1: "c++"}, 2), [1, U, 0], "by name (2 of 2 classes)"),
        (["straße"], Classes({0: "STRASSE"}, 1), [0], "by name (1 of 1 classes)"),
        (["oak", "fir"], BIRDS, [U, U], ""),
        (["1", "3"], BIRDS, [1, 3], "by the numbers in their names (2 of 4 classes)"),
        (["0", "3", "rubbish"], NAMELESS, [0, 3, U], "by the numbers in their names (2 of 4 classes)"),
        (["LABEL_2", "class 01"], NAMELESS, [2, 1], "by the numbers in their names (2 of 4 classes)"),
        (["1", "2", "3", "4"], NAMELESS, [0, 1, 2, 3], "by position (4 of 4 classes)"),
        (["50", "59"], NAMELESS, [U, U], ""),
        (["a", "b", "c", "d"], NAMELESS, [0, 1, 2, 3], "by position (4 of 4 classes)"),
        (["a", "b", "c"], NAMELESS, [U, U, U], ""),
        (["a", "b", "c", "d"], BIRDS, [U, U, U, U], ""),
        (["n00000001", "n00000002", "n00000003", "n00000004"], BIRDS, [0, 1, 2, 3], "by position (4 of 4 classes)"),
        (["2", "other", "another"], NAMELESS, [U, U, U], ""),
        (["?", "!"], BIRDS, [U, U], ""),
    ],
)
def test_names_stand_for_classes(names: list[str], classes: Classes, expected: list[int], how: str) -> None:
    match = match_names(names, classes)
    assert (list(match.indices), match.how) == (expected, how)


def test_names_are_those_that_the_pipeline_shows() -> None:
    config = ViTConfig(id2label={0: "cat", 1: "dog"}, label2id={"dog": 0, "cat": 1})
    assert Classes.of(config) == Classes({0: "cat", 1: "dog"}, 2)
    config.label2id = None
    assert Classes.of(config) == Classes({0: "cat", 1: "dog"}, 2)
    config.id2label, config.label2id = {0: "LABEL_0", 1: "LABEL_1"}, {"dog": "0", "cat": 1}  # type: ignore[dict-item]
    assert Classes.of(config) == Classes({0: "dog", 1: "cat"}, 2)


@pytest.mark.parametrize(("labels", "problem", "single"), [(3, None, True), (1, None, False), (3, "regression", False)])
def test_a_class_that_is_called_label_has_no_name(labels: int, problem: str | None, single: bool) -> None:
    config = ViTConfig(num_labels=labels, problem_type=problem)
    assert Classes.of(config) == Classes({}, labels, single)
