"""Mirroring and shifting, index by index."""

import pytest
import torch
from torch import Tensor

from hf_vitcompress.images.augmentation import augment


def numbered(count: int, height: int, width: int) -> Tensor:
    """Images (count, 2, height, width) in which no two values are alike."""
    return torch.arange(count * 2 * height * width).reshape(count, 2, height, width).float()


def draws(*rows: tuple[float, float, float]) -> Tensor:
    return torch.tensor(rows)


def reflected(index: int, size: int) -> int:
    """Where a mirror at the edge pixels shows position `index`."""
    index = abs(index)
    return 2 * (size - 1) - index if index >= size else index


def shifted(image: Tensor, down: int, right: int) -> Tensor:
    """`image` (channels, height, width) as seen from a window moved by so many pixels, pixel by pixel."""
    result = torch.empty_like(image)
    _, height, width = image.shape
    for y in range(height):
        for x in range(width):
            result[:, y, x] = image[:, reflected(y + down, height), reflected(x + right, width)]
    return result


def test_nothing_changes_when_all_is_off() -> None:
    images = numbered(3, 4, 6)
    assert torch.equal(augment(images, torch.rand(3, 3), mirror=False, crop=0.0), images)


def test_images_with_a_first_draw_below_a_half_are_mirrored_left_and_right() -> None:
    images = numbered(4, 3, 5)
    result = augment(images, draws((0.0, 0, 0), (0.5, 0, 0), (0.49, 0, 0), (0.99, 0, 0)), mirror=True, crop=0.0)
    assert torch.equal(result[0], images[0].flip(-1))
    assert torch.equal(result[1], images[1])
    assert torch.equal(result[2], images[2].flip(-1))
    assert torch.equal(result[3], images[3])


@pytest.mark.parametrize(
    ("crop", "pad_y", "pad_x"), [(0.25, 1, 2), (0.5, 2, 4), (0.1, 0, 1)], ids=["quarter", "half", "wide side only"]
)
def test_every_shift_up_to_the_share_occurs_and_the_edge_is_reflected(crop: float, pad_y: int, pad_x: int) -> None:
    image = numbered(1, 4, 8)
    tops, lefts = 2 * pad_y + 1, 2 * pad_x + 1
    for top in range(tops):
        for left in range(lefts):
            drawn = draws((0.9, (top + 0.5) / tops, (left + 0.5) / lefts))
            result = augment(image, drawn, mirror=True, crop=crop)
            assert torch.equal(result[0], shifted(image[0], top - pad_y, left - pad_x))


def test_the_extreme_draws_are_the_extreme_shifts() -> None:
    images = numbered(2, 8, 4)
    almost_one = float(torch.nextafter(torch.tensor(1.0), torch.tensor(0.0)))
    result = augment(images, draws((0.9, 0.0, 0.0), (0.9, almost_one, almost_one)), mirror=False, crop=0.25)
    assert torch.equal(result[0], shifted(images[0], -2, -1))
    assert torch.equal(result[1], shifted(images[1], 2, 1))


def test_mirroring_comes_before_shifting() -> None:
    image = numbered(1, 4, 4)
    result = augment(image, draws((0.1, 0.0, 0.0)), mirror=True, crop=0.25)
    assert torch.equal(result[0], shifted(image[0].flip(-1), -1, -1))


def test_each_image_has_its_own_draws() -> None:
    images, drawn = numbered(6, 8, 8), torch.rand(6, 3, generator=torch.Generator().manual_seed(0))
    together = augment(images, drawn, mirror=True, crop=0.25)
    for i in range(6):
        assert torch.equal(augment(images[i : i + 1], drawn[i : i + 1], mirror=True, crop=0.25)[0], together[i])
    assert len({tuple((together[i] - images[i]).flatten().tolist()) for i in range(6)}) > 1


def test_the_same_draws_make_the_same_images() -> None:
    images, drawn = numbered(6, 8, 8), torch.rand(6, 3)
    first, second = (augment(images, drawn, mirror=True, crop=0.3) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", [(8, 8), (4, 12), (12, 4), (1, 1), (2, 3)])
def test_shape_dtype_and_the_given_images_stay(dtype: torch.dtype, size: tuple[int, int]) -> None:
    images = torch.randn(5, 3, *size).to(dtype)
    before = images.clone()
    result = augment(images, torch.rand(5, 3), mirror=True, crop=0.5)
    assert result.shape == images.shape
    assert result.dtype == dtype
    assert torch.equal(images, before)
    assert set(result.flatten().tolist()) <= set(images.flatten().tolist())


def test_what_is_no_image_stays_as_it_is() -> None:
    patches = torch.arange(2 * 6 * 4.0).reshape(2, 6, 4)
    assert torch.equal(augment(patches, torch.zeros(2, 3), mirror=True, crop=0.5), patches)
