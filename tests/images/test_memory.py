"""What is read, how often, and what is held: memory does not grow with a data set, and streams need not end."""

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, WeightedRandomSampler
from transformers import PreTrainedModel

from hf_vitcompress import CompressionConfig
from hf_vitcompress.architectures.subject import Subject
from hf_vitcompress.errors import DataError, DataWarning
from hf_vitcompress.evaluation import reference
from hf_vitcompress.evaluation.evaluation import evaluate_model
from hf_vitcompress.evaluation.reference import Reference
from hf_vitcompress.images import digest, streams
from hf_vitcompress.images.digest import facts_of_images
from hf_vitcompress.images.images import ImageSource
from hf_vitcompress.images.shares import calibration_shares
from hf_vitcompress.images.sources import open_images
from hf_vitcompress.runtime.run import STREAM_IMAGES, Run


class Counting(Dataset[Any]):
    """Random images with labels, which counts what is read and what is alive."""

    def __init__(self, count: int, broken: tuple[int, ...] = ()) -> None:
        self.count, self.broken = count, broken
        self.read: list[int] = []
        self.alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
        self.most = 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if not 0 <= index < self.count:
            raise IndexError(index)
        self.read.append(index)
        if index in self.broken:
            raise OSError("image file is truncated")
        image = torch.randn(3, 16, 16)
        self.alive.add(image)
        self.most = max(self.most, len(self.alive))
        return image, index % 5


class Endless:
    """Batches of 8 without an end."""

    def __init__(self, pixels: Tensor) -> None:
        self.pixels, self.given = pixels, 0

    def __iter__(self) -> Iterator[Tensor]:
        while True:
            assert self.given < 20_000, "read on for ever"
            self.given += 8
            yield self.pixels[:8]


def test_opening_and_choosing_reads_next_to_nothing() -> None:
    data = Counting(100_000)
    source = open_images(data, labels=False)
    chosen, measuring = calibration_shares(source, CompressionConfig(num_images=64, measuring_images=8))
    assert (len(source), len(chosen), len(measuring)) == (100_000, 56, 8)
    assert len(data.read) <= 8
    data.read.clear()
    facts_of_images(chosen)
    assert len(data.read) == 56


def test_an_evaluation_holds_a_batch(vit: PreTrainedModel) -> None:
    gc.collect()
    data = Counting(96)
    evaluate_model(vit, open_images(data, labels=False), against=vit, batch_size=8, progress=False)
    assert data.most <= 2 * 8
    assert set(data.read) == set(range(96))


def test_a_large_reference_is_read_again_and_not_held(vit: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(CompressionConfig(batch_size=4, precision="float32"), progress=False)
    source = open_images(Counting(48), labels=False)
    held = Reference.of(Subject.alone(vit), source, run)
    monkeypatch.setattr(reference, "HELD_IMAGES", 40)
    data = Counting(48)
    large = Reference.of(Subject.alone(vit), replaced(source, data), run)
    assert data.most <= 2 * 8
    assert large.held is None
    assert large.loss_of(vit) == held.loss_of(vit) == 0


def replaced(source: ImageSource, data: Counting) -> ImageSource:
    source.images.samples.data = data  # type: ignore[attr-defined]
    return source


def test_of_many_images_some_tell_them_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest, "LOOKED_AT", 10)
    data = Counting(1000)
    one, shorter = (facts_of_images(open_images(data, labels=False).select(range(n))) for n in (1000, 999))
    assert one["content"] != shorter["content"]
    assert len(data.read) <= 2 * (8 + 10)


def test_a_data_set_that_augments_shows_the_same_images_each_time() -> None:
    source = open_images(DataLoader(Counting(12), batch_size=4, shuffle=True))
    first, second = (torch.cat([batch.pixel_values for batch in source.batches(None, 5)]) for _ in range(2))
    assert torch.equal(first, second)
    assert len(first.flatten(1).unique(dim=0)) == 12


def test_a_sample_that_cannot_be_read_is_left_out_with_its_reason() -> None:
    source = open_images(Counting(12, broken=(0, 7)))
    batches = list(source.batches(None, 4))
    assert torch.cat([batch.labels for batch in batches]).tolist() == [1, 2, 3, 4, 0, 1, 3, 4, 0, 1]
    assert source.bad_images[1] == "image 7 of the data set: OSError, image file is truncated"


def test_a_loader_is_the_same_for_every_process_and_is_left_as_it_was() -> None:
    def loader(seed: int) -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(3)
        sampler = WeightedRandomSampler([1.0] * 50, 20, generator=generator)
        torch.manual_seed(seed)
        return DataLoader(Counting(50), 6, sampler=sampler, generator=generator)

    one, other = loader(1), loader(2)
    state = torch.get_rng_state(), one.generator.get_state()  # type: ignore[union-attr]
    assert open_images(one).labels == open_images(other).labels
    assert torch.equal(torch.get_rng_state(), state[0])
    assert torch.equal(one.generator.get_state(), state[1])  # type: ignore[union-attr]


def test_of_an_endless_sampler_as_many_are_taken_as_are_wanted() -> None:
    class Forever(torch.utils.data.Sampler[int]):
        def __iter__(self) -> Iterator[int]:
            while True:
                yield from range(50)

    data = Counting(50)
    assert len(open_images(DataLoader(data, 6, sampler=Forever()), limit=20, labels=False)) == 24
    assert len(data.read) <= 8


@pytest.mark.parametrize("batched", [True, False])
def test_a_stream_is_drawn_from_once_and_as_far_as_is_wanted(batched: bool) -> None:
    read: list[int] = []

    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Tensor]:
            for i in range(1_000_000):
                read.append(i)
                yield torch.full((3, 4, 4), float(i))

    source = open_images(DataLoader(Stream(), batch_size=8) if batched else Stream(), limit=64)
    assert (len(source), len(read)) == (64, 64)
    assert source.name == ("the DataLoader" if batched else "the stream of images")
    for _ in range(2):
        assert [float(image[0, 0, 0]) for image in source.images] == list(range(64))
    assert len(read) == 64


def test_a_stream_without_an_end_is_cut_with_a_warning(pixels: Tensor) -> None:
    endless = Endless(pixels[:, :, :2, :2])
    with pytest.warns(DataWarning, match=r"4,096 images were drawn from the stream of images.*larger limit"):
        source = open_images(endless)
    assert len(source) == endless.given == STREAM_IMAGES


def test_no_more_is_held_than_fits(pixels: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "HELD_BYTES", 20 * pixels[0].nbytes)
    with pytest.warns(DataWarning, match="24 images were drawn"):
        assert len(open_images(Endless(pixels), limit=100)) == 24


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, 64),
        ({"max_accuracy_drop": 0.1, "validation_images": 10}, 74),
        ({"compensation": "residual", "held_out_images": 8}, 72),
        ({"compensation": "distill", "held_out_images": 8}, STREAM_IMAGES + 8),
        ({"compensation": "both", "held_out_images": 8, "compensation_images": 100}, 108),
        ({"num_images": None}, None),
    ],
)
def test_no_stage_wants_more_than_it_can_use(settings: dict[str, Any], wanted: int | None) -> None:
    assert Run(CompressionConfig(**{"num_images": 64, **settings})).images_wanted == wanted


def test_a_stream_that_fails_says_after_how_many_images(pixels: Tensor) -> None:
    def failing() -> Iterator[Any]:
        yield pixels[:8]
        yield {"pixel_values": pixels[8]}
        raise ConnectionError("the server hung up")

    with pytest.raises(DataError, match="cannot be read past 9 images: ConnectionError, the server hung up"):
        open_images(failing())


def test_an_opened_file_is_not_kept_open(tmp_path: Path, six: list[Image.Image]) -> None:
    """Thousands of open files are more than a process may have."""
    for i, picture in enumerate(six):
        picture.save(tmp_path / f"{i}.png")
    paths = sorted(tmp_path.iterdir())
    opened = [Image.open(path) for path in paths]
    source = open_images((image, 1) for image in opened)
    assert list(source.images) == list(map(str, paths))
    for image in opened:
        image.close()
