"""Models that cannot be compared, and arguments of another kind, are refused before anything runs."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, ViTForImageClassification, ViTModel

from hf_vitcompress import evaluate_model
from hf_vitcompress.architectures.outputs import Term
from hf_vitcompress.errors import ConfigError
from hf_vitcompress.evaluation import evaluation
from hf_vitcompress.evaluation.checks import check_comparable, check_same_form
from hf_vitcompress.evaluation.latency import measure_latency
from hf_vitcompress.images.sources import open_images
from support.models import seeded, tiny_config


@pytest.fixture(autouse=True)
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "model_outputs", lambda *_: pytest.fail("ran first"))


def named(*names: str) -> PreTrainedModel:
    labels = dict(enumerate(names))
    config = tiny_config(num_labels=len(names), id2label=labels, label2id={v: k for k, v in labels.items()})
    return seeded(ViTForImageClassification, config)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "a folder"}, "model must be PreTrainedModel, not 'a folder'"),
        ({"model": None}, "model must be"),
        ({"images": "a folder"}, "images must be ImageSource.*open_images"),
        ({"images": None}, "images must be"),
        ({"against": "a folder"}, "against must be PreTrainedModel or None"),
        ({"metrics": "f1"}, r"metrics must be list or tuple.*\[\"f1\"\]"),
        ({"metrics": None}, "metrics must be"),
        ({"batch_size": 0}, "batch_size must be a whole number above 0, not 0"),
        ({"batch_size": -1}, "batch_size"),
        ({"batch_size": 1.5}, "batch_size"),
        ({"batch_size": True}, "batch_size"),
        ({"batch_size": "8"}, "batch_size"),
        ({"precision": "float16"}, "precision is one of"),
        ({"precision": None}, "precision is one of"),
    ],
    ids=str,
)
def test_arguments_of_another_kind_are_named(
    arguments: dict[str, Any], message: str, vit: PreTrainedModel, pixels: Tensor
) -> None:
    given = {"model": vit, "images": open_images(pixels), "against": vit, "progress": False, **arguments}
    with pytest.raises(ConfigError, match=message):
        evaluate_model(**given)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (named("cat", "dog", "eel"), "2 and 3 classes"),
        (named("dog", "cat"), "class 0 is 'cat' to one and 'dog' to the other"),
        (seeded(ViTModel, tiny_config()), "only one of them has classes"),
    ],
    ids=["count", "names", "none"],
)
def test_models_of_other_classes_are_not_compared(other: PreTrainedModel, message: str, pixels: Tensor) -> None:
    with pytest.raises(ConfigError, match=f"{message}.*--against"):
        evaluate_model(named("cat", "dog"), open_images(pixels), against=other, progress=False)


def test_names_are_compared_as_people_read_them() -> None:
    check_comparable(named("cat", "dog"), named("Cat", " dog "))
    check_comparable(named("cat", "dog"), named("LABEL_0", "LABEL_1"))


def test_outputs_of_other_shapes_are_not_subtracted() -> None:
    with pytest.raises(ConfigError, match=r"\[\(2, 3\)\] and \[\(2, 4\)\]"):
        check_same_form([Term(torch.ones(2, 3))], [Term(torch.ones(2, 4))])
    check_same_form([Term(torch.ones(2, 3))], [Term(torch.zeros(2, 3))])


def test_times_are_of_batches_of_images(vit: PreTrainedModel) -> None:
    with pytest.raises(ConfigError, match="batch_size"):
        measure_latency(vit, vit, 0)
