"""Mirroring, index by index."""

import pytest
import torch
from torch import Tensor

from hf_vitcompress.images.augmentation import augment


def numbered(count: int, height: int, width: int) -> Tensor:
    """Images (count, 2, height, width) in which no two values are alike."""
    return torch.arange(count * 2 * height * width).reshape(count, 2, height, width).float()


def test_nothing_changes_when_it_is_off() -> None:
    images = numbered(3, 4, 6)
    assert torch.equal(augment(images, torch.zeros(3), mirror=False), images)


def test_images_with_a_draw_below_a_half_are_mirrored_left_and_right() -> None:
    images = numbered(4, 3, 5)
    result = augment(images, torch.tensor([0.0, 0.5, 0.49, 0.99]), mirror=True)
    assert torch.equal(result[0], images[0].flip(-1))
    assert torch.equal(result[1], images[1])
    assert torch.equal(result[2], images[2].flip(-1))
    assert torch.equal(result[3], images[3])


def test_each_image_has_its_own_draw() -> None:
    images, drawn = numbered(6, 8, 8), torch.rand(6, generator=torch.Generator().manual_seed(0))
    together = augment(images, drawn, mirror=True)
    for i in range(6):
        assert torch.equal(augment(images[i : i + 1], drawn[i : i + 1], mirror=True)[0], together[i])
    assert {torch.equal(result, image) for result, image in zip(together, images, strict=True)} == {True, False}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", [(8, 8), (4, 12), (12, 4), (1, 1), (2, 3)])
def test_shape_dtype_and_the_given_images_stay(dtype: torch.dtype, size: tuple[int, int]) -> None:
    images = torch.randn(5, 3, *size).to(dtype)
    before = images.clone()
    result = augment(images, torch.rand(5), mirror=True)
    assert result.shape == images.shape
    assert result.dtype == dtype
    assert torch.equal(images, before)
    assert set(result.flatten().tolist()) <= set(images.flatten().tolist())


def test_inputs_that_are_no_images_stay_as_they_are() -> None:
    patches = torch.arange(2 * 6 * 4.0).reshape(2, 6, 4)
    assert torch.equal(augment(patches, torch.zeros(2), mirror=True), patches)
