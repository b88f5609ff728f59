"""Calibration that is interrupted goes on with the same bits; other checkpoints are refused."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel, ViTForImageClassification, ViTImageProcessorPil

from hf_vitcompress.architectures.layers import find_layers
from hf_vitcompress.architectures.subject import Subject
from hf_vitcompress.compressor import ViTCompressor
from hf_vitcompress.errors import CalibrationError, DataWarning
from hf_vitcompress.images.images import ImageSource
from hf_vitcompress.images.sources import open_images
from hf_vitcompress.statistics import calibration
from hf_vitcompress.statistics.calibration import calibrate
from hf_vitcompress.statistics.statistics import Statistics
from support.calibrations import Poisoned, config, every_mlp, interrupted, run
from support.models import seeded, tiny_config
from support.moments import same
from support.processes import environment
from support.stages import quiet


@pytest.mark.usefixtures("eager_checkpoints")
@every_mlp
@pytest.mark.parametrize("metric", ["fisher", "row_fisher", "activation", "weight"])
def test_interrupted_calibration_ends_with_the_same_bits(
    vit: PreTrainedModel, pixels: Tensor, tmp_path: Path, metric: str, mlp: str
) -> None:
    settings, checkpoint = config(metric=metric, precision="bfloat16", batch_size=8, mlp=mlp), tmp_path / "c"
    interrupted(vit, pixels, 45, settings, checkpoint)
    first = Statistics.load(checkpoint)
    assert first.images == 40
    interrupted(vit, pixels, 85, settings, checkpoint)
    second = Statistics.load(checkpoint)
    assert second.images == 80
    resumed = run(vit, pixels, settings, checkpoint=checkpoint)
    assert same(resumed, run(vit, pixels, settings))
    assert resumed.timing["calibrate"] > second.timing["calibrate"] > first.timing["calibrate"] > 0


@pytest.mark.usefixtures("eager_checkpoints")
@pytest.mark.parametrize("bad", [{3, 20, 40}, {1, *range(8, 16), 30}, {*range(16), 47}, {0, *range(40, 48)}])
def test_unreadable_images_are_counted_once_across_an_interruption(
    vit: PreTrainedModel,
    processor: ViTImageProcessorPil,
    pictures: list[Image.Image],
    tmp_path: Path,
    bad: set[int],
) -> None:
    images = [b"" if i in bad else picture for i, picture in enumerate(pictures)]
    settings, checkpoint = config(batch_size=4), tmp_path / "c"
    with pytest.raises(KeyboardInterrupt):
        run(vit, ImageSource(Poisoned(images, 25), None, "x"), settings, checkpoint, processor)
    assert Statistics.load(checkpoint).bad_images == len([i for i in bad if i < 24])
    with pytest.warns(DataWarning, match=f"{len(bad)} of 48 images of x cannot be read.*image {min(bad)} of x"):
        resumed = run(vit, ImageSource(images, None, "x"), settings, checkpoint, processor)
    assert (resumed.images, resumed.bad_images) == (48 - len(bad), len(bad))
    with pytest.warns(DataWarning):
        assert same(resumed, run(vit, ImageSource(images, None, "x"), settings, processor=processor))


@pytest.mark.parametrize(("seconds", "saved_after"), [(-1.0, [64, 80, 96]), (1e9, [64, 96])])
def test_a_checkpoint_follows_four_batches_and_then_the_clock(
    vit: PreTrainedModel,
    pixels: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
    saved_after: list[int],
) -> None:
    saved: list[int] = []
    monkeypatch.setattr(calibration, "CHECKPOINT_SECONDS", seconds)
    monkeypatch.setattr(Statistics, "save", lambda statistics, path: saved.append(statistics.images))
    run(vit, pixels, config(), checkpoint=tmp_path / "c")
    assert saved == saved_after


KILLED = """
import os, pathlib, signal, sys, torch
from support.calibrations import config, run
from support.models import seeded, tiny_config
from transformers import ViTForImageClassification
from hf_vitcompress.statistics import calibration
from hf_vitcompress.images import ImageSource

class Killer(list):
    looked = False

    def __getitem__(self, index):
        if index == 70 and self.looked:
            os.kill(os.getpid(), signal.SIGKILL)
        self.looked = self.looked or index == 70
        return super().__getitem__(index)

calibration.CHECKPOINT_SECONDS = -1.0
torch.set_num_threads(int(sys.argv[2]))
model = seeded(ViTForImageClassification, tiny_config())
pixels = torch.randn(96, 3, 16, 16, generator=torch.Generator().manual_seed(2))
run(model, ImageSource(Killer(pixels), None, "the list of images"), config(), pathlib.Path(sys.argv[1]))
"""


def test_killed_process_is_continued_with_the_same_bits(vit: PreTrainedModel, pixels: Tensor, tmp_path: Path) -> None:
    checkpoint = tmp_path / "c"
    arguments = [sys.executable, "-c", KILLED, str(checkpoint), str(torch.get_num_threads())]
    done = subprocess.run(arguments, env=environment(), capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert Statistics.load(checkpoint).images == 64
    assert same(run(vit, pixels, config(), checkpoint=checkpoint), run(vit, pixels, config()))


@pytest.mark.parametrize(
    "change",
    [
        {"metric": "activation"},
        {"token_weighting": 0.0},
        {"fisher_probes": 1},
        {"batch_size": 8},
        {"precision": "bfloat16"},
        {"seed": 1},
        {"on_bad_image": "error"},
        {"num_images": 64},
    ],
    ids=lambda change: next(iter(change)),
)
def test_checkpoint_of_other_settings_is_refused(
    vit: PreTrainedModel, pixels: Tensor, tmp_path: Path, change: dict[str, Any]
) -> None:
    settings = {"rank_multiple": 1, "measuring_images": 16}
    ViTCompressor(config(**settings), progress=False).calibrate(vit, pixels, checkpoint=tmp_path / "c")
    with pytest.raises(CalibrationError, match="other settings"):
        ViTCompressor(config(**{**settings, **change}), progress=False).calibrate(vit, pixels, tmp_path / "c")


@pytest.mark.usefixtures("eager_checkpoints")
@pytest.mark.parametrize(("then", "now"), [(["fc1"], None), (None, ["fc1"]), (["fc1"], ["fc2"])])
def test_checkpoint_of_other_layers_is_refused(
    vit: PreTrainedModel, pixels: Tensor, tmp_path: Path, then: list[str] | None, now: list[str] | None
) -> None:
    interrupted(vit, pixels, 70, config(), tmp_path / "c", targets=then)
    with pytest.raises(CalibrationError):
        calibrate(Subject.alone(vit), find_layers(vit, now), open_images(pixels), quiet(config()), tmp_path / "c")


@pytest.mark.usefixtures("eager_checkpoints")
def test_checkpoint_of_other_weights_is_refused(vit: PreTrainedModel, pixels: Tensor, tmp_path: Path) -> None:
    run(vit, pixels, config(), checkpoint=tmp_path / "c")
    other = seeded(ViTForImageClassification, tiny_config(), seed=1)
    with pytest.raises(CalibrationError, match="another model"):
        run(other, pixels, config(), checkpoint=tmp_path / "c")


def test_damaged_checkpoint_is_refused_and_kept(vit: PreTrainedModel, pixels: Tensor, tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(b"half a file")
    with pytest.raises(CalibrationError, match="not a complete statistics file"):
        run(vit, pixels, config(), checkpoint=tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == b"half a file"


def test_a_checkpoint_from_before_shapes_were_noted_is_continued(
    vit: PreTrainedModel, pixels: Tensor, tmp_path: Path
) -> None:
    older = run(vit, pixels[:32], config())
    del older.settings["image_shape"]
    older.save(tmp_path / "c")
    assert same(run(vit, pixels[:32], config(), checkpoint=tmp_path / "c"), older)
    assert older.image_shape is None
