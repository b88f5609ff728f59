"""For which images two checkpoints are compared."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import ViTImageProcessorPil

from hf_vitcompress.evaluation import comparison
from hf_vitcompress.evaluation.comparison import compare_checkpoints
from hf_vitcompress.evaluation.costs import count_costs
from support.zoo import HEADS


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
    name = str(tmp_path / "model")
    _, figures = compare_checkpoints(name, str(tmp_path / "images"), name, batch_size=1, progress=False)
    assert figures.costs == figures.dense_costs == count_costs(model, (3, 16, 16)) != count_costs(model)
    assert figures.evaluation.bad_images == 1
    monkeypatch.setattr(comparison, "comparison_rows", lambda *_: [])
    compare_checkpoints(name, str(tmp_path / "images"), name, latency=True, batch_size=4, progress=False)
    assert timed == [(3, 16, 16)] * 2
