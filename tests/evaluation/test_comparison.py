"""What is compared of two checkpoints, and for which images."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from transformers import PreTrainedModel, ViTImageProcessorPil

from hf_vitcompress.evaluation import comparison
from hf_vitcompress.evaluation.comparison import Candidate, compare
from hf_vitcompress.evaluation.costs import count_costs
from hf_vitcompress.images.sources import open_images
from support.zoo import HEADS


@pytest.mark.filterwarnings("ignore:1 of 7 images of images cannot be read:hf_vitcompress.errors.DataWarning")
def test_costs_and_times_are_for_the_images_that_are_judged(
    pictures: list[Image.Image], processor: ViTImageProcessorPil, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The config is for larger ones than the processor makes; the first that is there cannot be read."""
    head = next(head for head in HEADS if head.name == "Dinov2ForImageClassification")
    model = replace(head, settings={**head.settings, "image_size": 56}).dense()
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"broken")
    for i, picture in enumerate(pictures[:6]):
        picture.save(tmp_path / "images" / f"b{i}.png")
    timed: list[Any] = []
    monkeypatch.setattr(comparison, "measure_latency", lambda *_, shape: timed.append(shape))
    candidate, images = Candidate.load(str(tmp_path / "model")), open_images(tmp_path / "images")
    figures = compare(candidate, candidate, images, processor, batch_size=1, progress=False)
    assert figures.costs == figures.dense_costs == count_costs(model, (3, 16, 16)) != count_costs(model)
    assert figures.evaluation.bad_images == 1
    assert (timed, figures.latency) == ([], [])
    figures = compare(candidate, candidate, images, processor, latency=True, batch_size=4, progress=False)
    assert timed == [(3, 16, 16)] * 2
    assert len(figures.latency) == 2


def test_a_checkpoint_is_compared_with_its_name_and_size(
    vit: PreTrainedModel, processor: ViTImageProcessorPil, pixels: Tensor, tmp_path: Path
) -> None:
    vit.save_pretrained(tmp_path / "model")
    candidate = Candidate.load(str(tmp_path / "model"))
    assert candidate.disk_bytes == (tmp_path / "model" / "model.safetensors").stat().st_size
    figures = compare(candidate, candidate, open_images(pixels), progress=False)
    assert (figures.model, figures.against) == (candidate.name, candidate.name)
    assert (figures.disk_bytes, figures.dense_disk_bytes) == (candidate.disk_bytes, candidate.disk_bytes)
    assert figures.evaluation.agreement is not None
    assert figures.evaluation.agreement.value == 1


@pytest.mark.filterwarnings("ignore:.*no better than guessing:hf_vitcompress.errors.DataWarning")
def test_without_a_dense_model_nothing_is_said_of_it(vit: PreTrainedModel, pixels: Tensor) -> None:
    batches = DataLoader(TensorDataset(pixels, torch.zeros(96).long()), batch_size=32)
    figures = compare(Candidate("me/vit", vit, None), None, open_images(batches), latency=True, progress=False)
    assert (figures.against, figures.dense_costs, figures.dense_disk_bytes, figures.latency) == (None, None, None, [])
    assert figures.costs == count_costs(vit)
    assert figures.evaluation.top1 is not None
