"""Searching an accuracy drop with compensation."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_vitcompress import CompressionPlan, ViTCompressor
from hf_vitcompress.compensation.compensator import Compensator
from hf_vitcompress.compensation.trials import TRIAL_SHARE
from hf_vitcompress.errors import BudgetError
from hf_vitcompress.images.images import ImageSource
from hf_vitcompress.model.shapes import layout_of
from hf_vitcompress.planning.plan import SearchReport
from support.compensated import IMAGES, done, new
from support.stages import quiet
from support.students import changed, logits, random_images, state_of

DROP = {"keep_ratio": None, "max_accuracy_drop": 0.2, "compensation_duration": "16 epochs"}


def searched(dense: PreTrainedModel, file: Path | None = None, **changes: Any) -> tuple[PreTrainedModel, ViTCompressor]:
    compressor = new(**DROP, **changes)
    images, validation = random_images(IMAGES), random_images(60, seed=8)
    return compressor.compress(dense, images, validation=validation, checkpoint=file), compressor


def test_with_compensation_an_accuracy_drop_allows_a_smaller_model(dense: PreTrainedModel) -> None:
    assert searched(dense)[0].num_parameters() < searched(dense, compensation="none")[0].num_parameters()


def test_the_trial_of_the_chosen_plan_holds_the_drop(dense: PreTrainedModel, tmp_path: Path) -> None:
    small, compressor = searched(dense, tmp_path / "file")
    layers = layout_of(small)
    search = next(path for path in compressor.checkpoints if ".search-" in path.name)
    drops = torch.load(search, weights_only=True)["state"]
    drop = drops[json.dumps(layers, sort_keys=True)]
    assert drop <= 0.2 < max(drops.values())
    assert compressor.report is not None
    assert compressor.report.search == SearchReport(drop, 60, labelled=False, compensated=True)
    # The same once more by hand.
    statistics, plan = compressor.statistics, CompressionPlan(layers)
    assert statistics is not None
    images = ImageSource(list(random_images(IMAGES)), None, "the list of images").sample(None, 0)
    planner = compressor.planner(dense, statistics)
    student = compressor.build(dense, statistics, plan)
    Compensator(planner, images, quiet(compressor.config)).run(student, plan, TRIAL_SHARE)
    validation = random_images(60, seed=8)
    differ = logits(student, validation).argmax(-1) != logits(dense, validation).argmax(-1)
    assert float(differ.double().mean()) == pytest.approx(drop)


def test_no_candidate_of_a_search_is_tried_twice(
    dense: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares: list[float] = []
    run = Compensator.run

    def running(self: Compensator, student: PreTrainedModel, plan: CompressionPlan, share: float = 1.0) -> Any:
        if len(shares) == 3:
            shares.clear()
            raise KeyboardInterrupt
        shares.append(share)
        return run(self, student, plan, share)

    with monkeypatch.context() as patch:
        patch.setattr(Compensator, "run", running)
        with pytest.raises(KeyboardInterrupt):
            searched(dense, tmp_path / "file")
    first, compressor = searched(dense, tmp_path / "file")
    search = next(path for path in compressor.checkpoints if ".search-" in path.name)
    assert len(torch.load(search, weights_only=True)["state"]) > 3
    monkeypatch.setattr(Compensator, "run", running)
    second, _ = searched(dense, tmp_path / "file")
    assert shares == [1.0]
    assert not changed(state_of(first), second)


def test_an_accuracy_drop_holds_out_images_and_compensates_on_the_others(
    dense: PreTrainedModel, images: Tensor
) -> None:
    compressor = new(**DROP, validation_images=30)
    compressor.compress(dense, images)
    assert done(compressor).images + done(compressor).held_out_images == IMAGES - 30


def test_a_search_without_images_to_compensate_on_says_so(dense: PreTrainedModel, images: Tensor) -> None:
    compressor = new(**DROP)
    statistics = compressor.calibrate(dense, images)
    with pytest.raises(BudgetError, match=r"images to compensate on.*compensation=\"none\""):
        compressor.plan(dense, statistics, validation=images)
