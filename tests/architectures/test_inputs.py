"""What a model is given beside the pixels."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    Siglip2ImageProcessorPil,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from hf_vitcompress.architectures.inputs import INTERPOLATE, example_inputs, image_channels, image_shape, model_inputs
from hf_vitcompress.architectures.outputs import divergence, outputs_of
from hf_vitcompress.architectures.subject import Subject
from hf_vitcompress.errors import UnsupportedModelError
from hf_vitcompress.evaluation.costs import count_macs
from hf_vitcompress.images.sources import open_images
from support.models import TINY, seeded, tiny_config
from support.zoo import HEADS, Head


def head_named(name: str) -> Head:
    return next(head for head in HEADS if head.name == name)


def pictures(*sizes: tuple[int, int]) -> list[Image.Image]:
    """Random images of these (width, height)."""
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in sizes]


def test_pixels_alone_are_passed_in_the_dtype_of_the_model(vit: Any, pixels: Tensor) -> None:
    inputs = model_inputs(vit.to(torch.bfloat16), pixels[:2])
    assert set(inputs) == {"pixel_values"}
    assert torch.equal(inputs["pixel_values"], pixels[:2].to(torch.bfloat16))


def test_only_what_the_model_takes_is_passed(vit: Any, pixels: Tensor) -> None:
    extra = {"pixel_mask": torch.ones(2, 16, 16), "labels": torch.zeros(2), "attention_mask": torch.ones(2, 17)}
    assert set(model_inputs(vit, pixels[:2], extra)) == {"pixel_values", "attention_mask"}
    yolos = head_named("YolosForObjectDetection")
    assert set(model_inputs(yolos.dense(), yolos.pixels(2), extra)) == {"pixel_values"}


# Models that mask patches at random


@pytest.mark.parametrize("name", ["ViTMAEModel", "ViTMAEForPreTraining"])
def test_the_position_in_the_batch_decides_what_is_masked(name: str) -> None:
    head = head_named(name)
    model, pixels = head.dense(), head.pixels(6)
    noise = model_inputs(model, pixels)["noise"]
    assert noise.shape == (6, 16)
    assert len({tuple(row.argsort().tolist()) for row in noise}) == 6
    torch.manual_seed(123)
    assert torch.equal(model_inputs(head.dense(seed=4), pixels[:3])["noise"], noise[:3])


def test_drawing_it_leaves_the_random_state_alone() -> None:
    head = head_named("ViTMAEModel")
    state = torch.get_rng_state()
    model, pixels = head.dense(), head.pixels(2)
    state = torch.get_rng_state()
    model_inputs(model, pixels)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["ViTMAEModel", "ViTMAEForPreTraining"])
def test_a_model_that_masks_agrees_with_itself(name: str) -> None:
    head = head_named(name)
    model, pixels = head.dense(), head.pixels(4)
    with torch.no_grad():
        assert divergence(outputs_of(Subject.alone(model), pixels), outputs_of(Subject.alone(model), pixels)).max() == 0


def test_noise_that_is_given_is_used() -> None:
    head = head_named("ViTMAEModel")
    noise = torch.rand(2, 16)
    assert torch.equal(model_inputs(head.dense(), head.pixels(2), {"noise": noise})["noise"], noise)


# Images that are cut into patches already


@pytest.mark.parametrize(("patches", "grid"), [(16, [4, 4]), (12, [3, 4]), (7, [1, 7])])
def test_bare_patches_fill_the_squarest_grid(patches: int, grid: list[int]) -> None:
    head = head_named("Siglip2VisionModel")
    inputs = model_inputs(head.dense(), head.pixels(2)[:, :patches])
    assert inputs["spatial_shapes"].tolist() == [grid, grid]
    assert inputs["pixel_attention_mask"].shape == (2, patches)
    assert inputs["pixel_attention_mask"].all()


@pytest.mark.parametrize("name", ["Siglip2VisionModel", "Siglip2ForImageClassification"])
def test_mask_and_grid_come_from_the_image_processor(name: str) -> None:
    head = head_named(name)
    model = head.dense()
    processor = Siglip2ImageProcessorPil(patch_size=4, max_num_patches=16)
    images = pictures((16, 16), (24, 8), (8, 32))
    (batch,) = open_images(images).batches(processor, 3)
    expected = processor(images=images, return_tensors="pt")
    assert batch.inputs.keys() == {"pixel_attention_mask", "spatial_shapes"}
    inputs = model_inputs(model, batch.pixel_values, batch.inputs)
    assert all(torch.equal(inputs[name], expected[name]) for name in inputs)
    with torch.no_grad():
        result = model(**expected)
        terms = outputs_of(Subject.alone(model), batch.pixel_values, batch.inputs)
    first = result.logits if "logits" in result else result.pooler_output
    assert torch.equal(terms[-1].values.flatten(1), first)


# Images of another size than the config's


def interpolates(name: str) -> bool:
    """Whether the model is told to, where it runs on images twice as high as its config says."""
    head = head_named(name)
    model, pixels = head.dense(), torch.cat([head.pixels(2)] * 2, 2)
    assert INTERPOLATE not in model_inputs(model, head.pixels(2))
    inputs = model_inputs(model, pixels)
    with torch.no_grad():
        model(**inputs)
    assert count_macs(model, pixels.shape[1:]) > count_macs(model)
    return inputs.get(INTERPOLATE, False)


@pytest.mark.parametrize(
    "name", ["ViTForImageClassification", "DeiTModel", "ViTMAEForPreTraining", "SiglipVisionModel", "SwinModel"]
)
def test_position_embeddings_are_interpolated_for_images_of_another_size(name: str) -> None:
    assert interpolates(name)


@pytest.mark.parametrize("name", ["CLIPForImageClassification", "BeitBackbone"])
def test_a_model_around_one_that_interpolates_passes_it_on(name: str) -> None:
    assert interpolates(name)


@pytest.mark.parametrize("name", ["Dinov2Model", "YolosModel", "DepthAnythingForDepthEstimation"])
def test_models_that_take_any_size_are_told_nothing(name: str) -> None:
    assert not interpolates(name)


def test_channels_are_those_of_the_config() -> None:
    assert image_channels(seeded(ViTModel, tiny_config(num_channels=4))) == 4
    assert image_channels(head_named("CLIPForImageClassification").dense()) == 3


# Examples


@pytest.mark.parametrize("head", HEADS, ids=str)
def test_every_model_runs_on_its_example(head: Head) -> None:
    model = head.dense()
    inputs = example_inputs(model, 2)
    assert inputs["pixel_values"].shape == (2, *head.images)
    assert torch.equal(inputs["pixel_values"], example_inputs(model, 2)["pixel_values"])
    with torch.no_grad():
        model(**inputs)


@pytest.mark.parametrize(
    ("size", "shape"),
    [
        (16, (3, 16, 16)),
        ([16, 32], (3, 16, 32)),
        ((8, 16), (3, 8, 16)),
        ({"height": 8, "width": 16}, (3, 8, 16)),
    ],
)
def test_the_image_shape_is_that_of_the_config(size: Any, shape: tuple[int, ...]) -> None:
    model = seeded(ViTModel, tiny_config())
    model.config.__dict__["image_size"] = size
    assert image_shape(model) == shape


def test_the_image_shape_may_be_that_of_a_part() -> None:
    model = head_named("CLIPForImageClassification").dense()
    assert isinstance(model.config.vision_config, CLIPVisionConfig)
    assert image_shape(model) == (3, 16, 16)


def test_a_config_without_a_size_is_named() -> None:
    model = ViTForImageClassification(ViTConfig(**TINY))
    model.config.__dict__["image_size"] = None
    with pytest.raises(UnsupportedModelError, match="ViTForImageClassification does not say"):
        image_shape(model)


@pytest.mark.parametrize(("name", "shape"), [("ViTMAEModel", (3, 16, 24)), ("Siglip2VisionModel", (20, 48))])
def test_an_example_may_have_another_shape(name: str, shape: tuple[int, ...]) -> None:
    inputs = example_inputs(head_named(name).dense(), 2, shape)
    assert inputs["pixel_values"].shape == (2, *shape)
    if name == "ViTMAEModel":
        assert inputs["noise"].shape == (2, 24)
    else:
        assert inputs["pixel_attention_mask"].shape == (2, 20)
