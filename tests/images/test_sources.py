"""Images from every source and in every mode, good and broken."""

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
from hf_vitcompress.images.images import ImageSource
from hf_vitcompress.images.sources import open_images
from support.pictures import LABELLED, LABELS, Producer, as_dataset, in_folders


def pixels_of(source: ImageSource) -> Tensor:
    return torch.stack([torch.from_numpy(np.array(source.decoded(i))) for i in range(len(source))])


UNLABELLED: dict[str, Producer] = {"list": lambda _, p: p, "tuple": lambda _, p: tuple(p)}


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


@pytest.mark.parametrize("name", ["", " "])
def test_a_blank_name_is_not_the_current_folder(name: str) -> None:
    with pytest.raises(DataError, match="name of the images is empty"):
        open_images(name)


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
