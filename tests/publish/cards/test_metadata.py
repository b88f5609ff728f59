"""The head of a card: what the Hub reads of it, and accepts."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from hf_vitcompress.compensation.course import CompensationReport
from hf_vitcompress.evaluation.evaluation import Evaluation
from hf_vitcompress.evaluation.intervals import Interval
from hf_vitcompress.planning.plan import GroupReport
from hf_vitcompress.report.card_file import Card
from hf_vitcompress.report.provenance import Origin
from support.cards import POINTS, PUBLISHED_ORIGIN, card_with, judged
from support.published import Made


def metadata(made: Made, **settings: Any) -> dict[str, Any]:
    return card_with(made, **settings).metadata


def test_the_usual_metadata(made: Made) -> None:
    found = metadata(made)
    index = found.pop("model-index")
    assert found == {
        "license": "mit",
        "language": ["en"],
        "library_name": "transformers",
        "pipeline_tag": "image-classification",
        "tags": ["hf_vitcompress", "vision", "model-compression", "low-rank", "structured-pruning"],
        "base_model": "someone/vit-tiny",
        "base_model_relation": "finetune",
        "datasets": ["someone/shapes"],
        "metrics": ["accuracy"],
    }
    (metric,) = index[0]["results"][0]["metrics"]
    assert index[0]["name"] == "x"
    assert made.report.evaluation is not None
    assert made.report.evaluation.top1 is not None
    assert metric["value"] == made.report.evaluation.top1.value


@pytest.mark.parametrize("value", [1 / 3, 0.9876543210123456, 0.0, 1.0])
def test_the_accuracy_is_that_of_the_evaluation_to_the_last_digit(made: Made, value: float) -> None:
    top1 = Interval(value, 0.0, 1.0)
    card = Card.parse(str(card_with(made, evaluation=judged(made, top1=top1, images=3))))
    (metric,) = card.metadata["model-index"][0]["results"][0]["metrics"]
    assert metric == {"type": "accuracy", "value": value, "name": "top-1, n=3 (hf_vitcompress)"}


def test_a_result_names_its_data_set(made: Made) -> None:
    def dataset(**changes: Any) -> dict[str, str]:
        return metadata(made, evaluation=judged(made, **changes))["model-index"][0]["results"][0]["dataset"]

    assert dataset(dataset="uoft-cs/cifar10") == {"type": "uoft-cs/cifar10", "name": "uoft-cs/cifar10"}
    assert dataset() == {"type": "imagefolder", "name": "unpublished test images"}


@pytest.mark.parametrize("path", ["/data/photos", "photos/", "../photos", "C:\\photos", "a/b/c", "s3://x/y"])
def test_a_path_is_no_data_set(made: Made, path: str) -> None:
    card = str(card_with(made, evaluation=judged(made, dataset=path), calibration_dataset=path))
    assert path not in card
    assert "unpublished test images" in card


def test_a_folder_of_the_name_of_a_data_set_is_no_data_set(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "private" / "photos").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    card = card_with(made, evaluation=judged(made, dataset="private/photos"), calibration_dataset="private/photos")
    assert "private/photos" not in str(card)


@pytest.mark.parametrize("changes", [{"evaluation": None}, {"evaluation": Evaluation(5, kl=Interval(0.1, 0.0, 0.2))}])
def test_without_accuracy_there_is_no_result(made: Made, changes: dict[str, Any]) -> None:
    assert not {"model-index", "metrics"} & metadata(made, **changes).keys()


def test_a_quantized_model_is_one(made: Made) -> None:
    found = metadata(made, quantization="int8_dynamic")
    assert found["base_model_relation"] == "quantized"
    assert "quantized" in found["tags"]


def test_without_a_base_model_there_is_no_relation_to_one(made: Made) -> None:
    found = metadata(made, origin=Origin())
    assert not {"base_model", "base_model_relation", "license", "language", "datasets"} & found.keys()


def test_the_terms_of_the_base_model_are_inherited(made: Made) -> None:
    found = metadata(made, origin=PUBLISHED_ORIGIN)
    assert {name: found[name] for name in ("license", "language", "datasets", "base_model")} == {
        "license": "apache-2.0",
        "language": ["en"],
        "datasets": ["imagenet-1k"],
        "base_model": "google/vit-base-patch16-224",
    }
    own = Origin(license="other", license_name="my-terms", license_link="LICENSE")
    assert dataclasses.asdict(own).items() >= {"license": "other", "license_name": "my-terms"}.items()
    found = metadata(made, origin=own)
    assert (found["license"], found["license_name"], found["license_link"]) == ("other", "my-terms", "LICENSE")


def test_the_calibration_images_are_a_data_set_too(made: Made) -> None:
    assert metadata(made, calibration_dataset="me/a")["datasets"] == ["someone/shapes", "me/a"]
    assert metadata(made, calibration_dataset="someone/shapes")["datasets"] == ["someone/shapes"]


def test_what_a_person_states_fills_gaps(made: Made) -> None:
    known = {"base_model": "a/b", "license": "gpl-3.0", "datasets": "c/d", "language": "de", "tags": ["theirs"]}
    found = metadata(made, origin=Origin(), known=known)
    assert (found["base_model"], found["license"], found["datasets"]) == ("a/b", "gpl-3.0", ["c/d"])
    assert "theirs" not in found["tags"]
    found = metadata(made, known=known)
    assert (found["base_model"], found["license"], found["language"]) == ("someone/vit-tiny", "mit", ["en"])


def part(**shape: int) -> GroupReport:
    return GroupReport("q", "q", 0, ["q"], "something", {"q": shape} if shape else {}, 1, 2, None)


@pytest.mark.parametrize(
    ("changes", "tags"),
    [
        ({"parts": [part()]}, []),
        ({"parts": [part(rank=2)]}, ["low-rank"]),
        ({"parts": [part(qk_rank=2)]}, ["low-rank"]),
        ({"parts": [part(out_features=2)]}, ["structured-pruning"]),
        ({"parts": [part(in_features=2, rank=1)]}, ["low-rank", "structured-pruning"]),
        ({"parts": [], "compensation": CompensationReport("both", 1, 1, POINTS, 2.0)}, ["knowledge-distillation"]),
        ({"parts": [], "compensation": CompensationReport("residual", 1, 1, POINTS[:1], 2.0)}, []),
    ],
)
def test_tags_say_how_it_was_compressed(made: Made, changes: dict[str, Any], tags: list[str]) -> None:
    assert metadata(made, **changes)["tags"][3:] == tags
