"""Tiny models and images; and the real ones, for tests that are skipped where they are absent."""

import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import pytest
import torch
import transformers
from PIL import Image
from transformers import (
    DeiTConfig,
    DeiTForImageClassification,
    PreTrainedModel,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

import hf_vitcompress  # noqa: F401  (registers the Auto classes)
from hf_vitcompress.report import figures
from support.models import ASSETS, TINY, seeded, tiny_config
from support.reports import Blank

if TYPE_CHECKING:
    from support.published import Made

transformers.utils.logging.disable_progress_bar()

DRAW = figures.compression_figure


def pytest_collection_finish() -> None:
    """Let garbage collections pass over what is imported and collected: each end of a training asks for a whole one.

    They come after twenty thousand new objects and not after seven hundred, of which a forward pass makes as many.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Tiny products are slower on several threads, and much slower where the machine is busy."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def no_waiting_for_disks() -> Iterator[None]:
    """A process sees what it has written; what a power failure leaves is not for these tests."""
    with mock.patch.object(os, "fsync"):
        yield


@pytest.fixture(autouse=True, scope="session")
def nothing_is_drawn() -> Iterator[mock.Mock]:
    with mock.patch.object(figures, "compression_figure", return_value=Blank()) as drawing:
        yield drawing


@pytest.fixture
def drawn(nothing_is_drawn: mock.Mock, monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of figures: they are drawn all the same."""
    monkeypatch.setattr(nothing_is_drawn, "side_effect", DRAW)


@pytest.fixture
def vit() -> PreTrainedModel:
    return seeded(ViTForImageClassification, tiny_config())


@pytest.fixture
def deit() -> PreTrainedModel:
    return seeded(DeiTForImageClassification, DeiTConfig(**TINY))


@pytest.fixture
def processor() -> ViTImageProcessorPil:
    return ViTImageProcessorPil(size={"height": 16, "width": 16})


@pytest.fixture
def pictures() -> list[Image.Image]:
    """48 random RGB images."""
    generator = torch.Generator().manual_seed(1)
    arrays = torch.randint(0, 256, (48, 16, 16, 3), generator=generator, dtype=torch.uint8).numpy()
    return [Image.fromarray(array) for array in arrays]


@pytest.fixture
def pixels() -> torch.Tensor:
    """96 random images, (96, 3, 16, 16)."""
    return torch.randn(96, 3, 16, 16, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> "Made":
    """A compressed model and the folder it was saved to, with all that belongs there; only to be read."""
    from support.published import make

    return make(tmp_path_factory.mktemp("made"))


@pytest.fixture
def folder(made: "Made", tmp_path: Path) -> Path:
    """A copy of that folder."""
    return Path(shutil.copytree(made.folder, tmp_path / "small"))


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of the real pretrained model and images."""
    if not (ASSETS / "vit-s14-cifar10" / "model.safetensors").is_file():
        pytest.skip(f"the real model is not in {ASSETS.name}/ beside the repository")
    return ASSETS
