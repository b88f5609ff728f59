"""Gradients that calibration collects: of the model's answers and of its own loss."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, ViTForImageClassification, ViTForMaskedImageModeling, ViTModel

from hf_vitcompress.architectures.layers import find_layers
from hf_vitcompress.config import CompressionConfig
from hf_vitcompress.errors import CalibrationError, DataError
from hf_vitcompress.images.images import ImageSource
from hf_vitcompress.images.sources import open_images
from support.calibrations import PRECISIONS, config, every_mlp, recorded, run, summed
from support.models import seeded, tiny_config
from support.moments import relative, same
from support.zoo import HEADS


@pytest.mark.usefixtures("every_token")
@every_mlp
def test_model_gradient_moments_are_the_exact_fisher(vit: PreTrainedModel, pixels: Tensor, mlp: str) -> None:
    pixels = pixels[:16]
    statistics = run(vit, pixels, config(fisher_probes=8, mlp=mlp))
    expected = dict.fromkeys((layer.name for layer in find_layers(vit)), 0.0)
    for label in range(5):
        with recorded(vit) as recorders:
            log_p = vit(pixel_values=pixels.clone().requires_grad_(True)).logits.log_softmax(-1)[:, label]
            (log_p * log_p.detach().exp().sqrt()).sum().backward()
        for layer in find_layers(vit):
            recorder = recorders[layer.name]
            carried = mlp == "low_rank" and layer.in_features < layer.out_features
            gradients = recorder.input_gradients[0] if carried else recorder.output_gradients
            expected[layer.name] += summed(gradients) / len(pixels)
    for name, moment in expected.items():
        assert relative(statistics.gradients[name].moment, moment) < 1e-5, name


@pytest.mark.parametrize("model_class", [ViTModel, ViTForMaskedImageModeling])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_headless_models_have_finite_gradients(
    model_class: type[PreTrainedModel], precision: str, pixels: Tensor
) -> None:
    model = seeded(model_class, tiny_config(encoder_stride=4))
    statistics = run(model, pixels[:16], config(precision=precision))
    for layer in find_layers(model):
        moment = statistics.gradients[layer.name].moment
        assert moment.shape == (layer.out_features,) * 2
        assert torch.isfinite(moment).all()
        assert moment.trace() > 0


def task(**changes: Any) -> CompressionConfig:
    return config(calibration_loss="task", token_weighting=0.0, **changes)


def ready(pixels: Tensor, labels: Any = None) -> ImageSource:
    return open_images([{"pixel_values": pixels, "labels": labels}])


@pytest.mark.parametrize(
    "name", ["ViTForImageClassification", "YolosForObjectDetection", "BeitForSemanticSegmentation"]
)
def test_gradients_of_the_models_own_loss_are_those_of_each_image(name: str) -> None:
    head = next(head for head in HEADS if head.name == name)
    model, pixels, targets = head.dense(), head.pixels(4), head.targets(4)
    statistics = run(model, ready(pixels, targets), task())
    # The last block of this segmenter is read by nobody: its hidden states count from the embeddings.
    read = range(3 if name.startswith("Beit") else 4)
    layers = [layer for layer in find_layers(model) if layer.role in ("q", "o", "fc1") and layer.block in read]
    expected = dict.fromkeys((layer.name for layer in layers), 0.0)
    for i in range(4):
        with recorded(model) as recorders:
            image = pixels[i : i + 1].clone().requires_grad_(True)
            model(pixel_values=image, labels=targets[i : i + 1]).loss.backward()
        for layer in layers:
            expected[layer.name] += summed(recorders[layer.name].output_gradients) / 4
    for layer in layers:
        assert expected[layer.name].norm() > 0
        assert relative(statistics.gradients[layer.name].moment, expected[layer.name]) < 1e-4, layer.name
        assert statistics.gradients[layer.name].count == 4


def test_the_own_loss_needs_no_probes(vit: PreTrainedModel, pixels: Tensor) -> None:
    images = ready(pixels[:32], torch.arange(32) % 5)
    one, other = (run(vit, images, task(fisher_probes=probes)).gradients for probes in (1, 7))
    assert all(torch.equal(one[name].moment, other[name].moment) for name in one)


def test_a_masked_autoencoder_needs_no_targets_for_its_own_loss() -> None:
    head = next(head for head in HEADS if head.name == "ViTMAEForPreTraining")
    statistics = run(head.dense(), head.pixels(), task())
    assert all(gradient.moment.trace() > 0 for gradient in statistics.gradients.values())


def test_without_targets_their_loss_is_refused_with_the_remedy(vit: PreTrainedModel, pixels: Tensor) -> None:
    with pytest.raises(DataError, match="DataLoader") as caught:
        run(vit, pixels[:16], task())
    assert 'calibration_loss="output"' in str(caught.value)


def test_metrics_without_gradients_need_no_targets(vit: PreTrainedModel, pixels: Tensor) -> None:
    run(vit, pixels[:16], task(metric="activation"))


@pytest.mark.parametrize("name", ["ViTModel", "DPTForDepthEstimation", "SwinBackbone"])
def test_a_model_without_a_loss_of_its_own_is_named(name: str) -> None:
    head = next(head for head in HEADS if head.name == name)
    pixels = head.pixels(4)
    with pytest.raises(CalibrationError, match=f"{name} computes no loss") as caught:
        run(head.dense(), ready(pixels, torch.rand(4, 64, 64)), task())
    assert 'calibration_loss="output"' in str(caught.value)


def test_a_checkpoint_of_the_other_loss_is_refused(vit: PreTrainedModel, pixels: Tensor, tmp_path: Path) -> None:
    images = ready(pixels[:32], torch.arange(32) % 5)
    run(vit, images, config(token_weighting=0.0)).save(tmp_path / "c")
    with pytest.raises(CalibrationError, match="calibration_loss"):
        run(vit, images, task(), checkpoint=tmp_path / "c")


def test_a_checkpoint_from_before_there_was_another_loss_is_continued(
    vit: PreTrainedModel, pixels: Tensor, tmp_path: Path
) -> None:
    expected = run(vit, pixels[:32], config())
    older = copy.deepcopy(expected)
    del older.settings["calibration_loss"]
    older.save(tmp_path / "c")
    assert same(run(vit, pixels[:32], config(), checkpoint=tmp_path / "c"), expected)


@pytest.mark.parametrize("metric", ["fisher", "row_fisher"])
def test_a_constant_output_has_no_gradients_and_is_named(metric: str, pixels: Tensor) -> None:
    model = seeded(ViTForImageClassification, tiny_config())
    model.classifier.weight.data.zero_()
    with pytest.raises(CalibrationError, match="All gradients are 0") as caught:
        run(model, pixels[:32], config(metric=metric))
    assert "ViTForImageClassification" in str(caught.value)
    assert 'metric="activation"' in str(caught.value)
    run(model, pixels[:32], config(metric="activation"))


def test_a_regression_of_one_number_has_gradients(pixels: Tensor) -> None:
    statistics = run(seeded(ViTForImageClassification, tiny_config(num_labels=1)), pixels[:32], config())
    assert all(gradient.moment.trace() > 0 for gradient in statistics.gradients.values())


def test_a_block_that_nothing_reads_may_have_none() -> None:
    head = next(head for head in HEADS if head.name == "BeitForSemanticSegmentation")
    statistics = run(head.dense(), head.pixels(), config())
    traces = {name: float(gradient.moment.trace()) for name, gradient in statistics.gradients.items()}
    assert any(trace == 0 for name, trace in traces.items() if ".layers.3." in name)
    assert any(trace > 0 for trace in traces.values())
