"""Images as they are read: damaged ones, their colours, their labels, batches and samples."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from transformers import ViTImageProcessorPil

from hf_vitcompress.errors import DataError
from hf_vitcompress.images.decoding import decode_image
from hf_vitcompress.images.images import ImageSource
from hf_vitcompress.images.sources import open_images
from support.models import DIGITS
from support.pictures import CLASSES, LABELLED, LABELS, as_dataset, in_folders, png


def truncated_png() -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    return png(Image.fromarray(noise))[:1500]


def _broken_folder(root: Path, six: list[Image.Image]) -> Path:
    in_folders(root / "photos", six, LABELS)
    (root / "photos" / "bee" / "02.png").write_bytes(truncated_png())
    return root / "photos"


def _broken_parquet(root: Path, six: list[Image.Image]) -> Path:
    encoded = [{"bytes": png(picture), "path": f"{i:02}.png"} for i, picture in enumerate(six)]
    encoded[2]["bytes"] = truncated_png()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    dataset = datasets.Dataset.from_dict({"image": encoded, "label": LABELS}, features=features)
    dataset.to_parquet(root / "photos.parquet")
    return root / "photos.parquet"


BROKEN = {"folder": _broken_folder, "parquet": _broken_parquet}


@pytest.mark.parametrize("kind", BROKEN)
def test_one_broken_image_is_left_out_and_counted(
    kind: str, six: list[Image.Image], processor: ViTImageProcessorPil, tmp_path: Path
) -> None:
    source = open_images(BROKEN[kind](tmp_path, six))
    batches = list(source.batches(processor, 4))
    good = six[:2] + six[3:]
    assert [len(batch.pixel_values) for batch in batches] == [3, 2]
    expected = processor(images=good, return_tensors="pt")["pixel_values"]
    assert torch.equal(torch.cat([batch.pixel_values for batch in batches]), expected)
    assert torch.cat([batch.labels for batch in batches]).tolist() == [0, 0, 1, 2, 2]
    assert len(source.bad_images) == 1
    assert "02.png" in source.bad_images[0]


@pytest.mark.parametrize("kind", BROKEN)
def test_one_broken_image_stops_when_asked_to(
    kind: str, six: list[Image.Image], processor: ViTImageProcessorPil, tmp_path: Path
) -> None:
    source = open_images(BROKEN[kind](tmp_path, six), on_bad_image="error")
    with pytest.raises(DataError, match=r"02\.png.*on_bad_image"):
        list(source.batches(processor, 4))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not an image",
        b"\x89PNG\r\n\x1a\n" + b"\0" * 60,
        b"GIF89a\x01",
        b"\xff\xd8\xff\xe0",
        b"II*\0" + b"\xff" * 30,
    ],
    ids=["empty", "text", "PNG header", "GIF header", "JPEG header", "TIFF header"],
)
def test_any_kind_of_damage_counts_as_one_bad_image(
    content: bytes, six: list[Image.Image], processor: ViTImageProcessorPil, tmp_path: Path
) -> None:
    six[0].save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(content)
    source = open_images(tmp_path)
    (batch,) = source.batches(processor, 2)
    assert len(batch.pixel_values) == 1
    assert len(source.bad_images) == 1


def test_a_row_without_an_image_counts_as_a_bad_image(six: list[Image.Image], processor: ViTImageProcessorPil) -> None:
    features = datasets.Features({"image": datasets.Image()})
    rows = [{"bytes": png(six[0]), "path": None}, None]
    source = open_images(datasets.Dataset.from_dict({"image": rows}, features=features))
    (batch,) = source.batches(processor, 2)
    assert len(batch.pixel_values) == 1
    assert len(source.bad_images) == 1


def test_nothing_but_broken_images_is_an_error(processor: ViTImageProcessorPil, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"broken")
    with pytest.raises(DataError, match=r"b\.png"):
        list(open_images(tmp_path).batches(processor, 1))


def coloured(mode: str) -> Image.Image:
    """6 × 4, left half dark and right half bright."""
    image = Image.new("L", (6, 4), 51)
    image.paste(204, (3, 0, 6, 4))
    return image.convert("RGB").convert(mode)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"])
def test_every_mode_becomes_the_same_rgb(mode: str) -> None:
    image = coloured("L").convert("LA").convert("PA") if mode == "PA" else coloured(mode)
    assert image.mode == mode
    decoded = np.array(decode_image(image)).astype(int)
    expected = np.array(coloured("RGB")).astype(int)
    if mode == "1":
        decoded, expected = decoded[:, :3].mean() < decoded[:, 3:].mean(), np.array(True)
    assert np.abs(decoded - expected).max() <= 2 if mode != "1" else decoded == expected
    assert (decode_image(image).mode, decode_image(image).size) == ("RGB", (6, 4))


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("1", "png"), ("L", "png"), ("LA", "png"), ("P", "gif"), ("RGBA", "webp"), ("CMYK", "jpg"), ("CMYK", "tif")],
)
def test_every_mode_is_read_from_a_file(mode: str, suffix: str, tmp_path: Path) -> None:
    coloured(mode).save(tmp_path / f"a.{suffix}")
    decoded = open_images(tmp_path).decoded(0)
    assert (decoded.mode, decoded.size) == ("RGB", (6, 4))
    dark, bright = np.array(decoded)[:, :2].mean(), np.array(decoded)[:, 4:].mean()
    assert dark + 60 < bright


@pytest.mark.parametrize("mode", ["I;16", "I"])
def test_sixteen_bits_are_scaled_and_not_clipped(mode: str, tmp_path: Path) -> None:
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    image = Image.fromarray(values if mode == "I;16" else values.astype(np.int32))
    assert image.mode == mode
    image.save(tmp_path / "deep.tif")
    decoded = np.array(open_images(tmp_path).decoded(0)).astype(int)
    assert decoded.shape == (1, 4, 3)
    assert np.abs(decoded - np.array([0, 1, 128, 255])[None, :, None]).max() <= 1


def test_sixteen_bit_png_is_scaled_and_not_clipped() -> None:
    values = np.array([[0, 16448, 65535]], dtype=np.uint16)
    decoded = np.array(decode_image(png(Image.fromarray(values)))).astype(int)
    assert np.abs(decoded[0, :, 0] - np.array([0, 64, 255])).max() <= 1


def test_a_float_image_keeps_its_grey_values() -> None:
    decoded = decode_image(Image.fromarray(np.array([[0.0, 100.0, 255.0]], dtype=np.float32)))
    assert np.array(decoded)[0].tolist() == [[0] * 3, [100] * 3, [255] * 3]


def test_transparency_shows_white_whatever_lies_under_it() -> None:
    image = Image.new("RGBA", (2, 1), (10, 20, 30, 0))
    image.putpixel((1, 0), (10, 20, 30, 255))
    assert np.array(decode_image(image))[0].tolist() == [[255, 255, 255], [10, 20, 30]]


def test_a_transparent_palette_entry_shows_white() -> None:
    image = Image.new("P", (2, 1), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    image.putpixel((0, 0), 0)
    assert np.array(decode_image(png(image, transparency=0)))[0].tolist() == [[255] * 3, [200, 100, 50]]


@pytest.mark.parametrize(("orientation", "turn"), [(3, 180), (6, 270), (8, 90)])
def test_a_rotated_photo_stands_upright(orientation: int, turn: int, tmp_path: Path) -> None:
    upright = coloured("RGB").resize((24, 16), Image.Resampling.NEAREST)
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright.rotate(-turn, expand=True).save(tmp_path / "photo.png", exif=exif)
    decoded = open_images(tmp_path).decoded(0)
    assert decoded.size == (24, 16)
    assert np.array_equal(np.array(decoded), np.array(upright))


@pytest.mark.parametrize("kind", LABELLED)
def test_labels_follow_the_names_of_the_model(kind: str, six: list[Image.Image], tmp_path: Path) -> None:
    label2id = {"dog": 0, "cat": 1, "bee": 2, "ant": 3}
    assert open_images(LABELLED[kind](tmp_path, six), label2id=label2id).labels == [3, 3, 2, 2, 1, 1]


@pytest.mark.parametrize("kind", LABELLED)
def test_labels_go_by_position_where_the_model_has_as_many_and_no_names(
    kind: str, six: list[Image.Image], tmp_path: Path
) -> None:
    as_many, more = ({f"LABEL_{i}": i for i in range(count)} for count in (3, 7))
    images = LABELLED[kind](tmp_path, six)
    assert open_images(images, label2id=as_many).labels == LABELS
    assert open_images(images, label2id=more).labels is None


@pytest.mark.parametrize("kind", LABELLED)
def test_other_classes_than_the_models_are_no_labels(kind: str, six: list[Image.Image], tmp_path: Path) -> None:
    label2id: Mapping[str, int] = {"oak": 0, "fir": 1, "elm": 2, "yew": 3}
    assert open_images(LABELLED[kind](tmp_path, six), label2id=label2id).labels is None


def test_whole_numbers_without_names_are_the_models_indices(six: list[Image.Image]) -> None:
    dataset = as_dataset(six, LABELS).cast_column("label", datasets.Value("int64"))
    assert open_images(dataset, label2id={"a": 0, "b": 1}).labels == LABELS


def test_unknown_labels_are_not_those_of_the_last_class(six: list[Image.Image]) -> None:
    """-1 is how `datasets` writes that a label is withheld, as in the test splits of many data sets."""
    source = open_images(as_dataset(six, [-1] * 6), label2id={name: i for i, name in enumerate(CLASSES)})
    assert source.labels is None


def test_batches_are_the_same_every_time(processor: ViTImageProcessorPil) -> None:
    source = open_images(DIGITS / "calibration.parquet").select(range(40))
    first, second = (list(source.batches(processor, 16)) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.pixel_values, b.pixel_values)
        assert torch.equal(a.labels, b.labels)


@pytest.mark.parametrize("wanted", [[2], [1, 3], range(0, 4, 2), []])
def test_only_the_wanted_batches_are_read(pixels: Tensor, wanted: Iterable[int]) -> None:
    read = list(open_images(pixels).batches(None, 30, wanted))
    assert [batch.index for batch in read] == list(wanted)
    assert all(torch.equal(batch.pixel_values, pixels[30 * batch.index :][:30]) for batch in read)


def test_of_the_wanted_batches_none_need_be_readable(pixels: Tensor) -> None:
    source = ImageSource([b"", b"", *pixels[:2]], None, "x")
    assert list(source.batches(None, 2, wanted=[0])) == []
    assert len(source.bad_images) == 2


def test_a_sample_depends_on_its_seed_alone(pixels: Tensor) -> None:
    source = open_images(DataLoader(TensorDataset(pixels, torch.arange(96)), batch_size=8))
    assert source.sample(20, 5).labels == source.sample(20, 5).labels
    assert source.sample(20, 5).labels != source.sample(20, 6).labels
    assert source.sample(20, 5).labels == source.sample(30, 5).labels[:20]  # type: ignore[index]


def test_a_sample_of_everything_holds_every_image_once_with_its_label(pixels: Tensor) -> None:
    sample = open_images(DataLoader(TensorDataset(pixels, torch.arange(96)), batch_size=8)).sample(None, 1)
    assert sample.labels is not None
    assert sorted(sample.labels) == list(range(96))
    assert all(torch.equal(image, pixels[label]) for image, label in zip(sample.images, sample.labels, strict=True))


def test_what_one_selection_cannot_read_is_not_counted_by_another(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"broken")
    coloured("RGB").save(tmp_path / "b.png")
    source = open_images(tmp_path)
    part = source.select([0, 1])
    list(part.batches(lambda images, return_tensors: {"pixel_values": torch.zeros(len(images), 3, 4, 4)}, 2))
    assert (len(part.bad_images), len(source.bad_images)) == (1, 0)
