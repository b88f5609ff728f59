"""Images in memory, in files and in data sets."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

CLASSES = ("ant", "bee", "cat")


def png(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", **options)
    return buffer.getvalue()


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


LABELS = [0, 0, 1, 1, 2, 2]


Producer = Callable[[Path, list[Image.Image]], Any]
LABELLED: dict[str, Producer] = {
    "Dataset": lambda _, p: as_dataset(p, LABELS),
    "DatasetDict": lambda _, p: datasets.DatasetDict({"train": as_dataset(p, LABELS)}),
    "folder of classes": lambda root, p: in_folders(root / "photos", p, LABELS),
    "parquet file": lambda root, p: in_parquet(root / "photos.parquet", p, LABELS),
    "folder of parquet files": lambda root, p: in_parquet(root / "0.parquet", p, LABELS).parent,
}
