"""Ready batches in every form, what is not one, and images that are not what the processor makes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import ViTImageProcessorPil

from hf_vitcompress.errors import DataError
from hf_vitcompress.images.sources import open_images

LABELS = torch.arange(8) % 5
FORMS: dict[str, Callable[[Tensor], Any]] = {
    "a pair": lambda x: (x, LABELS),
    "a pair in a list": lambda x: [x, LABELS],
    "a pair with a list": lambda x: (x, LABELS.tolist()),
    "pairs": lambda x: [(x[:4], LABELS[:4]), (x[4:], LABELS[4:])],
    "lists": lambda x: [[x[:4], LABELS[:4]], [x[4:], LABELS[4:]]],
    "mappings": lambda x: [{"pixel_values": x, "labels": LABELS}],
    "a generator": lambda x: ((x[i : i + 2], LABELS[i : i + 2]) for i in range(0, 8, 2)),
}


@pytest.mark.parametrize("form", FORMS)
def test_batches_come_in_many_forms(form: str, pixels: Tensor) -> None:
    source = open_images(FORMS[form](pixels[:8]))
    (batch,) = source.batches(None, 8)
    assert torch.equal(batch.pixel_values, pixels[:8])
    assert source.labels == LABELS.tolist()


def test_a_list_of_batches_is_no_list_of_images(pixels: Tensor) -> None:
    (batch,) = open_images([pixels[:4], pixels[4:7]]).batches(None, 8)
    assert torch.equal(batch.pixel_values, pixels[:7])


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        (lambda x: (x[0], 3), r"shape \(3, 16, 16\) and a int as its labels.*DataLoader"),
        (lambda x: (x, LABELS[:5]), r"shape \(8, 3, 16, 16\) and a tensor of shape \(5,\) as its labels"),
        (lambda x: (x, torch.tensor(3)), r"a tensor of shape \(\) as its labels"),
        (lambda x: {"images": x}, "A batch is a mapping with images"),
        (lambda _: (Image.new("RGB", (4, 4)), 3), "A batch is a tuple of Image, int"),
        (lambda _: (torch.zeros(8, 4), LABELS), "A batch is a tuple of Tensor, Tensor"),
        (lambda _: [], "A batch is a list of nothing"),
        (lambda x: (x, [object()] * 8), "labels of the DataLoader are of type object. Give indices"),
    ],
)
def test_what_is_no_batch_is_refused(batch: Callable[[Tensor], Any], said: str, pixels: Tensor) -> None:
    with pytest.raises(DataError, match=said):
        open_images([batch(pixels[:8])])


def test_ready_images_that_were_not_normalized_are_refused(pixels: Tensor, processor: ViTImageProcessorPil) -> None:
    with pytest.raises(DataError, match=r"reach 254.*ViTImageProcessorPil makes reach 1: they are not normalized"):
        list(open_images(torch.full((2, 3, 16, 16), 254.0)).batches(processor, 2))
    list(open_images(5 * pixels.clamp(-1, 1)).batches(processor, 96))
    plain = ViTImageProcessorPil(do_normalize=False)
    list(open_images(torch.full((2, 3, 16, 16), 254.0)).batches(plain, 2))


def test_pictures_and_ready_images_do_not_mix(pixels: Tensor, six: list[Image.Image], processor: Any) -> None:
    with pytest.raises(DataError, match="pictures and ready `pixel_values`"):
        list(open_images([*pixels[:2], *six]).batches(processor, 8))


def test_a_processor_for_one_channel_says_so(six: list[Image.Image]) -> None:
    grey = ViTImageProcessorPil(image_mean=[0.5], image_std=[0.5])
    with pytest.raises(DataError, match=r"made for images of 1 channel \(image_mean=\[0\.5\]\)"):
        list(open_images(six).batches(grey, 2))


def test_whatever_a_processor_raises_is_one_sentence(six: list[Image.Image]) -> None:
    def processor(images: list[Image.Image], return_tensors: str) -> None:
        raise KeyError("size")

    with pytest.raises(DataError, match=r"function makes no batch of these images \('size'\)"):
        list(open_images(six).batches(processor, 2))
