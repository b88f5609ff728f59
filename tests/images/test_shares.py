"""No image is on both sides of a division."""

import pytest
import torch

from hf_vitcompress.config import CompressionConfig
from hf_vitcompress.images.images import ImageSource
from hf_vitcompress.images.shares import calibration_shares, validation_shares


def source(count: int) -> ImageSource:
    return ImageSource([torch.full((3, 2, 2), float(i)) for i in range(count)], list(range(count)), "images")


@pytest.mark.parametrize(
    ("count", "num_images", "measuring", "expected"),
    [
        (2000, 1024, 128, (896, 128)),
        (2000, None, 128, (1872, 128)),
        (200, 1024, 128, (150, 50)),
        (2000, 100, 128, (75, 25)),
        (2000, 1024, 0, (1024, 0)),
        (3, 1024, 128, (3, 0)),
        (1, 1024, 128, (1, 0)),
    ],
)
def test_measuring_images_are_others_than_those_of_the_statistics(
    count: int, num_images: int | None, measuring: int, expected: tuple[int, int]
) -> None:
    config = CompressionConfig(num_images=num_images, measuring_images=measuring)
    shares = calibration_shares(source(count), config)
    assert tuple(map(len, shares)) == expected
    seen = [label for share in shares for label in share.labels or ()]
    assert len(set(seen)) == len(seen)
    assert sorted(seen) == sorted(source(count).sample(num_images, config.seed).labels or ())


@pytest.mark.parametrize(("count", "expected"), [(2000, (512, 1488)), (97, (48, 49)), (1, (0, 1))])
def test_validation_takes_half_of_the_images_at_most(count: int, expected: tuple[int, int]) -> None:
    shares = validation_shares(source(count), CompressionConfig(max_accuracy_drop=0.01))
    assert tuple(map(len, shares)) == expected
    assert sorted(label for share in shares for label in share.labels or ()) == list(range(count))
