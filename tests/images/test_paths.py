"""Folders and files in the layouts that people have."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
from PIL import Image

from hf_vitcompress.errors import DataError
from hf_vitcompress.images.images import ImageSource
from hf_vitcompress.images.options import TESTING, DataOptions
from hf_vitcompress.images.sources import open_images
from support.pictures import LABELS, as_dataset, in_folders, png

Layout = Callable[[Path, list[Image.Image]], None]


def save(folder: Path, pictures: list[Image.Image], suffix: str = ".png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, picture in enumerate(pictures):
        picture.save(folder / f"{index}{suffix}", {".jfif": "JPEG"}.get(suffix.lower()))


def classes(root: Path, six: list[Image.Image]) -> None:
    in_folders(root, six, LABELS)


def with_rubbish(root: Path, six: list[Image.Image]) -> None:
    classes(root, six)
    for name in (".ipynb_checkpoints", "__MACOSX", "@eaDir", ".cache"):
        save(root / name, six[:1])
        save(root / "ant" / name, six[:1])
    (root / "ant" / "._00.png").write_bytes(b"AppleDouble")
    (root / "Thumbs.db").write_bytes(b"")


def linked(root: Path, six: list[Image.Image]) -> None:
    classes(root.parent / "real", six)
    root.mkdir()
    for folder in (root.parent / "real").iterdir():
        (root / folder.name).symlink_to(folder)
    (root / "ant" / "round").symlink_to(root)  # a circle


def nested(root: Path, six: list[Image.Image]) -> None:
    for name, pictures in (("ant", six[:2]), ("bee", six[2:4]), ("cat", six[4:])):
        save(root / name / "from above", pictures[:1])
        save(root / name / "from below", pictures[1:])


def in_splits(root: Path, six: list[Image.Image]) -> None:
    classes(root / "train", six)
    save(root / "val" / "bee", six[:1])
    save(root / "extra" / "bee", six[:4])


LAYOUTS: dict[str, Layout] = {
    "folders of classes": classes,
    "rubbish of systems": with_rubbish,
    "links": linked,
    "nested": nested,
    "splits": in_splits,
    "splits in a folder": lambda root, six: in_splits(root / "photos", six),
    "an archive's folder": lambda root, six: classes(root / "photos", six),
    "save_to_disk": lambda root, six: as_dataset(six, LABELS).save_to_disk(root),
    "save_to_disk of splits": lambda root, six: datasets.DatasetDict(
        test=as_dataset(six[:2], [0, 0]), train=as_dataset(six, LABELS)
    ).save_to_disk(root),
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_folders_that_people_have(kind: str, six: list[Image.Image], tmp_path: Path) -> None:
    LAYOUTS[kind](tmp_path / "images", six)
    source = open_images(tmp_path / "images", label2id={"cat": 0, "bee": 1, "ant": 2})
    assert source.labels == [2, 2, 1, 1, 0, 0]


def test_a_split_is_named_and_chosen(six: list[Image.Image], tmp_path: Path) -> None:
    in_splits(tmp_path / "photos", six)
    found = [open_images(tmp_path / "photos", options=options) for options in (DataOptions(), TESTING)]
    assert [(source.name, source.split, len(source)) for source in found] == [
        ("photos, split train", "train", 6),
        ("photos, split val", "val", 1),
    ]
    with pytest.raises(DataError, match="photos has no split 'dev2'; it has train, val"):
        open_images(tmp_path / "photos", split="dev2")


def test_train_may_be_a_class(six: list[Image.Image], tmp_path: Path) -> None:
    for name in ("bus", "car", "train"):
        save(tmp_path / name, six[:1])
    source = open_images(tmp_path)
    assert (source.labels, source.split) == ([0, 1, 2], None)


def test_pictures_beside_the_classes_are_unlabelled(six: list[Image.Image], tmp_path: Path) -> None:
    classes(tmp_path, six)
    save(tmp_path, six[:1])
    assert open_images(tmp_path).labels == [-100, *LABELS]


@pytest.mark.parametrize("suffix", [".jfif", ".avif", ".PNG", ".jp2", ".tga"])
def test_pictures_that_pillow_reads_are_found(suffix: str, six: list[Image.Image], tmp_path: Path) -> None:
    save(tmp_path, six, suffix)
    assert len(open_images(tmp_path)) == 6
    assert open_images(tmp_path / f"0{suffix}").decoded(0).size == six[0].size


SHARDS: dict[str, Layout] = {
    "side by side": lambda root, six: shards(root, six),
    "in data/": lambda root, six: shards(root / "data", six),
    "beside the pictures of a README": lambda root, six: (shards(root / "data", six), save(root, six[:1]))[0],
    "in folders of splits": lambda root, six: (
        shard(root / "train" / "0000.parquet", six),
        shard(root / "test" / "0000.parquet", six[:2]),
    )[0],
}


def shard(path: Path, pictures: list[Image.Image]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    as_dataset(pictures, LABELS[: len(pictures)]).to_parquet(path)


def shards(root: Path, six: list[Image.Image]) -> None:
    shard(root / "train-00000-of-00002.parquet", six[:3])
    shard(root / "train-00001-of-00002.parquet", six[:3])
    shard(root / "test-00000-of-00001.parquet", six[:2])


@pytest.mark.parametrize("kind", SHARDS)
def test_shards_of_splits_are_not_mixed(kind: str, six: list[Image.Image], tmp_path: Path) -> None:
    SHARDS[kind](tmp_path / "hub", six)
    found = [open_images(tmp_path / "hub", options=options) for options in (DataOptions(), TESTING)]
    assert [(source.name, source.split, len(source)) for source in found] == [
        ("hub, split train", "train", 6),
        ("hub, split test", "test", 2),
    ]


def test_shards_may_have_any_name(six: list[Image.Image], tmp_path: Path) -> None:
    folder = tmp_path / "photos [2024]"
    shard(folder / "cats.parquet", six[:4])
    shard(folder / "dogs*.parquet", six[:2])
    source = open_images(folder)
    assert (len(source), source.split) == (6, None)


def test_a_table_of_paths_is_read(six: list[Image.Image], tmp_path: Path) -> None:
    save(tmp_path / "pictures", six)
    rows = "".join(f"pictures/{i}.png,{'abc'[label]}\n" for i, label in enumerate(LABELS))
    (tmp_path / "list.csv").write_text(f"file_name,label\n{rows}")
    source = open_images(tmp_path / "list.csv", label2id={"c": 0, "b": 1, "a": 2})
    assert source.labels == [2, 2, 1, 1, 0, 0]
    assert source.decoded(5).tobytes() == six[5].tobytes()


def test_metadata_beside_pictures_hold_the_labels(six: list[Image.Image], tmp_path: Path) -> None:
    save(tmp_path, six)
    rows = "".join(f'{{"file_name": "{i}.png", "label": "{"abc"[label]}"}}\n' for i, label in enumerate(LABELS))
    (tmp_path / "metadata.jsonl").write_text(rows)
    assert open_images(tmp_path).labels == LABELS


def test_archives_of_webdataset_are_read(six: list[Image.Image], tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "test-0000.tar", "w") as archive:
        for index, picture in enumerate(six):
            for suffix, content in (("png", png(picture)), ("cls", str(LABELS[index]).encode())):
                member = tarfile.TarInfo(f"{index:03}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    source = open_images(tmp_path)
    assert (source.labels, source.split) == (LABELS, "test")
    assert source.decoded(5).tobytes() == six[5].tobytes()


REFUSED: dict[str, tuple[DataOptions, str]] = {
    "split": (DataOptions(split="test"), "has no splits: leave out the split 'test'"),
    "config": (DataOptions(config="b"), "is on this disk"),
    "revision": (DataOptions(revision="main"), "is on this disk"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_a_folder_does_not_have_is_refused(kind: str, six: list[Image.Image], tmp_path: Path) -> None:
    save(tmp_path, six)
    options, said = REFUSED[kind]
    with pytest.raises(DataError, match=said):
        open_images(tmp_path, options=options)


def test_tables_of_two_kinds_are_a_question(six: list[Image.Image], tmp_path: Path) -> None:
    shard(tmp_path / "a.parquet", six)
    (tmp_path / "b.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"has \.parquet and \.tar files"):
        open_images(tmp_path)


def test_a_saved_data_set_that_is_damaged_is_named(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(DataError, match="cannot be read as a data set"):
        open_images(tmp_path)


def test_images_come_in_one_order(six: list[Image.Image], tmp_path: Path) -> None:
    classes(tmp_path, six)

    def paths(source: ImageSource) -> list[str]:
        return [str(path) for path in source.images]

    assert paths(open_images(tmp_path)) == sorted(map(str, tmp_path.rglob("*.png")))
