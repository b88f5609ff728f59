"""Pictures of one shape together, whatever the processor makes of them; and ready images that are not normalized."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import DPTImageProcessorPil, ViTImageProcessorPil, YolosImageProcessorPil

from hf_vitcompress.errors import DataError, DataWarning
from hf_vitcompress.images.images import ImageSource
from hf_vitcompress.images.preprocessing import by_shape

KEEPS_RATIO = DPTImageProcessorPil(size={"height": 16, "width": 16}, keep_aspect_ratio=True, ensure_multiple_of=4)


def pictures(*sizes: tuple[int, int]) -> list[Image.Image]:
    """Random images of these (width, height)."""
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in sizes]


def alone(image: Image.Image, processor: Any) -> Tensor:
    return processor(images=[image], return_tensors="pt")["pixel_values"][0]


def test_images_of_one_shape_are_one_part(processor: ViTImageProcessorPil) -> None:
    (part,) = by_shape(pictures((20, 12), (8, 9)), processor)
    assert (part.places, tuple(part.pixel_values.shape), part.inputs) == ([0, 1], (2, 3, 16, 16), {})


def test_images_whose_shapes_differ_come_in_parts_of_one_shape() -> None:
    images = pictures((64, 16), (16, 16), (16, 64), (128, 32), (20, 20))
    parts = by_shape(images, KEEPS_RATIO)
    assert [part.places for part in parts] == [[0, 3], [1, 4], [2]]
    for part in parts:
        for place, pixel_values in zip(part.places, part.pixel_values, strict=True):
            assert torch.equal(pixel_values, alone(images[place], KEEPS_RATIO))


def test_a_processor_that_pads_sees_the_whole_batch() -> None:
    processor = YolosImageProcessorPil(size={"shortest_edge": 16, "longest_edge": 32})
    (part,) = by_shape(pictures((16, 16), (32, 16)), processor)
    assert part.pixel_values.shape == (2, 3, 16, 32)
    if "pixel_mask" in part.inputs:
        assert part.inputs["pixel_mask"].shape == (2, 16, 32)


def test_what_is_said_about_each_image_stays_with_it() -> None:
    def processor(images: list[Image.Image], return_tensors: str) -> dict[str, Any]:
        widths = [image.width // 8 for image in images]
        return {"pixel_values": torch.stack([torch.zeros(3, 2, w) for w in widths]), "width": torch.tensor(widths)}

    parts = by_shape(pictures((16, 8), (24, 8), (17, 8), (16, 9)), processor)
    assert [(part.places, part.inputs["width"].tolist()) for part in parts] == [([0, 2, 3], [2, 2, 2]), ([1], [3])]


def test_ready_images_of_several_shapes_come_in_parts(pixels: Tensor) -> None:
    wide = torch.cat([pixels, pixels], 3)
    source = ImageSource([pixels[0], wide[1], pixels[2], wide[3]], [10, 11, 12, 13], "x")
    source.targets = [torch.full((2, 2 + i % 2), i) for i in range(4)]
    source.inputs = [{"mask": torch.full((1 + i % 2,), i)} for i in range(4)]
    first, second, third = source.batches(None, 3)
    assert [batch.index for batch in (first, second, third)] == [0, 0, 1]
    assert [batch.positions for batch in (first, second, third)] == [[0, 2], [1], [0]]
    assert torch.equal(first.pixel_values, pixels[[0, 2]])
    assert torch.equal(second.pixel_values, wide[[1]])
    assert first.labels.tolist() == [10, 12]
    assert first.inputs["mask"].tolist() == [[0], [2]]
    assert third.targets.unique().tolist() == [3]


def test_an_unreadable_image_moves_no_position() -> None:
    source = ImageSource([b"", *pictures((64, 16), (16, 16), (64, 16))], None, "x")
    assert [batch.positions for batch in source.batches(KEEPS_RATIO, 4)] == [[1, 3], [2]]
    assert (source.tally.good, list(source.tally.bad)) == ({1, 2, 3}, [0])


@pytest.mark.parametrize("sizes", [[(16, 16)], [(16, 16), (8, 8)]])
def test_a_processor_that_fails_is_named_with_its_reason(sizes: list[tuple[int, int]]) -> None:
    def processor(images: list[Image.Image], return_tensors: str) -> None:
        raise KeyError("size")

    with pytest.raises(DataError, match=r"function makes no batch of these images \('size'\)"):
        by_shape(pictures(*sizes), processor)


@pytest.mark.parametrize("channels", [1, 4])
def test_a_processor_for_other_channels_is_named_with_its_mean(channels: int, pictures: list[Image.Image]) -> None:
    other = ViTImageProcessorPil(image_mean=[0.5] * channels, image_std=[0.5] * channels)
    with pytest.raises(DataError, match=rf"images of {channels} channels? \(image_mean=\[0\.5.*num_channels"):
        by_shape(pictures[:2], other)


# Ready images that are not normalized


@pytest.fixture
def unit() -> Tensor:
    """As `ToTensor` of torchvision makes them."""
    return torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_values_of_0_to_1_are_told_where_the_processor_makes_others(
    unit: Tensor, processor: ViTImageProcessorPil
) -> None:
    with pytest.warns(DataWarning, match=r"between 0 and 1, and those that ViTImage.* makes between -1 and 1"):
        by_shape(list(unit), processor)


def test_values_of_0_to_1_are_right_where_the_processor_makes_such(unit: Tensor) -> None:
    by_shape(list(unit), ViTImageProcessorPil(do_normalize=False))
    by_shape(list(unit), ViTImageProcessorPil(image_mean=[0.0] * 3, image_std=[1.0] * 3))
    by_shape(list(unit), None)


def test_a_few_bright_images_are_no_reason_for_a_word(unit: Tensor, processor: ViTImageProcessorPil) -> None:
    by_shape(list(unit[:2]), processor)


def test_values_of_0_to_255_are_told_without_a_processor(unit: Tensor) -> None:
    with pytest.warns(DataWarning, match="nowhere negative and reach more than 10"):
        by_shape(list(255 * unit), None)
    by_shape(list(255 * unit - 100), None)


def test_values_of_0_to_255_are_refused_where_the_processor_makes_others(
    unit: Tensor, processor: ViTImageProcessorPil
) -> None:
    with pytest.raises(DataError, match=r"makes reach 1: they are not normalized"):
        by_shape(list(255 * unit), processor)
    with pytest.raises(DataError, match=r"they are not normalized"):
        by_shape(list(255 * unit), ViTImageProcessorPil(image_mean=0.5, image_std=0.5))
