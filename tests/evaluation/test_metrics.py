"""Metrics of the `evaluate` library: loaded when they are used, computed of both models, tried before any image."""

from pathlib import Path
from typing import Any

import datasets
import evaluate
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from transformers import PreTrainedModel, ViTForImageClassification, ViTModel

from hf_vitcompress import Evaluation, evaluate_model
from hf_vitcompress.errors import ConfigError, DataError
from hf_vitcompress.evaluation.metrics import Metrics
from hf_vitcompress.images.images import ImageSource
from hf_vitcompress.images.sources import open_images
from support.metrics import save_metric
from support.models import seeded, tiny_config

CLASSES = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})

pytestmark = pytest.mark.filterwarnings("ignore:.*no better than guessing:hf_vitcompress.errors.DataWarning")
"""Labels are not made from the random models' own answers."""


class ClassMetric(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=CLASSES)


class ShareRight(ClassMetric):
    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        right = sum(p == r for p, r in zip(predictions, references, strict=True))
        return {"share": right / len(predictions), "count": float(len(predictions))}


class ShareWrong(ClassMetric):
    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        wrong = sum(p != r for p, r in zip(predictions, references, strict=True))
        return {"share": wrong / len(predictions)}


class BinaryRecall(ClassMetric):
    """As the library's own: of more classes than two it has to be told how to average."""

    def _compute(self, predictions: list[int], references: list[int], average: str = "binary") -> dict[str, float]:
        from sklearn.metrics import recall_score

        return {"recall": recall_score(references, predictions, average=average)}


class PerClass(ClassMetric):
    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, Any]:
        return {"matrix": [[1, 2], [3, 4]]}


def images(pixels: Tensor, labels: Tensor) -> ImageSource:
    return open_images(DataLoader(TensorDataset(pixels, labels), batch_size=32))


@torch.no_grad()
def predicted(model: PreTrainedModel, pixels: Tensor) -> Tensor:
    return model.eval()(pixel_values=pixels).logits.argmax(-1)


@pytest.fixture
def models(pixels: Tensor) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Two models that see every class about as often."""
    both = tuple(seeded(ViTForImageClassification, tiny_config(), seed=seed).eval() for seed in (0, 7))
    for model in both:
        with torch.no_grad():
            model.classifier.bias -= model(pixel_values=pixels).logits.mean(0)
    return both


def test_a_metric_is_computed_of_both_models(
    models: tuple[PreTrainedModel, PreTrainedModel], pixels: Tensor, tmp_path: Path
) -> None:
    dense, small = models
    labels = torch.arange(96) % 5
    result = evaluate_model(
        small,
        images(pixels, labels),
        against=dense,
        metrics=[ShareRight(keep_in_memory=True), str(save_metric(tmp_path))],
        batch_size=40,
        progress=False,
    )
    shares = [float((predicted(model, pixels) == labels).double().mean()) for model in (small, dense)]
    assert result.metrics == {"share": shares[0], "count": 96, "largest_class": 4}
    assert result.reference_metrics == {"share": shares[1], "count": 96, "largest_class": 4}
    assert result.top1 is not None
    assert result.top1.value == result.metrics["share"]


def test_without_a_dense_model_there_are_no_values_of_it(vit: PreTrainedModel, pixels: Tensor) -> None:
    result = evaluate_model(vit, images(pixels, torch.arange(96) % 5), metrics=[ShareRight()], progress=False)
    assert result.metrics.keys() == {"share", "count"}
    assert result.reference_metrics == {}


def test_without_metrics_there_are_no_values(vit: PreTrainedModel, pixels: Tensor) -> None:
    result = evaluate_model(vit, images(pixels, torch.arange(96) % 5), progress=False)
    assert (result.metrics, result.reference_metrics) == ({}, {})
    assert Evaluation(images=3).metrics == {}


def test_a_metric_of_two_classes_is_averaged_over_more() -> None:
    predictions, labels = torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([0, 1, 1, 2, 2, 0])
    assert Metrics.load([BinaryRecall()], 3).values(predictions, labels)["recall"] == pytest.approx(
        (1 / 2 + 1 / 2 + 1) / 3
    )
    two = Metrics.load([BinaryRecall()], 2)
    assert two.values(torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 1, 1]))["recall"] == pytest.approx(2 / 3)


def test_two_metrics_with_one_name_for_their_values_keep_both() -> None:
    values = Metrics.load([ShareRight(), ShareWrong()], 3).values(torch.tensor([0, 1]), torch.tensor([0, 2]))
    assert values == {"share_right_share": 0.5, "count": 2, "share_wrong_share": 0.5}


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        (["no_such_metric"], "'no_such_metric' cannot be loaded"),
        (["somebody/no_such_metric"], "'somebody/no_such_metric' cannot be loaded"),
        (["./no/such/folder"], "folder with a script"),
        ([7], "not a int"),
        ([ShareRight(), ShareRight()], "'share_right' is given 2 times"),
        ([PerClass()], "'per_class' gives no single numbers"),
    ],
    ids=["name", "repository", "folder", "number", "twice", "table"],
)
def test_what_cannot_be_computed_is_refused_before_any_image_is_read(
    metrics: list[Any], words: str, vit: PreTrainedModel, pixels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: Any) -> None:
        raise AssertionError("an image was read")

    monkeypatch.setattr(ImageSource, "batches", read)
    with pytest.raises(ConfigError, match=words):
        evaluate_model(vit, images(pixels, torch.arange(96) % 5), metrics=metrics, progress=False)


def test_metrics_need_labels_and_classes(vit: PreTrainedModel, pixels: Tensor) -> None:
    with pytest.raises(DataError, match="--metric"):
        evaluate_model(vit, open_images(pixels), against=vit, metrics=[ShareRight()], progress=False)
    headless = seeded(ViTModel, tiny_config())
    with pytest.raises(DataError, match="no classes"):
        evaluate_model(
            headless, images(pixels, torch.zeros(96).long()), against=headless, metrics=[ShareRight()], progress=False
        )
