"""Statistics of other images, configs and image processors are never continued or used in silence."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessorPil, PreTrainedModel, ViTForImageClassification, ViTImageProcessorPil

from hf_vitcompress import CompressionConfig, Statistics, ViTCompressor
from hf_vitcompress.architectures.subject import Reading, Subject
from hf_vitcompress.errors import CalibrationError, DataWarning
from hf_vitcompress.images.images import ImageSource
from hf_vitcompress.runtime import identity
from hf_vitcompress.statistics.identity import PROCESSOR, processor_facts, subject_identity
from support.calibrations import config, interrupted, run
from support.models import seeded, tiny_config
from support.moments import same
from support.pictures import in_folders

RECIPE: dict[str, Any] = {"keep_ratio": 0.6, "rank_multiple": 1, "precision": "float32", "measuring_images": 0}
LABELS = [0, 1, 2] * 8


def compressor(processor: Any = None, **changes: Any) -> ViTCompressor:
    return ViTCompressor(CompressionConfig(**{**RECIPE, **changes}), processor, progress=False)


@pytest.fixture
def some(pictures: list[Image.Image]) -> list[Image.Image]:
    return pictures[:24]


@pytest.fixture
def cats(
    tmp_path: Path, vit: PreTrainedModel, processor: ViTImageProcessorPil, some: list[Image.Image]
) -> tuple[Path, Path]:
    """A folder of images, and the statistics of them."""
    folder = in_folders(tmp_path / "cats" / "train", some, LABELS)
    compressor(processor).calibrate(vit, str(folder), tmp_path / "stats")
    return folder, tmp_path / "stats"


def test_other_images_of_the_same_name_and_number_are_refused(
    tmp_path: Path,
    vit: PreTrainedModel,
    processor: ViTImageProcessorPil,
    some: list[Image.Image],
    cats: tuple[Path, Path],
) -> None:
    before = cats[1].read_bytes()
    dogs = in_folders(tmp_path / "dogs" / "train", [picture.rotate(90) for picture in some], LABELS)
    told = r"'.*stats', of 24 images of train, were made with other images \(content \w{12}…, now \w{12}…\)\. Delete"
    with pytest.raises(CalibrationError, match=told):
        compressor(processor).calibrate(vit, str(dogs), cats[1])
    assert cats[1].read_bytes() == before


def test_one_other_image_among_many_is_enough(
    vit: PreTrainedModel, processor: ViTImageProcessorPil, some: list[Image.Image], cats: tuple[Path, Path]
) -> None:
    some[0].rotate(180).save(next(cats[0].rglob("*.png")))
    with pytest.raises(CalibrationError, match="other images"):
        compressor(processor).calibrate(vit, str(cats[0]), cats[1])


def test_images_that_are_moved_renamed_or_not_used_make_no_difference(
    tmp_path: Path, vit: PreTrainedModel, processor: ViTImageProcessorPil, cats: tuple[Path, Path]
) -> None:
    known = Statistics.load(cats[1])
    moved = cats[0].rename(tmp_path / "photos")
    again = compressor(processor).calibrate(vit, str(moved), cats[1])
    assert same(again, known)
    (moved / "notes.txt").write_text("of no use")
    assert same(compressor(processor).calibrate(vit, str(moved), cats[1]), known)


def test_another_budget_and_method_take_what_is_there(
    vit: PreTrainedModel, processor: ViTImageProcessorPil, cats: tuple[Path, Path]
) -> None:
    before = Statistics.load(cats[1])
    for changes in ({"keep_ratio": 0.4}, {"attention": "low_rank"}, {"compensation": "residual"}):
        other = compressor(processor, **changes)
        other.compress(vit, str(cats[0]), checkpoint=cats[1])
        assert other.statistics is not None
        assert same(other.statistics, before)


def test_complete_statistics_are_of_images_in_any_order(vit: PreTrainedModel, pixels: Tensor, tmp_path: Path) -> None:
    known = run(vit, pixels, config(), tmp_path / "c")
    assert same(run(vit, pixels.flip(0), config(), tmp_path / "c"), known)


@pytest.mark.usefixtures("eager_checkpoints")
def test_a_calibration_goes_on_in_its_own_order_only(vit: PreTrainedModel, pixels: Tensor, tmp_path: Path) -> None:
    interrupted(vit, pixels, 70, config(), tmp_path / "c")
    with pytest.raises(CalibrationError, match=r"other images \(order"):
        run(vit, pixels.flip(0), config(), tmp_path / "c")


@pytest.mark.usefixtures("eager_checkpoints")
def test_a_calibration_is_not_continued_by_another_version(
    vit: PreTrainedModel, pixels: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(vit, pixels, 70, config(), tmp_path / "begun")
    complete = run(vit, pixels, config(), tmp_path / "complete")
    monkeypatch.setattr(identity, "__version__", "99.0")
    with pytest.raises(CalibrationError, match=r"another version of this package \(version .*, now 99\.0\)"):
        run(vit, pixels, config(), tmp_path / "begun")
    assert same(run(vit, pixels, config(), tmp_path / "complete"), complete)


def test_a_checkpoint_without_an_image_is_begun_again(vit: PreTrainedModel, pixels: Tensor, tmp_path: Path) -> None:
    Statistics(settings={"images": 5}).save(tmp_path / "c")
    assert run(vit, pixels[:32], config(), tmp_path / "c").images == 32


FUNCTION: dict[str, Any] = {"hidden_act": "relu", "layer_norm_eps": 1e-3, "pooler_act": "relu"}
NOTATION: dict[str, Any] = {
    "id2label": {index: f"class {index}" for index in range(5)},
    "hidden_dropout_prob": 0.1,
    "initializer_range": 0.5,
    "name_or_path": "somewhere",
    "transformers_version": "99",
    "problem_type": "single_label_classification",
}


@pytest.mark.parametrize("name", FUNCTION)
def test_another_config_is_refused_by_every_stage(
    name: str, vit: PreTrainedModel, pixels: Tensor, tmp_path: Path
) -> None:
    statistics = compressor().calibrate(vit, pixels, tmp_path / "c")
    other = seeded(ViTForImageClassification, tiny_config(**{name: FUNCTION[name]}))
    other.load_state_dict(vit.state_dict())
    with pytest.raises(CalibrationError, match=rf"another config of the model \({name}"):
        compressor().calibrate(other, pixels, tmp_path / "c")
    with pytest.raises(CalibrationError, match=rf"collected from another config of the model \({name}"):
        compressor().compress(other, statistics=statistics)


def test_what_only_names_or_trains_a_model_makes_no_difference(vit: PreTrainedModel) -> None:
    known = subject_identity(Subject.alone(vit))
    for name, value in NOTATION.items():
        setattr(vit.config, name, value)
    vit.set_attn_implementation("eager")
    vit.train()
    assert subject_identity(Subject.alone(vit)) == known


def test_what_the_whole_reads_of_a_model_counts(vit: PreTrainedModel) -> None:
    alone = Subject.alone(vit)
    read = [Subject(vit, vit, reading=reading) for reading in (Reading((1,)), Reading((0,)), Reading((1,), 1))]
    found = [subject_identity(subject) for subject in (alone, *read)]
    assert all(one != other for i, one in enumerate(found) for other in found[:i])


PIXELS: dict[str, Any] = {
    "image_mean": [0.4, 0.5, 0.5],
    "image_std": [0.2, 0.2, 0.2],
    "resample": 0,
    "do_normalize": False,
    "size": {"height": 8, "width": 8},
}


@pytest.mark.parametrize("name", PIXELS)
def test_another_image_processor_is_refused_by_every_stage(
    name: str, vit: PreTrainedModel, processor: ViTImageProcessorPil, cats: tuple[Path, Path]
) -> None:
    other = ViTImageProcessorPil(**{**processor.to_dict(), name: PIXELS[name]})
    with pytest.raises(CalibrationError, match=rf"another image processor \({name}"):
        compressor(other).calibrate(vit, str(cats[0]), cats[1])
    with pytest.raises(
        CalibrationError, match=rf"another image processor \({name}.*give what they were collected from"
    ):
        compressor(other).compress(vit, statistics=Statistics.load(cats[1]))


def test_another_sort_of_processor_is_another(processor: ViTImageProcessorPil) -> None:
    other = CLIPImageProcessorPil(**processor.to_dict())
    assert processor_facts(other)["sort"] != processor_facts(processor)["sort"]


def test_the_library_that_does_the_work_makes_no_difference(processor: ViTImageProcessorPil) -> None:
    class ViTImageProcessor(ViTImageProcessorPil):
        pass

    class ViTImageProcessorFast(ViTImageProcessorPil):
        pass

    forms = [ViTImageProcessorPil, ViTImageProcessor, ViTImageProcessorFast]
    found = [processor_facts(form(**processor.to_dict()))["sort"] for form in forms]
    assert found == ['"ViTImageProcessor"'] * 3


def test_ready_tensors_have_no_processor(
    vit: PreTrainedModel, processor: ViTImageProcessorPil, pixels: Tensor, tmp_path: Path
) -> None:
    statistics = compressor(processor).calibrate(vit, pixels, tmp_path / "c")
    assert PROCESSOR not in statistics.identity
    other = ViTImageProcessorPil(size={"height": 8, "width": 8})
    assert same(compressor(other).calibrate(vit, pixels, tmp_path / "c"), statistics)
    compressor(other).compress(vit, statistics=statistics)


def test_without_a_processor_there_is_nothing_to_compare(vit: PreTrainedModel, cats: tuple[Path, Path]) -> None:
    compressor().compress(vit, statistics=Statistics.load(cats[1]))


def test_given_statistics_are_used_with_other_images_to_compensate_on(
    vit: PreTrainedModel, processor: ViTImageProcessorPil, pixels: Tensor, cats: tuple[Path, Path]
) -> None:
    other = compressor(processor, compensation="residual", num_images=32)
    other.compress(vit, pixels, statistics=Statistics.load(cats[1]))
    assert other.report is not None
    assert other.report.compensation is not None


def test_statistics_that_say_nothing_of_their_model_are_refused(vit: PreTrainedModel, pixels: Tensor) -> None:
    statistics = compressor().calibrate(vit, pixels)
    statistics.identity.clear()
    with pytest.raises(CalibrationError, match="collected from another model"):
        compressor().compress(vit, statistics=statistics)


def test_labels_tell_images_apart_where_the_loss_is_of_them(
    vit: PreTrainedModel, pixels: Tensor, tmp_path: Path
) -> None:
    one, other = (ImageSource(list(pixels), [shift] * len(pixels), "x") for shift in (0, 1))
    run(vit, one, config(), tmp_path / "output")
    run(vit, other, config(), tmp_path / "output")
    run(vit, one, config(calibration_loss="task"), tmp_path / "task")
    with pytest.raises(CalibrationError, match="other images"):
        run(vit, other, config(calibration_loss="task"), tmp_path / "task")


def test_moments_of_another_shape_are_named_with_their_layer(vit: PreTrainedModel, pixels: Tensor) -> None:
    statistics = compressor().calibrate(vit, pixels)
    name = next(iter(statistics.gradients))
    statistics.gradients[name].second = torch.full_like(statistics.gradients[name].second, torch.nan)
    with pytest.raises(CalibrationError, match=rf"{name}.*not finite"):
        compressor().compress(vit, statistics=statistics)


def test_images_that_were_left_out_may_be_repaired_or_damaged_in_another_way(
    tmp_path: Path, vit: PreTrainedModel, processor: ViTImageProcessorPil, some: list[Image.Image]
) -> None:
    folder = in_folders(tmp_path / "photos", some, LABELS)
    broken, sound = sorted(folder.rglob("*.png"))[3:5]
    whole = broken.read_bytes()

    def calibrated(checkpoint: Path) -> Statistics:
        return compressor(processor).calibrate(vit, str(folder), checkpoint)

    broken.write_bytes(b"no image")
    with pytest.warns(DataWarning, match="1 of 24 images"):
        first = calibrated(tmp_path / "stats")
    broken.write_bytes(b"no image either")
    with pytest.warns(DataWarning, match="1 of 24 images"):
        assert same(calibrated(tmp_path / "stats"), first)
    broken.write_bytes(whole)
    repaired = calibrated(tmp_path / "stats")
    assert (repaired.images, repaired.bad_images) == (24, 0)
    assert same(repaired, calibrated(tmp_path / "new"))
    sound.write_bytes(whole)
    with pytest.raises(CalibrationError, match="other images"):
        calibrated(tmp_path / "stats")
