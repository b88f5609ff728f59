"""The moments that calibration collects, against float64."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, ViTImageProcessorPil

from hf_vitcompress.architectures.layers import find_layers
from hf_vitcompress.architectures.subject import Subject
from hf_vitcompress.errors import DataWarning
from hf_vitcompress.images.images import ImageSource
from hf_vitcompress.images.sources import open_images
from hf_vitcompress.statistics.calibration import calibrate
from hf_vitcompress.statistics.statistics import Statistics
from support.calibrations import PRECISIONS, by_role, config, every_mlp, recorded, run, summed
from support.moments import relative
from support.stages import quiet
from support.zoo import HEADS


def move_layer_norms(model: PreTrainedModel, by: float, scale: float) -> None:
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.weight.data *= scale
            module.bias.data += by


@every_mlp
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_moments_agree_with_float64(
    vit: PreTrainedModel, pixels: Tensor, precision: str, share: float, mean: float, mlp: str
) -> None:
    # Around 100, bfloat16 numbers are 0.5 apart; with less spread than that nothing would be left to measure.
    move_layer_norms(vit, mean, scale=20.0 if mean and precision == "bfloat16" else 1.0)
    with recorded(vit) as recorders:
        statistics = run(vit, pixels, config(precision=precision, token_weighting=share, mlp=mlp))
    for layer in find_layers(vit):
        recorder, moment = recorders[layer.name], statistics.inputs[layer.input_name]
        weights = recorder.weights(share)
        expected_mean, covariance = recorder.moments(recorder.inputs, weights)
        assert relative(moment.mean, expected_mean) < 1e-5, layer.name
        if mlp == "auto" or layer.in_features <= layer.out_features:
            assert relative(moment.covariance, covariance) < 1e-5, layer.name
        else:
            output_mean, output_covariance = recorder.moments(recorder.outputs, weights)
            assert relative(statistics.outputs[layer.name].mean, output_mean) < 1e-5, layer.name
            assert relative(statistics.outputs[layer.name].covariance, output_covariance) < 1e-5, layer.name


def test_images_of_several_shapes_give_what_they_give_one_by_one(vit: PreTrainedModel, pixels: Tensor) -> None:
    images = [image[:, :, : 16 - 4 * (i % 3)] for i, image in enumerate(pixels[:24])]
    found, expected = (
        run(vit, ImageSource(images, None, "x"), config(metric="activation", batch_size=size)) for size in (8, 1)
    )
    assert (found.images, found.tokens, found.image_shape) == (24, expected.tokens, (3, 16, 16))
    for name, moment in expected.inputs.items():
        assert relative(found.inputs[name].covariance, moment.covariance) < 1e-5


@pytest.mark.usefixtures("every_token")
@every_mlp
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("probes", [1, 2, 3])
def test_gradient_moments_agree_with_float64(
    vit: PreTrainedModel, pixels: Tensor, precision: str, probes: int, mlp: str
) -> None:
    with recorded(vit) as recorders:
        statistics = run(vit, pixels, config(precision=precision, fisher_probes=probes, mlp=mlp))
    for layer in find_layers(vit):
        recorder = recorders[layer.name]
        at_input = [g for batch in recorder.input_gradients for g in batch]
        carried = mlp == "low_rank" and layer.in_features < layer.out_features
        gradients = at_input if carried else recorder.output_gradients
        expected = summed(gradients) / (len(pixels) * probes)
        assert relative(statistics.gradients[layer.name].moment, expected) < 1e-5, layer.name


def test_carried_gradient_is_the_explicit_product(vit: PreTrainedModel, pixels: Tensor) -> None:
    with recorded(vit) as recorders:
        statistics = run(vit, pixels, config(mlp="low_rank"))
    fc1 = by_role(vit)["fc1"]
    weight = vit.get_submodule(fc1.name).weight.detach().double()
    explicit = summed(recorders[fc1.name].output_gradients) / (2 * len(pixels))
    assert relative(statistics.gradients[fc1.name].moment, weight.T @ explicit @ weight) < 1e-5


@pytest.mark.parametrize("metric", ["weight", "activation", "row_fisher"])
def test_other_metrics_collect_plain_moments(vit: PreTrainedModel, pixels: Tensor, metric: str) -> None:
    with recorded(vit) as recorders:
        statistics = run(vit, pixels, config(metric=metric, token_weighting=0.0))
    for layer in find_layers(vit):
        recorder, moment = recorders[layer.name], statistics.inputs[layer.input_name]
        mean, covariance = recorder.moments(recorder.inputs, torch.ones(len(pixels) * 17, dtype=torch.float64))
        assert relative(moment.mean, mean) < 1e-5
        if metric == "activation":
            assert relative(moment.covariance, covariance) < 1e-5
        if metric == "row_fisher":
            powers = sum(g.square().sum(0) for g in recorder.output_gradients) / (2 * len(pixels))
            assert relative(statistics.gradients[layer.name].mean_square, powers) < 1e-5
    assert bool(statistics.gradients) == (metric == "row_fisher")


def test_token_weighting_changes_the_moments(vit: PreTrainedModel, pixels: Tensor) -> None:
    plain, weighted = (run(vit, pixels, config(token_weighting=share)) for share in (0.0, 0.2))
    name = by_role(vit)["q"].input_name
    assert relative(weighted.inputs[name].covariance, plain.inputs[name].covariance) > 1e-3


def test_query_key_and_value_share_one_moment_and_no_wide_one_is_formed(vit: PreTrainedModel, pixels: Tensor) -> None:
    statistics = run(vit, pixels[:32], config(mlp="low_rank"))
    layers = find_layers(vit)
    assert len(layers) == 12
    roles: dict[str, list[str]] = {}
    for layer in layers:
        roles.setdefault(layer.input_name, []).append(layer.role)
    assert list(roles.values()) == 2 * [["q", "k", "v"], ["o"], ["fc1"], ["fc2"]]
    assert list(statistics.inputs) == list(roles)
    for layer in layers:
        narrow = min(layer.in_features, layer.out_features)
        second = statistics.inputs[layer.input_name].second
        assert (second is None) == (layer.in_features > narrow)
        assert second is None or second.shape == (narrow, narrow)
        assert statistics.gradients[layer.name].second.shape == (narrow, narrow)
        assert (layer.name in statistics.outputs) == (layer.in_features > narrow)
    assert all(moment.second.shape == (32, 32) for moment in statistics.outputs.values())
    assert set(statistics.tokens.values()) == {32 * 17}


def test_hidden_features_that_may_be_pruned_have_their_own_moments(vit: PreTrainedModel, pixels: Tensor) -> None:
    """And those of the narrow sides, which they take the place of, are not formed."""
    statistics = run(vit, pixels[:32], config())
    assert not statistics.outputs
    for layer in find_layers(vit):
        assert statistics.inputs[layer.input_name].second.shape == (layer.in_features,) * 2
        assert statistics.gradients[layer.name].second.shape == (layer.out_features,) * 2
    assert statistics.settings["prunable_inputs"] == ["vit.layers.0.mlp.fc2", "vit.layers.1.mlp.fc2"]


@pytest.mark.parametrize(
    ("settings", "blocks"),
    [({"mlp": "auto"}, [0, 1]), ({"mlp": "prune"}, [0, 1]), ({"mlp": "low_rank"}, []), ({"mlp": "none"}, [])],
)
def test_the_prunable_inputs_are_recorded(
    vit: PreTrainedModel, pixels: Tensor, settings: dict[str, Any], blocks: list[int]
) -> None:
    statistics = run(vit, pixels[:16], config(metric="weight", **settings))
    assert statistics.settings["prunable_inputs"] == [f"vit.layers.{block}.mlp.fc2" for block in blocks]


@pytest.mark.parametrize("skipped", ["layers.0.mlp.fc1", "layers.0.mlp.fc2"])
def test_hidden_features_of_which_a_side_is_skipped_are_not_prunable(
    vit: PreTrainedModel, pixels: Tensor, skipped: str
) -> None:
    layers = find_layers(vit, skip_modules=[skipped])
    statistics = calibrate(Subject.alone(vit), layers, open_images(pixels[:16]), quiet(config()))
    assert statistics.settings["prunable_inputs"] == ["vit.layers.1.mlp.fc2"]
    for layer in layers:
        if layer.block == 0 and layer.role.startswith("fc"):
            assert statistics.gradients[layer.name].second.shape == (32, 32)
            assert (layer.name in statistics.outputs) == (layer.role == "fc2")


def test_what_stands_at_padding_does_not_matter() -> None:
    head = next(head for head in HEADS if head.name == "Siglip2VisionModel")
    model, pixels = head.dense(), head.pixels()
    mask = torch.ones(len(pixels), 16, dtype=torch.int64)
    mask[:, 12:] = 0
    shapes = torch.tensor([[3, 4]]).expand(len(pixels), 2)

    def collected(padding: float) -> Statistics:
        padded = torch.where(mask.bool()[..., None], pixels, padding)
        batch = {"pixel_values": padded, "pixel_attention_mask": mask, "spatial_shapes": shapes}
        return run(model, open_images([batch]), config())

    statistics, other = collected(0.0), collected(7.0)
    assert set(statistics.tokens.values()) == {12 * len(pixels)}
    for name, moment in statistics.inputs.items():
        assert relative(moment.covariance, other.inputs[name].covariance) < 1e-5, name
    for name, gradient in statistics.gradients.items():
        assert relative(gradient.moment, other.gradients[name].moment) < 1e-4, name


def test_the_shape_of_an_image_is_noted(vit: PreTrainedModel, pixels: Tensor, tmp_path: Path) -> None:
    statistics = run(vit, pixels[:32], config())
    assert statistics.image_shape == (3, 16, 16)
    statistics.save(tmp_path / "s")
    assert Statistics.load(tmp_path / "s").image_shape == (3, 16, 16)
    head = next(head for head in HEADS if head.name == "Siglip2VisionModel")
    assert run(head.dense(), head.pixels(), config()).image_shape == (16, 48)


def test_the_shape_is_that_of_the_first_image_that_can_be_read(
    vit: PreTrainedModel, pictures: list[Any], processor: ViTImageProcessorPil
) -> None:
    images = ImageSource([*([b"broken"] * 16), *pictures], None, "pictures")
    with pytest.warns(DataWarning, match="16 of 64 images of pictures cannot be read.*image 0 of pictures"):
        assert run(vit, images, config(), processor=processor).image_shape == (3, 16, 16)
