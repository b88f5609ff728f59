"""One image decoded: what may be wrong with it, with its metadata and with its file."""

import io
import os
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from transformers import ViTImageProcessorPil

from hf_vitcompress.images.decoding import LONGEST_SHAPE, UnreadableImageError, decode_image, read_image
from hf_vitcompress.images.sources import open_images
from support.pictures import png


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def malformed_exif() -> list[bytes]:
    """One tag each: of every type, with counts and places that do not fit it."""
    tags = (0x010F, 0x0112, 0x011A, 0x8769, 0x8825, 0x9286)
    places = (b"\xff\xff\xff\xff", b"\0\0\0\0")
    fields = [
        struct.pack("<HHI", tag, kind, count) + place
        for tag in tags
        for kind in range(14)
        for count in (0, 1, 2**31)
        for place in places
    ]
    return [b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 1) + own + b"\0\0\0\0" for own in fields]


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
def test_no_malformed_exif_ends_an_image_with_good_pixels(kind: str, six: list[Image.Image]) -> None:
    plain = np.array(decode_image(encoded(six[0], kind)))
    for exif in malformed_exif():
        decoded = np.array(read_image(encoded(six[0], kind, exif=exif)))
        assert sorted(decoded.flatten()) == sorted(plain.flatten())  # whatever turn the tag may ask for


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_undone(orientation: int) -> None:
    image = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6))
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(io.BytesIO(png(image, exif=exif))) as opened:
        expected = np.array(ImageOps.exif_transpose(opened).convert("RGB"))
    assert np.array_equal(np.array(decode_image(png(image, exif=exif))), expected)


def test_the_pixels_are_judged_before_the_metadata(six: list[Image.Image]) -> None:
    """Asking a PNG for its EXIF decodes it, and what was decoded of a broken one must not pass for an image."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    with pytest.raises(UnreadableImageError, match="truncated"):
        read_image(png(noise)[:1500])


RAISED = (OSError("o"), SyntaxError("s"), struct.error("t"), zlib.error("z"), KeyError("k"), MemoryError(), EOFError())


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
def test_whatever_a_decoder_raises_is_one_kind_of_error(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise error

    monkeypatch.setattr(Image, "open", fails)
    with pytest.raises(UnreadableImageError, match=str(error) or type(error).__name__) as caught:
        read_image(b"x")
    assert caught.value.__cause__ is error


def bomb() -> bytes:
    """A PNG that says it has 30,000 × 30,000 pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        check = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "there is no image|no image format"),
        (b"words", "no image format"),
        (bomb(), "exceeds limit"),
        (png(Image.new("L", (1, LONGEST_SHAPE + 1))), f"1 × {LONGEST_SHAPE + 1} pixels"),
        (None, "there is no image"),
        ({"bytes": None, "path": None}, "there is no image"),
        ({}, "there is no image"),
        (Image.new("RGB", (0, 0)), "no pixels"),
    ],
    ids=["empty", "words", "bomb", "thread", "none", "row without", "empty row", "no pixels"],
)
def test_the_reason_is_named(content: Any, reason: str) -> None:
    with pytest.raises(UnreadableImageError, match=reason):
        read_image(content)


def test_an_open_file_is_read_as_often_as_it_is_asked_for(six: list[Image.Image]) -> None:
    source = open_images([io.BytesIO(png(six[0]))])
    assert decode_image(source.images[0]) == decode_image(source.images[0]) == six[0]


PLACES: dict[str, Callable[[Path], Any]] = {
    "pipe": os.mkfifo,
    "socket": lambda path: socket.socket(socket.AF_UNIX).bind(str(path)),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "link to itself": lambda path: path.symlink_to(path.name),
}


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize("kind", PLACES)
def test_only_regular_files_are_opened(kind: str, tmp_path: Path) -> None:
    """A pipe would be waited for, and a device read for ever."""
    PLACES[kind](tmp_path / "x.png")
    with pytest.raises(UnreadableImageError, match=r"not a regular file|No such file|symbolic links"):
        read_image(tmp_path / "x.png")


def test_a_folder_may_be_called_like_an_image(six: list[Image.Image], tmp_path: Path) -> None:
    (tmp_path / "photos.png").mkdir()
    six[0].save(tmp_path / "photos.png" / "a.png")
    assert len(open_images(tmp_path)) == 1


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (3, 1), (3, 40), (40, 3), (1, LONGEST_SHAPE)])
def test_small_and_narrow_images_are_seen_as_the_processor_sees_them(
    size: tuple[int, int], processor: ViTImageProcessorPil
) -> None:
    """Also those that could be taken for three channels."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    (batch,) = open_images([image]).batches(processor, 1)
    wide = image.resize((16, 16), processor.resample)
    expected = (torch.from_numpy(np.array(wide)).permute(2, 0, 1) / 255 - 0.5) / 0.5
    assert torch.allclose(batch.pixel_values[0], expected, atol=0.02)
