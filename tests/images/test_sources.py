"""Images from every source and in every mode, good and broken."""

import io
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from transformers import ViTImageProcessorPil

from hf_vitcompress.errors import DataError
from hf_vitcompress.images.images import ImageSource, decode_image
from hf_vitcompress.images.sources import open_images
from support.models import DIGITS

CLASSES = ("ant", "bee", "cat")


def png(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", **options)
    return buffer.getvalue()


def truncated_png() -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    return png(Image.fromarray(noise))[:1500]


def as_dataset(pictures: list[Image.Image], labels: list[int], names: tuple[str, ...] = CLASSES) -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))})
    encoded = [{"bytes": png(picture), "path": None} for picture in pictures]
    return datasets.Dataset.from_dict({"image": encoded, "label": labels}, features=features)


def in_folders(root: Path, pictures: list[Image.Image], labels: list[int]) -> Path:
    for index, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        (root / CLASSES[label]).mkdir(parents=True, exist_ok=True)
        picture.save(root / CLASSES[label] / f"{index:02}.png")
    return root


def in_parquet(path: Path, pictures: list[Image.Image], labels: list[int]) -> Path:
    as_dataset(pictures, labels).to_parquet(path)
    return path


def pixels_of(source: ImageSource) -> Tensor:
    return torch.stack([torch.from_numpy(np.array(source.decoded(i))) for i in range(len(source))])


@pytest.fixture
def six(pictures: list[Image.Image]) -> list[Image.Image]:
    return pictures[:6]


LABELS = [0, 0, 1, 1, 2, 2]


Maker = Callable[[Path, list[Image.Image]], Any]
LABELLED: dict[str, Maker] = {
    "Dataset": lambda _, p: as_dataset(p, LABELS),
    "DatasetDict": lambda _, p: datasets.DatasetDict({"train": as_dataset(p, LABELS)}),
    "folder of classes": lambda root, p: in_folders(root / "photos", p, LABELS),
    "parquet file": lambda root, p: in_parquet(root / "photos.parquet", p, LABELS),
    "folder of parquet files": lambda root, p: in_parquet(root / "0.parquet", p, LABELS).parent,
}
UNLABELLED: dict[str, Maker] = {"list": lambda _, p: p, "tuple": lambda _, p: tuple(p)}


@pytest.mark.parametrize("kind", LABELLED)
def test_labelled_images_come_in_order_with_their_labels(kind: str, six: list[Image.Image], tmp_path: Path) -> None:
    source = open_images(LABELLED[kind](tmp_path, six))
    assert source.labels == LABELS
    assert torch.equal(pixels_of(source), pixels_of(open_images(six)))


@pytest.mark.parametrize("kind", [*LABELLED, *UNLABELLED])
def test_batches_hold_what_the_processor_makes_of_the_images(
    kind: str, six: list[Image.Image], processor: ViTImageProcessorPil, tmp_path: Path
) -> None:
    source = open_images({**LABELLED, **UNLABELLED}[kind](tmp_path, six))
    batches = list(source.batches(processor, 4))
    expected = processor(images=six, return_tensors="pt")["pixel_values"]
    assert [len(batch.pixel_values) for batch in batches] == [4, 2]
    assert torch.equal(torch.cat([batch.pixel_values for batch in batches]), expected)
    labels = None if kind in UNLABELLED else torch.cat([batch.labels for batch in batches]).tolist()
    assert labels == (None if kind in UNLABELLED else LABELS)


def test_a_flat_folder_has_no_labels(six: list[Image.Image], tmp_path: Path) -> None:
    for index, picture in enumerate(six):
        picture.save(tmp_path / f"{index}.bmp")
    (tmp_path / "notes.txt").write_text("not an image")
    source = open_images(str(tmp_path))
    assert len(source) == 6
    assert source.labels is None
    assert torch.equal(pixels_of(source), pixels_of(open_images(six)))


def test_paths_in_a_list_are_opened(six: list[Image.Image], tmp_path: Path) -> None:
    in_folders(tmp_path, six, LABELS)
    source = open_images(sorted(tmp_path.rglob("*.png")))
    assert torch.equal(pixels_of(source), pixels_of(open_images(six)))


def test_a_tensor_is_taken_as_it_is(pixels: Tensor) -> None:
    batches = list(open_images(pixels).batches(None, 40))
    assert torch.equal(torch.cat([batch.pixel_values for batch in batches]), pixels)
    assert [batch.labels for batch in batches] == [None] * 3


def _dicts(pixels: Tensor, labels: Tensor) -> DataLoader:
    rows = [{"pixel_values": p, "labels": label} for p, label in zip(pixels, labels, strict=True)]
    return DataLoader(rows, batch_size=7)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["dicts", "tuples"])
def test_a_data_loader_gives_its_pixels_and_labels(kind: str, pixels: Tensor) -> None:
    labels = torch.arange(len(pixels)) % 5
    loader = _dicts(pixels, labels) if kind == "dicts" else DataLoader(TensorDataset(pixels, labels), batch_size=7)
    source = open_images(loader)
    assert source.labels == labels.tolist()
    assert torch.equal(torch.cat([b.pixel_values for b in source.batches(None, 32)]), pixels)


def test_a_data_loader_without_labels_gives_none(pixels: Tensor) -> None:
    source = open_images(DataLoader(TensorDataset(pixels), batch_size=7))
    assert (len(source), source.labels) == (96, None)


def _batches(pixels: Tensor, size: int, **more: Any) -> list[dict[str, Any]]:
    starts = range(0, len(pixels), size)
    whole = {"pixel_values": pixels, **more}
    return [{name: value[start : start + size] for name, value in whole.items()} for start in starts]


def test_targets_that_are_more_than_classes_are_kept_for_each_image(pixels: Tensor) -> None:
    maps = torch.arange(12)[:, None, None].expand(12, 4, 4)
    source = open_images(_batches(pixels[:12], 5, labels=maps))
    assert source.labels is None
    first, second = source.select([7, 2, 9]).batches(None, 2)
    assert torch.equal(first.targets, maps[[7, 2]])
    assert torch.equal(second.targets, maps[[9]])
    assert torch.equal(first.targets_on(torch.device("cpu")), maps[[7, 2]])


def test_boxes_are_kept_for_each_image(pixels: Tensor) -> None:
    boxes = [{"class_labels": torch.tensor([i]), "boxes": torch.rand(i % 3, 4), "id": i} for i in range(12)]
    source = open_images(_batches(pixels[:12], 5, labels=boxes)).sample(6, seed=3)
    (batch,) = source.batches(None, 6)
    assert batch.labels is None
    for image, target, moved in zip(batch.pixel_values, batch.targets, batch.targets_on("cpu"), strict=True):
        assert torch.equal(image, pixels[target["id"]])
        assert torch.equal(moved["boxes"], boxes[target["id"]]["boxes"])


def test_numbers_are_targets_and_no_classes(pixels: Tensor) -> None:
    numbers = torch.rand(12)
    source = open_images(_batches(pixels[:12], 5, labels=numbers))
    (batch,) = source.batches(None, 12)
    assert source.labels is None
    assert torch.equal(batch.targets, numbers)


def test_classes_are_the_targets_where_there_are_no_others(pixels: Tensor) -> None:
    (batch,) = open_images(_dicts(pixels[:6], torch.arange(6))).batches(None, 6)
    assert batch.targets is None
    assert torch.equal(batch.targets_on(torch.device("cpu")), torch.arange(6))


def test_targets_of_several_sizes_are_named(pixels: Tensor) -> None:
    maps = [torch.zeros(4, 4), torch.zeros(4, 5)]
    with pytest.raises(DataError, match="Targets"):
        next(open_images(_batches(pixels[:2], 1, labels=maps)).batches(None, 2))


def test_what_else_is_known_of_an_image_stays_with_it(pixels: Tensor) -> None:
    masks = torch.arange(12)[:, None].expand(12, 3)
    source = open_images(_batches(pixels[:12], 5, mask=masks, names=[f"{i}.png" for i in range(12)]))
    (batch,) = source.select([7, 2, 9]).batches(None, 8)
    assert batch.inputs.keys() == {"mask"}
    assert torch.equal(batch.inputs["mask"], masks[[7, 2, 9]])


def test_what_is_known_of_some_batches_only_is_left_out(pixels: Tensor) -> None:
    batches = _batches(pixels[:4], 2, mask=torch.zeros(4, 3))
    del batches[1]["mask"]
    source = open_images(batches)
    assert [set(batch.inputs) for batch in source.batches(None, 4)] == [set()]


def test_an_endless_loader_is_read_no_further_than_needed(pixels: Tensor) -> None:
    def endless() -> Any:
        while True:
            yield {"pixel_values": pixels[:10]}

    assert 25 <= len(open_images(endless(), limit=25)) <= 30


def test_raw_images_without_a_processor_are_refused(six: list[Image.Image]) -> None:
    with pytest.raises(DataError, match="image processor"):
        next(open_images(six).batches(None, 2))


MISSING = ["missing/", "./missing", "~/missing", "a/b/c", "missing.parquet", "no-such-data-set", "nobody/no-such-set"]


@pytest.mark.parametrize("name", MISSING)
def test_what_is_not_there_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=name.strip("./~")):
        open_images(name)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent"):
        open_images(tmp_path / "absent")


@pytest.mark.parametrize("data", [[], iter(()), torch.empty(0, 3, 4, 4)])
def test_nothing_is_refused(data: Any) -> None:
    with pytest.raises(DataError, match="No image found"):
        open_images(data)


@pytest.mark.parametrize("data", [5, None, object()])
def test_what_holds_no_images_is_refused(data: Any) -> None:
    with pytest.raises(DataError, match=type(data).__name__):
        open_images(data)


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("nothing here")
    with pytest.raises(DataError, match=r"No image found.*\.png"):
        open_images(tmp_path)


def test_a_data_set_without_images_is_refused() -> None:
    with pytest.raises(DataError, match="text"):
        open_images(datasets.Dataset.from_dict({"text": ["a"]}))


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 this is no parquet file PAR1")
    with pytest.raises(DataError, match=r"broken\.parquet"):
        open_images(tmp_path / "broken.parquet")


def test_an_absent_split_is_refused_with_those_there_are(six: list[Image.Image]) -> None:
    splits = datasets.DatasetDict({"first": as_dataset(six, LABELS), "second": as_dataset(six[:2], LABELS[:2])})
    assert len(open_images(splits, split="second")) == 2
    assert len(open_images(splits)) == 6
    with pytest.raises(DataError, match="first, second"):
        open_images(splits, split="third")


# ---- broken images


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


# ---- modes


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


# ---- labels


@pytest.mark.parametrize("kind", LABELLED)
def test_labels_follow_the_names_of_the_model(kind: str, six: list[Image.Image], tmp_path: Path) -> None:
    label2id = {"dog": 0, "cat": 1, "bee": 2, "ant": 3}
    assert open_images(LABELLED[kind](tmp_path, six), label2id=label2id).labels == [3, 3, 2, 2, 1, 1]


@pytest.mark.parametrize("kind", LABELLED)
def test_labels_go_by_position_where_the_model_has_no_names(kind: str, six: list[Image.Image], tmp_path: Path) -> None:
    label2id = {f"LABEL_{i}": i for i in range(7)}
    assert open_images(LABELLED[kind](tmp_path, six), label2id=label2id).labels == LABELS


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


# ---- order


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
