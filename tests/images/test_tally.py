"""Images that could not be read: how many may be left out, what is said of them, and that they are tried again."""

import warnings
from pathlib import Path

import pytest
from accelerate import Accelerator
from PIL import Image
from transformers import PreTrainedModel, ViTImageProcessorPil

from hf_vitcompress.errors import DataError, DataWarning
from hf_vitcompress.images.images import ImageSource
from hf_vitcompress.images.sources import open_images
from hf_vitcompress.images.tally import FEW, check_readable
from hf_vitcompress.statistics.statistics import Statistics
from support.calibrations import config, run
from support.moments import same
from support.stages import quiet


def accelerator() -> Accelerator:
    return quiet(config()).accelerator


def read(source: ImageSource, processor: ViTImageProcessorPil, batch_size: int = 4) -> int:
    """Every batch, as a process reads its share; how many images were left out."""
    list(source.batches(processor, batch_size, range(source.batch_count(batch_size))))
    return source.account(accelerator())


def broken(count: int, pictures: list[Image.Image]) -> ImageSource:
    """So many unreadable images before the readable ones."""
    return ImageSource([*[b"x"] * count, *pictures], None, "photos")


@pytest.mark.parametrize(("bad", "good"), [(1, 0), (1000, 0), (9, 8), (FEW, 1)])
def test_most_may_not_be_left_out(bad: int, good: int) -> None:
    counts = f"None of the {bad}" if not good else f"{bad} of {good + bad}"
    with pytest.raises(DataError, match=rf"^{counts} images of photos can.*such as first and last\. Repair or remove"):
        check_readable("photos", good, bad, ["first", "between", "last"])


@pytest.mark.parametrize(("bad", "good"), [(0, 0), (0, 5), (8, 8), (FEW - 2, 1)])
def test_some_may_be_left_out_and_most_of_a_few(bad: int, good: int) -> None:
    check_readable("photos", good, bad, [])


def test_what_was_left_out_is_said_with_its_number_and_the_first(
    pictures: list[Image.Image], processor: ViTImageProcessorPil
) -> None:
    with pytest.warns(
        DataWarning, match=r"^3 of 51 images of photos cannot be read and were left out, such as image 0 of photos: its"
    ):
        assert read(broken(3, pictures), processor) == 3


def test_without_any_left_out_nothing_is_said(six: list[Image.Image], processor: ViTImageProcessorPil) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(open_images(six), processor) == 0


def test_reading_stops_when_more_than_half_are_known_to_be_unreadable(
    pictures: list[Image.Image], processor: ViTImageProcessorPil
) -> None:
    source = ImageSource([pictures[0], *[b"x"] * 60, *pictures[1:6]], None, "photos")
    with pytest.raises(DataError, match="34 of 35 images of photos cannot be read"):
        list(source.batches(processor, 1, range(66)))


def test_a_bad_start_is_no_reason_to_stop(pictures: list[Image.Image], processor: ViTImageProcessorPil) -> None:
    with pytest.warns(DataWarning, match="40 of 88"):
        assert read(broken(40, pictures), processor) == 40


def test_an_image_is_named_by_its_number_in_what_was_opened(
    pictures: list[Image.Image], processor: ViTImageProcessorPil
) -> None:
    part = broken(8, pictures).sample(None, 3).select(range(30)).select(range(5, 30))
    with pytest.warns(DataWarning):
        read(part, processor)
    named = {int(text.split()[1]) for text in part.bad_images}
    assert named
    assert named <= set(range(8))
    assert all(image == b"x" for number, image in zip(part.numbers or (), part.images, strict=True) if number < 8)


def test_an_image_that_is_tried_again_counts_once(processor: ViTImageProcessorPil, six: list[Image.Image]) -> None:
    source = broken(2, six)
    for _ in range(3):
        with pytest.warns(DataWarning, match="2 of 8"):
            assert read(source, processor) == 2


def files(folder: Path, pictures: list[Image.Image], bad: int) -> Path:
    folder.mkdir(exist_ok=True)
    for i, picture in enumerate(pictures):
        picture.save(folder / f"{i:02}.png")
        if i < bad:
            (folder / f"{i:02}.png").write_bytes(b"x")
    return folder


@pytest.mark.parametrize("bad", [5, 48])
def test_images_that_were_repaired_are_read(
    bad: int, vit: PreTrainedModel, pictures: list[Image.Image], processor: ViTImageProcessorPil, tmp_path: Path
) -> None:
    """Although the checkpoint says that they are done."""
    checkpoint, folder = tmp_path / "c", tmp_path / "photos"

    def calibrated(checkpoint: Path | None) -> Statistics:
        return run(vit, open_images(folder), config(), checkpoint, processor)

    files(folder, pictures, bad)
    if bad == len(pictures):
        with pytest.raises(DataError, match=r"None of the 48 images.*00\.png.*47\.png"):
            calibrated(checkpoint)
    else:
        with pytest.warns(DataWarning, match=r"5 of 48 images.*00\.png"):
            calibrated(checkpoint)
    files(folder, pictures, 0)
    repaired = calibrated(checkpoint)
    assert (repaired.images, repaired.bad_images) == (48, 0)
    assert same(repaired, calibrated(None))


def test_images_that_are_still_unreadable_are_named_again(
    vit: PreTrainedModel, pictures: list[Image.Image], processor: ViTImageProcessorPil, tmp_path: Path
) -> None:
    folder, checkpoint = files(tmp_path / "photos", pictures, 5), tmp_path / "c"
    for _ in range(2):
        with pytest.warns(DataWarning, match=r"5 of 48 images.*00\.png"):
            assert run(vit, open_images(folder), config(), checkpoint, processor).images == 43
