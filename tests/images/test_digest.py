"""Images are known by their content, whatever they are called and wherever they lie."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from hf_vitcompress.images.digest import READY, SAMPLE, UNREADABLE, image_digest, images_facts
from hf_vitcompress.images.images import ImageSource
from hf_vitcompress.images.sources import open_images
from support.pictures import LABELS, as_dataset, in_folders, in_parquet, png


@pytest.fixture
def six(pictures: list[Image.Image]) -> list[Image.Image]:
    return pictures[:6]


def facts(data: Any, labels: bool = False) -> dict[str, str]:
    source = data if isinstance(data, ImageSource) else open_images(data)
    return images_facts(source, Accelerator(), labels)


def test_a_folder_that_is_moved_and_renamed_holds_the_same_images(tmp_path: Path, six: list[Image.Image]) -> None:
    before = facts(str(in_folders(tmp_path / "cats" / "train", six, LABELS)))
    (tmp_path / "cats" / "train").rename(tmp_path / "elsewhere")
    assert facts(str(tmp_path / "elsewhere")) == before


def test_other_images_of_the_same_names_are_others(tmp_path: Path, six: list[Image.Image]) -> None:
    cats = facts(str(in_folders(tmp_path / "cats" / "train", six, LABELS)))
    dogs = facts(str(in_folders(tmp_path / "dogs" / "train", six[::-1], LABELS)))
    other = facts(str(in_folders(tmp_path / "birds" / "train", [*six[:5], six[0].rotate(90)], LABELS)))
    assert dogs["content"] == cats["content"]  # the same six under other names
    assert dogs["order"] != cats["order"]
    assert other["content"] != cats["content"]


def test_the_same_bytes_in_files_data_sets_and_memory_are_the_same(tmp_path: Path, six: list[Image.Image]) -> None:
    folder, parquet = in_folders(tmp_path / "f", six, LABELS), in_parquet(tmp_path / "p.parquet", six, LABELS)
    everywhere = [str(folder), str(parquet), as_dataset(six, LABELS), [png(picture) for picture in six]]
    found = [facts(data) for data in everywhere]
    assert all(each == found[0] for each in found)


def test_a_file_is_known_by_its_size_and_both_its_ends_and_its_middle(tmp_path: Path) -> None:
    content = bytearray(os.urandom(20 * SAMPLE))
    known = image_digest(bytes(content))
    for place in (0, SAMPLE - 1, 10 * SAMPLE, 19 * SAMPLE, 20 * SAMPLE - 1):
        changed = bytearray(content)
        changed[place] ^= 1
        assert image_digest(bytes(changed)) != known
    assert image_digest(bytes(content) + b"x") != known
    (tmp_path / "x.png").write_bytes(content)
    assert image_digest(tmp_path / "x.png") == image_digest({"bytes": None, "path": str(tmp_path / "x.png")}) == known


@pytest.mark.parametrize("size", [0, 1, SAMPLE, SAMPLE + 1, 3 * SAMPLE])
def test_every_byte_of_a_small_file_counts(size: int) -> None:
    content = bytearray(os.urandom(size))
    digests = {image_digest(bytes(content))}
    places = range(0, size, max(1, size // 40))
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 1
        digests.add(image_digest(bytes(changed)))
    assert len(digests) == 1 + len(places)


def test_pictures_and_tensors_are_known_by_their_values(six: list[Image.Image]) -> None:
    red = Image.new("P", (4, 4))
    blue = red.copy()
    red.putpalette([255, 0, 0] * 256)
    blue.putpalette([0, 0, 255] * 256)
    kinds = [*six, six[0].convert("L"), six[0].resize((9, 9)), red, blue]
    tensors = [torch.zeros(3, 4, 4), torch.zeros(3, 2, 8), torch.ones(3, 4, 4)]
    assert len({image_digest(image) for image in [*kinds, *tensors]}) == len(kinds) + len(tensors)
    assert image_digest(six[0].copy()) == image_digest(six[0])
    assert image_digest(torch.zeros(3, 4, 8)[..., ::2]) == image_digest(tensors[0])
    assert image_digest(torch.zeros(3, 4, 4).half()) == image_digest(tensors[0])


def test_what_cannot_be_read_is_no_error(tmp_path: Path, six: list[Image.Image]) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "cut.png").write_bytes(png(six[0])[:60])
    with Image.open(tmp_path / "cut.png") as picture:
        missing = [None, {}, tmp_path / "missing.png", tmp_path, tmp_path / "pipe.png", 3.5, picture]
        assert {image_digest(raw) for raw in missing} == {UNREADABLE}
    assert image_digest(b"no image") != image_digest(b"none either")


def test_labels_count_where_something_is_learnt_from_them(six: list[Image.Image]) -> None:
    one, other = (ImageSource(six, labels, "x") for labels in (LABELS, LABELS[::-1]))
    assert facts(one) == facts(other)
    assert facts(one, labels=True) != facts(other, labels=True)
    boxes = [ImageSource(six, None, "x", targets=[{"boxes": torch.full((1, 4), v)}] * 6) for v in (0.1, 0.2)]
    assert facts(boxes[0]) == facts(boxes[1])
    assert facts(boxes[0], labels=True) != facts(boxes[1], labels=True)


def test_further_inputs_count(six: list[Image.Image]) -> None:
    one, other = (ImageSource(six, None, "x", inputs=[{"mask": torch.full((2,), v)}] * 6) for v in (0, 1))
    assert facts(one)["content"] != facts(other)["content"]


def test_only_ready_tensors_need_no_processor(six: list[Image.Image]) -> None:
    assert facts([torch.zeros(3, 4, 4)] * 2)["form"] == READY
    assert facts(six)["form"] != READY
    assert facts(ImageSource([torch.zeros(3, 4, 4), six[0]], None, "x"))["form"] != READY


def test_many_files_take_little_time(tmp_path: Path) -> None:
    paths = [tmp_path / f"{index}.jpg" for index in range(2000)]
    for index, path in enumerate(paths):
        path.write_bytes(index.to_bytes(4, "big") * 10_000)
    start = time.perf_counter()
    facts([str(path) for path in paths])
    assert time.perf_counter() - start < 10  # about 0.1 s where nothing else runs
