"""Pictures in arrays and tensors, and what of them is a ready image."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import ViTImageProcessorPil

from hf_vitcompress.errors import DataError
from hf_vitcompress.images.decoding import decode_image
from hf_vitcompress.images.digest import facts_of_images
from hf_vitcompress.images.images import ImageSource
from hf_vitcompress.images.sources import open_images

COLOURS = np.random.default_rng(0).integers(0, 256, (9, 12, 4), dtype=np.uint8)
"""(height, width, channels)."""


def picture(channels: int) -> Image.Image:
    return Image.fromarray(COLOURS[..., 0] if channels == 1 else COLOURS[..., :channels])


FORMS: dict[str, tuple[int, np.ndarray]] = {
    "(height, width)": (1, COLOURS[..., 0]),
    "(height, width, 1)": (1, COLOURS[..., :1]),
    "(height, width, 3)": (3, COLOURS[..., :3]),
    "(height, width, 4)": (4, COLOURS),
    "(1, height, width)": (1, COLOURS[None, ..., 0]),
    "(3, height, width)": (3, COLOURS[..., :3].transpose(2, 0, 1)),
    "(4, height, width)": (4, COLOURS.transpose(2, 0, 1)),
    "mirrored": (3, np.ascontiguousarray(COLOURS[:, ::-1, :3])[:, ::-1]),
}
KINDS = [np.uint8, np.int64, np.int32, np.float32, np.float64, np.float16]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_an_array_is_the_picture_that_it_holds(form: str, kind: type) -> None:
    channels, values = FORMS[form]
    if np.issubdtype(kind, np.floating) and values.ndim == 3 and values.shape[0] <= 4:
        return  # floats in this order are ready images
    expected = np.array(decode_image(picture(channels)))
    assert np.array_equal(np.array(decode_image(values.astype(kind))), expected)
    if values.ndim == 3 or np.issubdtype(kind, np.integer):
        assert np.array_equal(np.array(decode_image(torch.from_numpy(values.astype(kind).copy()))), expected)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_floats_of_0_to_1_are_scaled(kind: type) -> None:
    decoded = decode_image((COLOURS[..., :3] / 255).astype(kind))
    assert np.array_equal(np.array(decoded), COLOURS[..., :3])


@pytest.mark.parametrize(
    "values", [torch.zeros(3, 8, 6), np.zeros((3, 8, 6)), torch.zeros(16, 48), torch.zeros(6, 8, 8)]
)
def test_floats_with_their_channels_first_are_ready(values: Any) -> None:
    assert torch.equal(decode_image(values), torch.as_tensor(values))


def test_arrays_are_batched_as_the_pictures_are(processor: ViTImageProcessorPil) -> None:
    arrays = [COLOURS[..., :3], COLOURS[..., 0], COLOURS]
    (ours,) = ImageSource(arrays, None, "x").batches(processor, 3)
    (theirs,) = open_images([picture(channels) for channels in (3, 1, 4)]).batches(processor, 3)
    assert torch.equal(ours.pixel_values, theirs.pixel_values)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_tensors_of_integers_are_pictures(channels: int, dtype: torch.dtype, processor: ViTImageProcessorPil) -> None:
    values = np.random.default_rng(0).integers(0, 256, (channels, 8, 6), dtype=np.uint8)
    rows = values.transpose(1, 2, 0)
    picture = Image.fromarray(rows[:, :, 0] if channels == 1 else rows)
    (ours,) = open_images([torch.from_numpy(values).to(dtype)]).batches(processor, 1)
    (theirs,) = open_images([picture]).batches(processor, 1)
    assert torch.equal(ours.pixel_values, theirs.pixel_values)


def test_tensors_of_integers_need_a_processor() -> None:
    with pytest.raises(DataError, match="need an image processor"):
        list(open_images(torch.zeros(2, 3, 16, 16, dtype=torch.uint8)).batches(None, 2))


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (torch.zeros(3, 4, 4, dtype=torch.bool), "tensor of torch.bool"),
        (torch.zeros(5, 4, 7, dtype=torch.uint8), r"\(5, 4, 7\)"),
        (torch.full((3, 4, 4), 1000), "from 1000 to 1000"),
        (torch.full((3, 4, 4), -1), "from -1 to -1"),
        (np.full((9, 9, 3), -1.5), "array of float64 with values from -1.5 to -1.5.*channels, height, width"),
        (np.full((9, 9, 3), np.nan), "from nan to nan"),
        (np.array(["a"]), "array of <U1"),
        (torch.zeros(2, 3, 4, 4), r"shape \(2, 3, 4, 4\).*several images of one sample"),
        (7, "type int"),
    ],
)
def test_what_is_no_image_is_refused_and_not_left_out(image: Any, said: str, processor: ViTImageProcessorPil) -> None:
    with pytest.raises(DataError, match=said):
        list(ImageSource([image, image], None, "x").batches(processor, 2))


@pytest.mark.parametrize("around", [1, 2])
def test_an_image_in_a_batch_of_one_is_an_image(around: int) -> None:
    """As processors return it."""
    pixels = torch.randn(8, *[1] * around, 3, 16, 16)
    for given in (pixels, list(pixels), [(pixels, torch.arange(8))]):
        (batch,) = open_images(given).batches(None, 8)
        assert torch.equal(batch.pixel_values, pixels.reshape(8, 3, 16, 16))


def facts(image: np.ndarray | Tensor) -> dict[str, str]:
    return facts_of_images(ImageSource([image], None, "x"))


def test_arrays_are_told_from_each_other_by_their_content() -> None:
    assert facts(COLOURS) == facts(COLOURS.copy())
    assert facts(COLOURS) != facts(COLOURS[::-1])


def test_pictures_in_tensors_are_images_to_process() -> None:
    assert facts(torch.zeros(3, 4, 4, dtype=torch.uint8))["form"] == facts(COLOURS)["form"] == "images to process"
    assert facts(torch.zeros(3, 4, 4))["form"] == facts(np.zeros((3, 4, 4)))["form"] == "ready tensors"
