"""Image processors make the pixels that timm's transforms make."""

from typing import Any

import numpy
import pytest
import torch
import transformers
from PIL import Image

from hf_vitcompress.conversion.processing import data_config_of, processing_of
from support.models import tiny_config

timm = pytest.importorskip("timm", reason="timm is not installed here; `make test-torchvision` has it")

DATA: dict[str, Any] = {
    "input_size": (3, 32, 32),
    "mean": (0.5, 0.4, 0.3),
    "std": (0.2, 0.3, 0.4),
    "interpolation": "bicubic",
    "crop_pct": 0.9,
    "crop_mode": "center",
}


def photograph(width: int, height: int) -> Image.Image:
    """Smooth, with edges."""
    y, x = numpy.mgrid[0:height, 0:width]
    channels = [128 + 100 * numpy.sin(x / 9), 128 + 90 * numpy.cos(y / 7 + x / 20), 255.0 * ((x // 11 + y // 8) % 2)]
    return Image.fromarray(numpy.stack(channels, axis=-1).astype(numpy.uint8))


def pixels(data: dict[str, Any], image: Image.Image, backend: str = "pil") -> tuple[torch.Tensor, torch.Tensor]:
    """Those of the image processor and of timm's transform, in steps of a picture's 256 values."""
    processor = processing_of(data, 3, data["input_size"][1:]).processor
    kind = getattr(transformers, type(processor).__name__ + ("Pil" if backend == "pil" else ""))
    ours = kind.from_dict(processor.to_dict())(image, return_tensors="pt").pixel_values[0]
    theirs = timm.data.create_transform(**data, is_training=False)(image)
    scale = torch.tensor(data["std"])[:, None, None] * 255
    return ours * scale, theirs * scale


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("crop", [0.875, 0.9, 1.0])
@pytest.mark.parametrize("mode", ["center", "squash"])
def test_pixels_are_those_of_timm(mode: str, crop: float, interpolation: str) -> None:
    data = {**DATA, "crop_mode": mode, "crop_pct": crop, "interpolation": interpolation, "input_size": (3, 40, 40)}
    image = photograph(90, 90) if mode == "center" else photograph(90, 61)
    ours, theirs = pixels(data, image)
    # 40 / 0.875 leaves a margin of 5 pixels, 40 / 0.9 one of 4.
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)
    ours, theirs = pixels(data, image, "torchvision")
    assert (ours - theirs).abs().max() <= 2.01, "torchvision resizes tensors with other roundings than Pillow"


def test_a_crop_that_is_one_pixel_off_is_said() -> None:
    """32 / 0.9 leaves a margin of 3 pixels: timm crops from the second one, transformers from the first."""
    done = processing_of(DATA, 3, (32, 32))
    assert "one pixel further up and left" in " ".join(done.remarks)
    ours, theirs = pixels(DATA, photograph(90, 90))
    torch.testing.assert_close(ours[:, 1:, 1:], theirs[:, :-1, :-1], atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"crop_mode": "border"}, "crop_mode='border'"),
        ({"input_size": (3, 32, 48)}, "not square"),
        ({"interpolation": "random"}, "timm by random"),
        ({"crop_pct": 1.0}, "may lie one pixel"),
    ],
)
def test_what_no_image_processor_does_is_said(changes: dict[str, Any], said: str) -> None:
    data = {**DATA, **changes}
    done = processing_of(data, 3, data["input_size"][1:])
    assert said in " ".join(done.remarks)
    assert done.processor(photograph(50, 40), return_tensors="pt").pixel_values.shape[1:] == data["input_size"]


def test_nothing_is_said_of_a_squash() -> None:
    assert processing_of({**DATA, "crop_mode": "squash", "crop_pct": 1.0}, 3, (32, 32)).remarks == ()


@pytest.mark.parametrize("mode", ["center", "squash"])
@pytest.mark.parametrize("crop", [0.9, 1.0])
def test_the_way_back_gives_timms_transform_again(mode: str, crop: float) -> None:
    data = {**DATA, "crop_mode": mode, "crop_pct": crop}
    processor = processing_of(data, 3, (32, 32)).processor
    back = data_config_of(processor, tiny_config(), (32, 32))
    assert str(timm.data.create_transform(**back)) == str(timm.data.create_transform(**data))


def test_a_model_without_image_processor_has_timms_defaults() -> None:
    assert data_config_of(None, tiny_config(num_channels=1), (8, 16)) == {"input_size": (1, 8, 16)}
