"""Samples and batches in the forms in which data sets, processors and loaders hand them on."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import (
    ChainDataset,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
    random_split,
)
from transformers import ViTImageProcessorPil

from hf_vitcompress.errors import DataError
from hf_vitcompress.images.samples import is_pair, samples_of
from hf_vitcompress.images.sources import open_images
from support.pictures import CLASSES, as_dataset

LABELS = [0, 1, 2, 0, 1, 2]


class Rows(Dataset[Any]):
    """A map-style data set of some rows."""

    def __init__(self, rows: list[Any], **attributes: Any) -> None:
        self.rows = rows
        self.__dict__.update(attributes)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


class Stream(IterableDataset[Any]):
    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def __iter__(self) -> Any:
        return iter(self.rows)


def rows(pixels: Tensor, label: str = "label") -> list[dict[str, Any]]:
    return [{"pixel_values": image, label: i} for image, i in zip(pixels, LABELS, strict=True)]


def pairs(pixels: Tensor) -> list[tuple[Tensor, int]]:
    return list(zip(pixels, LABELS, strict=True))


def mapped(pixels: Tensor) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"pixel_values": pixels.numpy(), "label": LABELS})


FORMS: dict[str, Callable[[Tensor], Any]] = {
    "samples": rows,
    "samples with labels": lambda x: rows(x, "labels"),
    "samples with a target": lambda x: rows(x, "target"),
    "samples with a class": lambda x: rows(x, "class"),
    "pairs": pairs,
    "lists of samples, as `collate_fn=list` makes batches": lambda x: [rows(x)[:4], rows(x)[4:]],
    "lists of pairs": lambda x: iter([pairs(x)[:4], pairs(x)[4:]]),
    "columns": lambda x: {"pixel_values": list(x), "label": LABELS},
    "columns of arrays": lambda x: {"pixel_values": x.numpy(), "labels": np.array(LABELS)},
    "nested lists": lambda x: [{"pixel_values": image.tolist(), "label": i} for image, i in pairs(x)],
    "a torch data set of samples": lambda x: Rows(rows(x)),
    "a torch data set of pairs": lambda x: Rows(pairs(x)),
    "a torch data set of pairs and more": lambda x: Rows([(*pair, "name.png") for pair in pairs(x)]),
    "a torch data set of NumPy's": lambda x: Rows([(image.numpy(), np.int64(i)) for image, i in pairs(x)]),
    "a torch data set of batches": lambda x: Rows([(x[:3], LABELS[:3]), (x[3:], LABELS[3:])]),
    "tensors": lambda x: TensorDataset(x, torch.tensor(LABELS)),
    "parts of a data set": lambda x: ConcatDataset(
        [Subset(Rows(pairs(x)), [0, 1]), Subset(Rows(pairs(x)), [2, 3, 4, 5])]
    ),
    "a torch stream": lambda x: Stream(rows(x)),
    "torch streams in a chain": lambda x: ChainDataset([Stream(rows(x))]),
    "a generator of samples": lambda x: (row for row in rows(x)),
    "a loader of a stream": lambda x: DataLoader(Stream(rows(x)), batch_size=4),
    "a loader that does not collate": lambda x: DataLoader(Rows(pairs(x)), batch_size=4, collate_fn=list),
    "a loader of single samples": lambda x: DataLoader(Rows(pairs(x)), batch_size=None),
    "a column that `map` made": mapped,
    "a data set of tensors": lambda x: mapped(x).with_format("torch"),
    "a data set of arrays": lambda x: mapped(x).with_format("numpy"),
    "a streamed column": lambda x: mapped(x).to_iterable_dataset(),
    "a loader of a data set": lambda x: DataLoader(mapped(x).with_format("torch"), batch_size=4),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_images_and_labels(form: str, pixels: Tensor) -> None:
    source = open_images(FORMS[form](pixels[:6]))
    (batch,) = source.batches(None, 6)
    assert torch.equal(batch.pixel_values, pixels[:6])
    assert source.labels == LABELS


def test_parts_of_a_random_division_keep_their_labels(pixels: Tensor) -> None:
    parts = random_split(TensorDataset(pixels, torch.arange(96)), [60, 36], torch.Generator().manual_seed(0))
    first, second = (open_images(part) for part in parts)
    assert sorted([*(first.labels or ()), *(second.labels or ())]) == list(range(96))
    assert all(torch.equal(second.images[i], pixels[label]) for i, label in enumerate(second.labels or ()))


PICTURES: dict[str, Callable[[list[Image.Image]], Any]] = {
    "pairs": lambda six: list(zip(six, LABELS, strict=True)),
    "a tuple of columns": lambda six: (six, LABELS),
    "columns": lambda six: {"image": six, "label": LABELS},
    "a torch data set": lambda six: Rows(list(zip(six, LABELS, strict=True))),
    "a stream of lists": lambda six: iter([(six[:3], LABELS[:3]), (six[3:], LABELS[3:])]),
    "a web data set": lambda six: Stream([{"jpg": p, "cls": i} for p, i in zip(six, LABELS, strict=True)]),
    "a stream": lambda six: as_dataset(six, LABELS).to_iterable_dataset(),
    "a stream of tensors": lambda six: as_dataset(six, LABELS).to_iterable_dataset().with_format("torch"),
    "streams by split": lambda six: {"train": as_dataset(six, LABELS).to_iterable_dataset()},
    "a stream without features": lambda six: datasets.IterableDataset.from_generator(
        lambda: ({"image": p, "label": i} for p, i in zip(six, LABELS, strict=True))
    ),
    "a data set of tensors": lambda six: as_dataset(six, LABELS).with_format("torch"),
    "a data set of arrays": lambda six: as_dataset(six, LABELS).with_format("numpy"),
}


@pytest.mark.parametrize("form", PICTURES)
def test_pictures_come_in_every_form(form: str, six: list[Image.Image], processor: ViTImageProcessorPil) -> None:
    source = open_images(PICTURES[form](six))
    (batch,) = source.batches(processor, 6)
    assert torch.equal(batch.pixel_values, processor(images=six, return_tensors="pt")["pixel_values"])
    assert source.labels == LABELS


def test_what_an_image_processor_makes_is_a_batch(six: list[Image.Image], processor: ViTImageProcessorPil) -> None:
    for kind in ("pt", "np", None):
        source = open_images(processor(images=six, return_tensors=kind))
        (batch,) = source.batches(processor, 6)
        assert torch.equal(batch.pixel_values, processor(images=six, return_tensors="pt")["pixel_values"])


def test_names_of_a_torch_data_set_are_matched(six: list[Image.Image]) -> None:
    """As torchvision's `ImageFolder` has them; a synonym list is one name, as `label2id` writes it."""
    folder = Rows(list(zip(six, LABELS, strict=True)), classes=["ant", ("bee", "honeybee"), "cat"], targets=LABELS)
    label2id = {"cat": 0, "ant": 1, "bee, honeybee": 2}
    assert open_images(folder, label2id=label2id).labels == [1, 2, 0, 1, 2, 0]
    assert open_images(Subset(folder, [5, 0]), label2id=label2id).labels == [0, 1]


def test_labels_beside_the_samples_that_are_not_theirs_are_not_used(six: list[Image.Image]) -> None:
    """A `target_transform` changes them on the way."""
    folder = Rows([(p, 2 - i) for p, i in zip(six, LABELS, strict=True)], targets=LABELS)
    assert open_images(folder).labels == [2 - label for label in LABELS]


def test_an_image_as_a_target_is_no_second_image(six: list[Image.Image]) -> None:
    masks = [picture.convert("L") for picture in six]
    source = open_images(list(zip(six, masks, strict=True)))
    assert (len(source), source.labels) == (6, None)
    assert source.targets is not None
    assert torch.equal(source.targets[1], torch.from_numpy(np.array(masks[1])))
    assert len(open_images([six, six])) == 12  # a list of batches


@pytest.mark.parametrize(
    ("item", "count"),
    [
        ({"pixel_values": torch.zeros(3, 8, 8), "label": 1}, 1),
        ({"pixel_values": torch.zeros(12, 8, 8), "label": 1}, 1),
        ({"pixel_values": torch.zeros(3, 8, 8), "labels": torch.zeros(3)}, 1),
        ({"pixel_values": torch.zeros(2, 3, 8, 8), "labels": torch.zeros(2, 8, 8)}, 2),
        ({"pixel_values": torch.zeros(3, 9, 5), "pixel_attention_mask": torch.ones(3, 9)}, 3),
        ({"pixel_values": torch.zeros(9, 5), "pixel_attention_mask": torch.ones(9)}, 1),
        ([torch.zeros(3, 8, 8), torch.zeros(3, 8, 8)], 2),
        ([torch.zeros(3, 8, 8), torch.zeros(8, 8)], 1),
        ((torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 16, 16)), 2),
        ({"bytes": b"x", "path": None}, 1),
        (("a.png", "cat"), 1),
    ],
)
def test_one_image_and_several_are_told_apart(item: Any, count: int) -> None:
    assert len(samples_of(item)) == count


@pytest.mark.parametrize("second", [3, "cat", torch.zeros(2, 3, 8, 8), [torch.zeros(3, 8, 8)] * 2, {"a": 1}])
def test_two_items_are_not_always_images_and_labels(second: Any) -> None:
    assert not is_pair([torch.zeros(2, 3, 8, 8), second])


@pytest.mark.parametrize("data", [[1, 2, 3], iter([1.5]), {"image": 5}, [object()], Rows([{"text": "a"}])])
def test_what_is_nothing_of_that_kind_is_refused_with_what_is(data: Any) -> None:
    with pytest.raises(DataError, match=r"cannot be read.*is not an image.*PIL images.*samples.*batches"):
        open_images(data)


def test_a_table_is_refused() -> None:
    frame = type("DataFrame", (), {"__module__": "pandas.core.frame", "__iter__": lambda _: iter(["image"])})()
    with pytest.raises(DataError, match=r"a pandas DataFrame\. `datasets\.Dataset\.from_pandas` makes"):
        open_images(frame)


def test_a_data_set_without_a_length_is_refused() -> None:
    with pytest.raises(DataError, match=r"no length \(`__len__`\)"):
        open_images(type("Endless", (), {"__getitem__": lambda _, i: i, "__iter__": None})())


def test_a_transform_gives_its_pixel_values(six: list[Image.Image], processor: ViTImageProcessorPil) -> None:
    def transform(batch: dict[str, Any]) -> dict[str, Any]:
        made = processor(images=batch["image"], return_tensors="pt")["pixel_values"]
        return {"pixel_values": list(-made), "labels": batch["label"]}

    label2id = {name: 2 - i for i, name in enumerate(CLASSES)}
    source = open_images(as_dataset(six, LABELS).with_transform(transform), label2id=label2id)
    (batch,) = source.batches(processor, 6)
    assert torch.equal(batch.pixel_values, -processor(images=six, return_tensors="pt")["pixel_values"])
    assert source.labels == [2 - label for label in LABELS]


def test_a_transform_without_images_leaves_those_of_the_data_set(
    six: list[Image.Image], processor: ViTImageProcessorPil
) -> None:
    source = open_images(as_dataset(six, LABELS).with_transform(lambda batch: {"label": batch["label"]}))
    (batch,) = source.batches(processor, 6)
    assert torch.equal(batch.pixel_values, processor(images=six, return_tensors="pt")["pixel_values"])


def test_a_transform_that_fails_is_one_sentence(six: list[Image.Image]) -> None:
    def transform(batch: dict[str, Any]) -> dict[str, Any]:
        raise KeyError("img")

    with pytest.raises(DataError, match=r"None of 6 images of the data set .* can be read: KeyError, 'img'"):
        open_images(as_dataset(six, LABELS).with_transform(transform))


def test_arrays_of_other_libraries_are_arrays(pixels: Tensor) -> None:
    foreign = [SimpleNamespace(__array__=None) for _ in range(2)]
    kind = type("Foreign", (), {"__array__": lambda self, dtype=None, copy=None: pixels[0].numpy()})
    (batch,) = open_images([kind() for _ in foreign]).batches(None, 2)
    assert torch.equal(batch.pixel_values, pixels[[0, 0]])


def test_a_missing_image_is_left_out(six: list[Image.Image], processor: ViTImageProcessorPil) -> None:
    source = open_images([None, *six])
    (batch,) = source.batches(processor, 7)
    assert (len(batch.pixel_values), len(source.bad_images)) == (6, 1)
