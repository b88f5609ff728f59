"""Which images compensation learns from and is judged on, and how long it takes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import hf_vitcompress.compensation.distillation
from hf_vitcompress.compensation.compensator import Compensator
from hf_vitcompress.compensation.course import CompensationPoint
from hf_vitcompress.compensation.distillation import Distillation
from hf_vitcompress.compensation.residual import ResidualCompensation
from hf_vitcompress.durations import Duration
from hf_vitcompress.errors import DataError
from hf_vitcompress.images.images import ImageSource
from hf_vitcompress.runtime.checkpoints import Checkpoint
from support.compensated import IMAGES, JUDGES, RECIPE, done, every_method, new
from support.stages import quiet
from support.students import HELD_OUT, compressed


def compensator(**changes: Any) -> Compensator:
    case = compressed(**{**RECIPE, **changes})
    return Compensator(case.prepared, case.train, quiet(case.config))


@pytest.mark.parametrize(
    ("settings", "learn", "judge"),
    [
        ({}, 58, 14),
        ({"held_out_images": 5}, 67, 5),
        ({"held_out_images": 50}, 58, 14),
        ({"compensation_images": 20}, 20, 14),
        ({"compensation_images": 20, "held_out_images": 4}, 20, 4),
        ({"compensation_images": 1000}, 58, 14),
    ],
)
def test_the_last_images_judge_and_the_first_teach(settings: dict[str, Any], learn: int, judge: int) -> None:
    case = compressed(**{**RECIPE, **settings})
    compensator = Compensator(case.prepared, case.train, quiet(case.config))
    given = [float(image[0, 0, 0]) for image in case.train.images]
    assert len(given) == IMAGES - HELD_OUT == 72
    assert [float(image[0, 0, 0]) for image in compensator.train.images] == given[:learn]
    judges = torch.cat([batch.pixel_values for batch in compensator.reference.batches])
    assert judges[:, 0, 0, 0].tolist() == given[72 - judge :]


def test_the_residual_takes_as_many_images_as_calibration(dense: PreTrainedModel, images: Tensor) -> None:
    compressor = new(num_images=40)
    compressor.compress(dense, images)
    report = done(compressor)
    assert report.images == IMAGES - JUDGES
    assert {point.images for point in report.points if point.stage == "residual"} == {0, 40}


def test_two_images_are_enough(dense: PreTrainedModel, images: Tensor) -> None:
    compressor = new(compensation_duration="1 epochs")
    statistics = compressor.calibrate(dense, images)
    compressor.compress(dense, images[:2], statistics=statistics)
    assert (done(compressor).images, done(compressor).held_out_images) == (1, 1)


def test_one_image_is_not_enough(dense: PreTrainedModel, images: Tensor) -> None:
    compressor = new()
    statistics = compressor.calibrate(dense, images)
    with pytest.raises(DataError, match=r"at least two images.*the tensor has 1"):
        compressor.compress(dense, images[:1], statistics=statistics)


@every_method
def test_without_images_it_says_what_is_missing(method: str, dense: PreTrainedModel, images: Tensor) -> None:
    compressor = new(compensation=method)
    statistics = compressor.calibrate(dense, images)
    with pytest.raises(DataError, match=rf"compensation='{method}' learns from images.*compensation=\"none\""):
        compressor.compress(dense, statistics=statistics)


def test_held_out_images_of_which_none_can_be_read_are_refused(dense: PreTrainedModel, images: Tensor) -> None:
    compressor = new()
    statistics = compressor.calibrate(dense, images)
    order = list(ImageSource(list(range(IMAGES)), None, "numbers").sample(None, 0).images)
    broken: list[Any] = list(images)
    for i in order[-JUDGES:]:
        broken[i] = b"no image"
    with pytest.raises(DataError, match=f"None of the {JUDGES} images"):
        compressor.compress(dense, broken, statistics=statistics)


@pytest.mark.filterwarnings("ignore:.*of the list of images cannot be read:hf_vitcompress.errors.DataWarning")
def test_some_unreadable_images_are_no_obstacle(dense: PreTrainedModel, images: Tensor) -> None:
    broken: list[Any] = list(images)
    broken[::9] = [b"no image"] * len(broken[::9])
    compressor = new()
    compressor.compress(dense, broken)
    assert done(compressor).loss_after < done(compressor).loss_before
    assert done(compressor).held_out_images < JUDGES


def test_no_more_batches_are_read_than_are_needed(dense: PreTrainedModel, images: Tensor) -> None:
    read: list[int] = []

    class Loader:
        def __iter__(self) -> Iterator[Tensor]:
            for i in range(0, IMAGES, 8):
                read.append(i)
                yield images[i : i + 8]

    compressor = new(num_images=16, compensation_images=30, held_out_images=10, validation_images=8)
    compressor.compress(dense, Loader())
    assert len(read) == 5  # 30 to learn from and 10 to judge by
    assert done(compressor).images == 30


def durations_given(monkeypatch: pytest.MonkeyPatch, residual_seconds: float = 0.0) -> list[Duration]:
    """What the distillation is told, when the residual takes so long."""
    given: list[Duration] = []

    def distill(_: Distillation, duration: Duration, __: Checkpoint) -> list[CompensationPoint]:
        given.append(duration)
        return [CompensationPoint("distill", 1.0, 0, 0.5)]

    point = CompensationPoint("residual", residual_seconds, 0, 1.0)
    monkeypatch.setattr(Distillation, "run", distill)
    monkeypatch.setattr(ResidualCompensation, "run", lambda *_: [point])
    return given


@pytest.mark.parametrize(
    ("settings", "share", "duration"),
    [
        ({"compensation": "distill", "compensation_duration": "3 minutes"}, 1.0, "3 minutes"),
        ({"compensation": "distill"}, 1.0, "5 minutes"),
        ({"compensation_duration": "3 minutes"}, 1.0, "2.5 minutes"),
        ({"compensation_duration": "4 minutes"}, 0.25, "0.5 minutes"),
        ({"compensation_duration": "2 epochs"}, 1.0, "2 epochs"),
    ],
)
def test_the_stages_share_the_minutes(
    settings: dict[str, Any], share: float, duration: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = durations_given(monkeypatch, residual_seconds=30.0)
    compensating = compensator(**{"compensation_duration": None, **settings})
    case = compressed(**RECIPE)
    report = compensating.run(case.student(), case.plan, share)
    assert given == [Duration.parse(duration)]
    seconds = [point.seconds for point in report.points]
    assert seconds == ([1.0] if settings.get("compensation") == "distill" else [30.0, 31.0])


def test_a_trial_takes_its_share_of_the_epochs_and_keeps_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = compressed(**{**RECIPE, "compensation_duration": "8 epochs"})
    compensating = Compensator(case.prepared, case.train, quiet(case.config), tmp_path / "file")
    steps: list[int] = []
    take = Distillation.gradients
    monkeypatch.setattr(hf_vitcompress.compensation.distillation, "PATIENCE", 99)
    monkeypatch.setattr(Distillation, "gradients", lambda self, step: steps.append(step) or take(self, step))
    compensating.run(case.student(), case.plan, share=1 / 4)
    assert len(steps) == 2 * (58 // 16)
    assert not compensating.checkpoints
    assert not list(tmp_path.iterdir())
