"""Figures of a model against formulas written out here."""

import copy
import math

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    PreTrainedModel,
    ViTForImageClassification,
    ViTModel,
)

from hf_vitcompress.architectures.subject import Subject
from hf_vitcompress.errors import ConfigError, DataError, DataWarning
from hf_vitcompress.evaluation import evaluation
from hf_vitcompress.evaluation.evaluation import evaluate_model
from hf_vitcompress.evaluation.intervals import mean_interval, wilson_interval
from hf_vitcompress.images.sources import open_images
from support.models import DIGITS, TINY, seeded, tiny_config
from support.zoo import HEADS, Head

random_labels = pytest.mark.filterwarnings("ignore:.*no better than guessing:hf_vitcompress.errors.DataWarning")
"""A random model has no better accuracy than guessing on labels that are not made from its own answers."""


def labelled(pixels: Tensor, labels: Tensor) -> DataLoader:
    return DataLoader(TensorDataset(pixels, labels), batch_size=32)


def outputs(model: PreTrainedModel, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return model(pixel_values=pixels)[0]


@pytest.fixture
def vit(vit: PreTrainedModel, pixels: Tensor) -> PreTrainedModel:
    """A random model that sees every class about as often."""
    with torch.no_grad():
        vit.classifier.bias -= outputs(vit, pixels).mean(0)
    return vit


@pytest.fixture
def other(vit: PreTrainedModel) -> PreTrainedModel:
    """`vit` with its weights disturbed: it agrees with it on some images and not on others."""
    model, noise = copy.deepcopy(vit), seeded(ViTForImageClassification, tiny_config(), seed=7)
    with torch.no_grad():
        for parameter, disturbance in zip(model.vit.parameters(), noise.vit.parameters(), strict=True):
            parameter.add_(disturbance, alpha=0.1)
    return model


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # R: prop.test(81, 263, correct = FALSE), Newcombe 1998 table I; the last two are the closed forms z²/(n + z²).
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0),
    ],
)
def test_wilson_interval_equals_published_values(successes: int, trials: int, low: float, high: float) -> None:
    interval = wilson_interval(successes, trials)
    assert interval.value == successes / trials
    assert interval.low == pytest.approx(low, abs=6e-5)
    assert interval.high == pytest.approx(high, abs=6e-5)


@pytest.mark.parametrize(("successes", "trials"), [(3, 10), (491, 500), (1, 2)])
def test_the_ends_of_the_wilson_interval_solve_its_equation(successes: int, trials: int) -> None:
    """At both ends p the observed share is 1.96 standard deviations of a binomial(p) away."""
    interval = wilson_interval(successes, trials)
    for end in (interval.low, interval.high):
        distance = abs(interval.value - end) / math.sqrt(end * (1 - end) / trials)
        assert distance == pytest.approx(1.959964, abs=1e-5)


def test_an_interval_of_no_images_is_refused() -> None:
    with pytest.raises(DataError):
        wilson_interval(0, 0)


def test_mean_interval_is_mean_and_standard_error() -> None:
    interval = mean_interval(torch.tensor([1.0, 2.0, 4.0, 5.0]))
    half = 1.959964 * math.sqrt(((2**2 + 1 + 1 + 2**2) / 3) / 4)
    assert interval.value == 3.0
    assert interval.high - 3 == pytest.approx(half, abs=1e-5)
    assert 3 - interval.low == pytest.approx(half, abs=1e-5)


def test_top1_counts_right_answers(vit: PreTrainedModel, pixels: Tensor) -> None:
    right = outputs(vit, pixels).argmax(-1)
    labels = right.clone()
    labels[:24] = (labels[:24] + 1) % 5
    result = evaluate_model(vit, open_images(labelled(pixels, labels)), batch_size=40, progress=False)
    assert result.images == 96
    assert result.top1 == wilson_interval(72, 96)
    assert (result.agreement, result.kl, result.top1_drop) == (None, None, None)


def test_kl_and_agreement_follow_their_definitions(
    vit: PreTrainedModel, other: PreTrainedModel, pixels: Tensor
) -> None:
    p, q = outputs(vit, pixels).double().softmax(-1), outputs(other, pixels).double().softmax(-1)
    kl = (p * (p / q).log()).sum(-1)
    result = evaluate_model(other, open_images(pixels), against=vit, progress=False)
    assert result.kl is not None
    assert result.agreement is not None
    assert result.kl.value == pytest.approx(float(kl.mean()), rel=1e-4)
    assert result.kl.high - result.kl.low == pytest.approx(2 * 1.959964 * float(kl.std()) / math.sqrt(96), rel=1e-4)
    assert result.agreement.value == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
    assert 0 < result.agreement.value < 1
    assert result.top1 is None


@random_labels
def test_drop_is_paired(vit: PreTrainedModel, other: PreTrainedModel, pixels: Tensor) -> None:
    labels = torch.arange(96) % 5
    before, after = (outputs(model, pixels).argmax(-1) == labels for model in (vit, other))
    result = evaluate_model(other, open_images(labelled(pixels, labels)), against=vit, progress=False)
    assert result.top1_drop is not None
    assert result.reference_top1 == wilson_interval(int(before.sum()), 96)
    assert result.top1 == wilson_interval(int(after.sum()), 96)
    assert result.top1_drop == mean_interval(before.double() - after.double())
    assert result.top1_drop.value == pytest.approx(float(before.double().mean() - after.double().mean()))


@random_labels
def test_a_model_against_itself_agrees_entirely(vit: PreTrainedModel, pixels: Tensor) -> None:
    result = evaluate_model(vit, open_images(labelled(pixels, torch.zeros(96).long())), against=vit, progress=False)
    assert result.agreement is not None
    assert result.kl is not None
    assert result.top1_drop is not None
    assert result.agreement.value == 1
    assert abs(result.kl.value) < 1e-12
    assert result.top1_drop.value == 0


def test_a_headless_model_is_judged_by_its_relative_error(pixels: Tensor) -> None:
    dense, model = seeded(ViTModel, tiny_config()), seeded(ViTModel, tiny_config(), seed=7)
    a, b = outputs(dense, pixels).flatten(1), outputs(model, pixels).flatten(1)
    error = ((b - a).norm(dim=1) / a.norm(dim=1)) ** 2 / 2
    result = evaluate_model(model, open_images(pixels), against=dense, progress=False)
    assert result.kl is not None
    assert result.kl.value == pytest.approx(float(error.mean()), rel=1e-5)
    assert result.agreement is None


def head_named(name: str) -> Head:
    return next(head for head in HEADS if head.name == name)


def test_a_segmenter_is_judged_pixel_by_pixel() -> None:
    head = head_named("BeitForSemanticSegmentation")
    dense, model, images = head.dense(), head.dense(seed=7), head.pixels(6)
    p, q = (outputs(m, images).double().softmax(1) for m in (dense, model))
    kl = (p * (p / q).log()).sum(1).flatten(1).mean(1)
    same = (p.argmax(1) == q.argmax(1)).double().flatten(1).mean(1)
    result = evaluate_model(model, open_images(images), against=dense, batch_size=4, progress=False)
    assert result.kl is not None
    assert result.kl.value == pytest.approx(float(kl.mean()), rel=1e-5)
    assert result.agreement == mean_interval(same)
    assert (result.top1, result.top1_drop) == (None, None)


def test_a_detector_is_judged_by_its_classes_and_its_boxes() -> None:
    head = head_named("YolosForObjectDetection")
    dense, model, images = head.dense(), head.dense(seed=7), head.pixels(6)
    with torch.no_grad():
        ours, theirs = (m(pixel_values=images) for m in (dense, model))
    p, q = ours.logits.double().softmax(-1), theirs.logits.double().softmax(-1)
    expected = (p * (p / q).log()).sum(-1).mean(-1)
    error = ((theirs.pred_boxes - ours.pred_boxes) ** 2).sum(-1) * p[..., :5].sum(-1)
    expected += error.sum(-1) / (ours.pred_boxes**2).sum((1, 2)) / 2
    result = evaluate_model(model, open_images(images), against=dense, progress=False)
    assert result.kl is not None
    assert result.kl.value == pytest.approx(float(expected.mean()), rel=1e-5)
    assert result.agreement is not None


def test_labels_of_pixels_judge_no_classifier() -> None:
    head = head_named("BeitForSemanticSegmentation")
    batch = {"pixel_values": head.pixels(4), "labels": head.targets(4)}  # type: ignore[misc]
    with pytest.raises(DataError, match="nothing to judge by"):
        evaluate_model(head.dense(), open_images([batch]), progress=False)


@pytest.mark.parametrize("name", ["BeitForSemanticSegmentation", "DPTForDepthEstimation", "SwinBackbone"])
def test_a_part_of_many_values_judges_as_well(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    head = head_named(name)
    dense, model = head.dense(), head.dense(seed=7)
    results = []
    for limit in (2**16, 300):
        monkeypatch.setattr(evaluation, "VALUES_PER_IMAGE", limit)
        found, _ = evaluation.model_outputs(Subject.alone(dense), open_images(head.pixels(6)).batches(None, 4))
        assert all(term.values[0].numel() <= limit for terms in found for term in terms)
        results.append(evaluate_model(model, open_images(head.pixels(6)), against=dense, progress=False))
    whole, part = (result.kl for result in results)
    assert whole is not None
    assert part is not None
    assert part.value == pytest.approx(whole.value, rel=0.25)


def test_without_labels_and_without_a_reference_there_is_nothing_to_judge_by(
    vit: PreTrainedModel, pixels: Tensor
) -> None:
    with pytest.raises(DataError, match="--against"):
        evaluate_model(vit, open_images(pixels), progress=False)


def test_labels_alone_do_not_judge_a_headless_model(pixels: Tensor) -> None:
    model = seeded(ViTModel, tiny_config())
    with pytest.raises(DataError, match="against="):
        evaluate_model(model, open_images(labelled(pixels, torch.zeros(96).long())), progress=False)


def test_an_unknown_precision_is_refused(vit: PreTrainedModel, pixels: Tensor) -> None:
    with pytest.raises(ConfigError, match="float16"):
        evaluate_model(vit, open_images(pixels), against=vit, precision="float16", progress=False)


def test_the_model_is_left_as_it_was(vit: PreTrainedModel, pixels: Tensor) -> None:
    vit.train()
    evaluate_model(vit, open_images(pixels[:4]), against=vit, progress=False)
    assert vit.training


@random_labels
def test_batch_size_changes_no_figure(vit: PreTrainedModel, other: PreTrainedModel, pixels: Tensor) -> None:
    images = open_images(labelled(pixels, torch.arange(96) % TINY["num_labels"]))  # type: ignore[operator]
    one, two = (evaluate_model(other, images, against=vit, batch_size=n, progress=False) for n in (96, 17))
    assert (one.top1, one.agreement) == (two.top1, two.agreement)
    assert one.kl is not None
    assert two.kl is not None
    assert one.kl.value == pytest.approx(two.kl.value, rel=1e-5)


def test_unreadable_images_are_reported(vit: PreTrainedModel, processor: object) -> None:
    source = open_images(DIGITS / "test.parquet")
    part = source.select(range(6))
    part.images, part.found, part.labels = [*part.images[:5], b"broken"], None, [0] * 6
    with pytest.warns(DataWarning, match=r"1 of 6 images of test\.parquet cannot be read.*image 5 of test\.parquet"):
        result = evaluate_model(vit, part, processor, progress=False)
    assert (result.images, result.bad_images) == (5, 1)


def test_the_digits_model_has_the_accuracy_written_beside_it() -> None:
    model = AutoModelForImageClassification.from_pretrained(DIGITS / "model")
    images = open_images(DIGITS / "test.parquet", label2id=model.config.label2id)
    result = evaluate_model(model, images, AutoImageProcessor.from_pretrained(DIGITS / "model"), progress=False)
    assert result.top1 == wilson_interval(491, 500)
