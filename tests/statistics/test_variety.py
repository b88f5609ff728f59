"""Images that are alike: of one colour, repeated, or nearly so; and that others are not taken for such."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel

from hf_vitcompress.architectures.layers import find_layers
from hf_vitcompress.errors import CalibrationError, CalibrationWarning
from hf_vitcompress.images.sources import open_images
from hf_vitcompress.statistics.statistics import Statistics
from hf_vitcompress.statistics.variety import directions
from support.calibrations import config, interrupted, run
from support.models import DIGITS
from support.zoo import HEADS


@pytest.fixture(scope="module")
def digits() -> tuple[PreTrainedModel, Any, list[Image.Image]]:
    """The model, its processor, and images of what it knows."""
    images = open_images(DIGITS / "calibration.parquet")
    model = AutoModelForImageClassification.from_pretrained(DIGITS / "model")
    processor = AutoImageProcessor.from_pretrained(DIGITS / "model", backend="pil")
    return model, processor, [images.decoded(i) for i in range(64)]


def calibrated(digits: tuple[PreTrainedModel, Any, list[Image.Image]], images: list[Image.Image]) -> Statistics:
    model, processor, _ = digits
    return run(model, open_images(images), config(fisher_probes=1), processor=processor)


@pytest.mark.parametrize("count", [8, 16, 64])
def test_good_images_are_not_warned_of(digits: tuple[PreTrainedModel, Any, list[Image.Image]], count: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        statistics = calibrated(digits, digits[2][:count])
    varying, size = directions(statistics, find_layers(digits[0]))
    assert varying > size / 2
    assert statistics.settings["variety"]["one_colour"] == statistics.settings["variety"]["repeated"] == 0


@pytest.mark.parametrize("colours", [["black"] * 64, ["white"] * 20, [f"#{i:02x}{2 * i:02x}00" for i in range(64)]])
def test_images_of_one_colour_are_refused(
    digits: tuple[PreTrainedModel, Any, list[Image.Image]], colours: list[str]
) -> None:
    count = len(colours)
    with pytest.raises(CalibrationError, match=rf"alike: {count} of {count} are of one colour \(image 0 of the list"):
        calibrated(digits, [Image.new("RGB", (8, 8), colour) for colour in colours])


def test_one_image_many_times_is_refused(digits: tuple[PreTrainedModel, Any, list[Image.Image]]) -> None:
    with pytest.raises(CalibrationError, match=r"all alike: 19 of 20 repeat another one \(image 1 of the list"):
        calibrated(digits, [digits[2][0]] * 20)


@pytest.mark.parametrize(
    ("black", "repeated", "said"),
    [
        (0, 8, r"8 of 40 repeat another one \(image 32 of the list of images\)\."),
        (8, 0, r"8 of 40 are of one colour \(image 0 of the list of images\)\."),
        (4, 4, r"4 of 40 are of one colour \(image 0 of.*\) and 4 of 40 repeat another one \(image 36 of"),
    ],
)
def test_some_that_add_nothing_are_named(
    digits: tuple[PreTrainedModel, Any, list[Image.Image]], black: int, repeated: int, said: str
) -> None:
    good = digits[2][:32]
    images = [*[Image.new("RGB", (8, 8))] * black, *good, *good[:repeated]]
    with pytest.warns(CalibrationWarning, match=said):
        calibrated(digits, images)


def test_a_few_of_many_are_not_worth_a_word(digits: tuple[PreTrainedModel, Any, list[Image.Image]]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calibrated(digits, [Image.new("RGB", (8, 8)), *digits[2][:30], digits[2][0]])


def test_images_that_are_nearly_the_same_are_warned_of(digits: tuple[PreTrainedModel, Any, list[Image.Image]]) -> None:
    """As the frames of a video are."""
    random, one = np.random.default_rng(0), np.asarray(digits[2][0]).astype(int)
    frames = [
        Image.fromarray(np.clip(one + random.integers(-2, 3, one.shape), 0, 255).astype(np.uint8)) for _ in range(20)
    ]
    with pytest.warns(CalibrationWarning, match="much alike: what they give to the layers varies in 16 of 64 dir"):
        calibrated(digits, frames)


def test_one_image_is_warned_of_by_its_tokens_alone(digits: tuple[PreTrainedModel, Any, list[Image.Image]]) -> None:
    with pytest.warns(CalibrationWarning, match="17 calibration tokens reached") as caught:
        calibrated(digits, digits[2][:1])
    assert len(caught) == 1


@pytest.mark.usefixtures("eager_checkpoints")
def test_what_was_counted_before_an_interruption_counts(vit: PreTrainedModel, pixels: Tensor, tmp_path: Path) -> None:
    alike, settings, checkpoint = pixels.clone(), config(batch_size=8), tmp_path / "c"
    alike[:16] = 0.25
    interrupted(vit, alike, 45, settings, checkpoint)
    for _ in range(2):
        with pytest.warns(CalibrationWarning, match=r"16 of 96 are of one colour \(image 0 of the tensor\)"):
            run(vit, alike, settings, checkpoint)


def test_images_that_arrive_as_patches_are_looked_at(pixels: Tensor) -> None:
    head = next(head for head in HEADS if head.name == "Siglip2VisionModel")
    with pytest.raises(CalibrationError, match="are of one colour"):
        run(head.dense(), torch.full_like(head.pixels(16), 0.5), config())


def test_the_real_model_and_images(assets: Path) -> None:
    model = AutoModelForImageClassification.from_pretrained(assets / "vit-s14-cifar10", dtype=torch.float32)
    processor = AutoImageProcessor.from_pretrained(assets / "vit-s14-cifar10", backend="pil")
    images = open_images(assets / "cifar10" / "calibration.parquet")
    settings = config(metric="activation", batch_size=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(model, images.select(range(8)), settings, processor=processor)
    with pytest.raises(CalibrationError, match="7 of 8 repeat another one"):
        run(model, images.select([0] * 8), settings, processor=processor)
