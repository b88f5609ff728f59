"""What a model is shown: what the pipeline shows it, pixel for pixel; and what the pipeline cannot show."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ImageClassificationPipeline, PreTrainedModel, ViTForImageClassification, ViTImageProcessorPil

from hf_vitcompress.errors import DataError
from hf_vitcompress.images.decoding import UnreadableImageError, decode_image, read_image
from hf_vitcompress.images.preprocessing import by_shape
from hf_vitcompress.images.sources import open_images
from support.models import seeded, tiny_config
from support.pictures import png

NOISE = np.random.default_rng(0).integers(0, 256, (9, 12, 4), dtype=np.uint8)
HIDDEN = Image.fromarray(NOISE, "RGBA")
"""Random colours, most of them more or less transparent."""
COLOURS, GREY = HIDDEN.convert("RGB"), HIDDEN.convert("L")


def with_transparency(image: Image.Image, transparency: Any) -> Image.Image:
    image.info["transparency"] = transparency
    return image


def turned(orientation: int) -> Image.Image:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    COLOURS.save(buffer, "png", exif=exif)
    return Image.open(buffer)


def animated(kind: str) -> Image.Image:
    buffer = io.BytesIO()
    HIDDEN.save(buffer, kind, save_all=True, append_images=[Image.new("RGBA", HIDDEN.size, "red")])
    return Image.open(buffer)


SHOWN: dict[str, Callable[[], Image.Image]] = {
    **{mode: lambda mode=mode: COLOURS.convert(mode) for mode in ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr")},
    **{mode: lambda mode=mode: COLOURS.convert(mode) for mode in ("LAB", "HSV")},
    **{mode: lambda mode=mode: HIDDEN.convert(mode) for mode in ("LA", "RGBA", "RGBa")},
    "PA": lambda: HIDDEN.convert("LA").convert("PA"),
    "P with a transparent colour": lambda: with_transparency(COLOURS.convert("P"), 3),
    "P with an alpha channel": lambda: with_transparency(COLOURS.convert("P"), bytes(range(256))),
    "L with a transparent grey": lambda: with_transparency(GREY.copy(), int(GREY.getpixel((0, 0)))),
    "RGB with a transparent colour": lambda: with_transparency(COLOURS.copy(), COLOURS.getpixel((0, 0))),
    "I in 8 bits": lambda: GREY.convert("I"),
    "F in 8 bits": lambda: GREY.convert("F"),
    "I;16 in 8 bits": lambda: Image.fromarray(np.array(GREY).astype(np.uint16)),
    **{f"orientation {i}": lambda i=i: turned(i) for i in range(1, 9)},
    **{f"animated {kind}": lambda kind=kind: animated(kind) for kind in ("gif", "png", "webp")},
}


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return seeded(ViTForImageClassification, tiny_config())


@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning:PIL")
@pytest.mark.parametrize("convert", [None, False, True])
@pytest.mark.parametrize("kind", SHOWN)
def test_a_picture_is_seen_as_the_pipeline_shows_it(kind: str, convert: bool | None, model: PreTrainedModel) -> None:
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16}, do_convert_rgb=convert)
    theirs = ImageClassificationPipeline(model=model, image_processor=processor).preprocess(SHOWN[kind]())
    (ours,) = by_shape([decode_image(SHOWN[kind]())], processor)
    assert torch.equal(ours.pixel_values, theirs["pixel_values"])


@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
def test_a_file_is_seen_as_the_pipeline_shows_it(suffix: str, model: PreTrainedModel, tmp_path: Path) -> None:
    HIDDEN.save(tmp_path / f"a.{suffix}")
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16}, do_convert_rgb=True)
    pipeline = ImageClassificationPipeline(model=model, image_processor=processor)
    (ours,) = open_images(tmp_path).batches(processor, 1)
    assert torch.equal(ours.pixel_values, pipeline.preprocess(str(tmp_path / f"a.{suffix}"))["pixel_values"])


def test_a_palette_with_an_alpha_channel_is_no_reason_for_a_word() -> None:
    decode_image(with_transparency(COLOURS.convert("P"), bytes(range(256))))


# Deep pictures, which the pipeline would clip


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    for kind in (np.uint16, np.int32, ">u2"):
        Image.fromarray(values.astype(kind)).save(tmp_path / "deep.tif")
        decoded = np.array(open_images(tmp_path).decoded(0)).astype(int)
        assert np.array_equal(decoded, np.array([0, 1, 128, 255])[None, :, None].repeat(3, 2))


def test_sixteen_bit_png_is_scaled_and_not_clipped() -> None:
    values = np.array([[0, 16448, 65535]], dtype=np.uint16)
    decoded = np.array(decode_image(png(Image.fromarray(values)))).astype(int)
    assert np.abs(decoded[0, :, 0] - np.array([0, 64, 255])).max() <= 1


@pytest.mark.parametrize("low", [0, -1000, 30000])
@pytest.mark.parametrize("high", [1, 1e-3, 4095, 2000000])
@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_deep_pictures_are_scaled_by_their_own_range(low: float, high: float, kind: type) -> None:
    """Shares, heights, temperatures, 12 bits of X-rays …"""
    values = (low + np.linspace(0, 1, 256).reshape(16, 16) * high).astype(kind)
    decoded = np.array(decode_image(Image.fromarray(values)))
    if len(np.unique(values)) > 1 and not 0 <= values.min() <= values.max() <= 1 + (kind is np.float32):
        assert (decoded.min(), decoded.max()) == (0, 255)
    assert len(np.unique(decoded)) == min(256, len(np.unique(values)))


def test_a_float_image_keeps_its_grey_values() -> None:
    decoded = decode_image(Image.fromarray(np.array([[0.0, 100.0, 255.0]], dtype=np.float32)))
    assert np.array(decoded)[0].tolist() == [[0] * 3, [100] * 3, [255] * 3]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_named(value: float) -> None:
    with pytest.raises(UnreadableImageError, match="NaN or infinite"):
        read_image(Image.fromarray(np.array([[0.0, value]], dtype=np.float32)))


# Other channels


def seen(image: Image.Image, channels: int) -> np.ndarray:
    own = {"image_mean": [0.5] * channels, "image_std": [0.5] * channels, "do_convert_rgb": False}
    processor = ViTImageProcessorPil(size={"height": 9, "width": 12}, **own)
    source = open_images([image])
    source.channels = channels
    (batch,) = source.batches(processor, 1)
    return batch.pixel_values[0].permute(1, 2, 0).mul(127.5).add(127.5).round().to(torch.uint8).numpy()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_a_model_of_one_channel_sees_grey(mode: str) -> None:
    image = Image.fromarray(np.array(GREY).astype(np.uint16) * 257) if mode == "I;16" else COLOURS.convert(mode)
    grey = seen(image, 1)
    assert grey.shape == (9, 12, 1)
    if mode in ("RGB", "RGBA"):
        assert np.array_equal(grey[..., 0], np.array(GREY))


@pytest.mark.parametrize("mode", ["RGBA", "CMYK", "RGBX"])
def test_a_model_of_four_channels_sees_four_as_they_are(mode: str) -> None:
    image = Image.fromarray(NOISE, mode)
    assert np.array_equal(seen(image, 4), NOISE)


@pytest.mark.parametrize(
    ("mode", "channels", "said"),
    [
        ("RGB", 4, r"in mode RGB.*num_channels=4.*RGBA or CMYK"),
        ("P", 4, r"in mode P.*num_channels=4"),
        ("RGB", 2, r"in mode RGB.*num_channels=2.*\(LA\)"),
        ("RGBA", 6, r"in mode RGBA.*num_channels=6.*Give a DataLoader of ready `pixel_values` \(n, 6, height, width\)"),
    ],
)
def test_channels_that_a_picture_does_not_have_are_named(mode: str, channels: int, said: str) -> None:
    with pytest.raises(DataError, match=said):
        seen(COLOURS.convert(mode), channels)
