"""What progress bars say: what they count, of how many, and nothing where nobody asked."""

import re

import pytest
from torch import Tensor
from transformers import PreTrainedModel

from hf_vitcompress import CompressionConfig, ViTCompressor
from hf_vitcompress.evaluation.evaluation import evaluate_model
from hf_vitcompress.images.sources import open_images
from hf_vitcompress.runtime.run import progress_bar

BAR = re.compile(r"([\w ]+): +(\d+)%\|.*?\| (\d+)/(\d+) \[.*?([\d.?]+) ?(\w+)/s")
EVERY_STAGE = {
    "max_accuracy_drop": 0.5,
    "rank_multiple": 1,
    "precision": "float32",
    "measuring_images": 8,
    "mlp": "prune",
    "criterion": "gates",
    "gate_duration": "1 epoch",
    "compensation": "both",
    "compensation_duration": "1 epoch",
    "held_out_images": 4,
}


def bars(text: str) -> list[tuple[str, int, int, str]]:
    """(what is done, how many, of how many, unit) of every bar at its end."""
    found = []
    for line in text.strip().split("\n"):
        state = BAR.search(line.rpartition("\r")[2])
        assert state is not None, line
        found.append((state[1], int(state[3]), int(state[4]), state[6]))
    return found


def test_images_that_two_models_are_judged_on_are_counted_once(
    vit: PreTrainedModel, pixels: Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate_model(vit, open_images(pixels), against=vit)
    said = bars(capsys.readouterr().err)
    assert said == [("evaluating", 96, 96, "images")]


def test_every_stage_says_what_it_counts_and_ends_at_its_total(
    vit: PreTrainedModel, pixels: Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    ViTCompressor(CompressionConfig(**EVERY_STAGE)).compress(vit, pixels, validation=pixels[:8])
    said = bars(capsys.readouterr().err)
    assert {(doing, unit) for doing, _, _, unit in said} == {
        ("calibrating", "images"),
        ("learning scores", "images"),
        ("factorizing", "groups"),
        ("measuring", "models"),
        ("searching", "models"),
        ("solving residuals", "blocks"),
        ("distilling", "images"),
    }
    assert not [one for one in said if one[1] != one[2]]


def test_a_resumed_stage_counts_what_was_done_and_not_for_its_rate(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("calibrating", "images", True, total=1000, initial=900) as bar:
        bar.update(100)
        rate = bar.format_dict["rate"] or 100 / bar.format_dict["elapsed"]
        assert rate * bar.format_dict["elapsed"] < 200
    assert bars(capsys.readouterr().err)[-1] == ("calibrating", 1000, 1000, "images")


def test_quiet_leaves_none(vit: PreTrainedModel, pixels: Tensor, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {**EVERY_STAGE, "max_accuracy_drop": None, "compensation": "none", "criterion": "fisher"}
    small = ViTCompressor(CompressionConfig(**settings), progress=False).compress(vit, pixels)
    evaluate_model(small, open_images(pixels), against=vit, progress=False)
    assert capsys.readouterr().err == ""
