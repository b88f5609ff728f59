"""Processes that are killed in the midst of a calibration; see `support.processes.alone`."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import ViTForImageClassification

from hf_vitcompress import cli
from hf_vitcompress.images import ImageSource
from hf_vitcompress.statistics import Statistics, calibration
from support.calibrations import config, run
from support.models import seeded, tiny_config


class Killer(list[Any]):
    """Images of which the one at 70 kills the process when it is read; to look at it once, to know it, is not that."""

    looked = False

    def __getitem__(self, index: Any) -> Any:
        if index == 70 and self.looked:
            os.kill(os.getpid(), signal.SIGKILL)
        self.looked = self.looked or index == 70
        return super().__getitem__(index)


def calibrate_and_die(checkpoint: Path) -> None:
    """After 64 of 96 images."""
    torch.set_num_threads(1)
    calibration.CHECKPOINT_SECONDS = -1.0
    pixels = torch.randn(96, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    model = seeded(ViTForImageClassification, tiny_config())
    run(model, ImageSource(Killer(pixels), None, "the tensor"), config(), checkpoint)


def run_and_die(arguments: list[str]) -> None:
    """`vitcompress …`, until statistics of 128 images are saved."""
    torch.set_num_threads(1)
    calibration.CHECKPOINT_SECONDS = 0
    save = Statistics.save

    def save_and_die(statistics: Statistics, path: Any) -> None:
        save(statistics, path)
        if statistics.images == 128:
            os.kill(os.getpid(), signal.SIGKILL)

    Statistics.save = save_and_die  # type: ignore[method-assign]
    sys.argv = ["vitcompress", *arguments]
    cli.main()
