"""Compression by importance scores, learned or given."""

import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hf_vitcompress import CompressionConfig, Statistics, ViTCompressor
from hf_vitcompress.errors import ConfigError, DataError
from hf_vitcompress.planning.selection import selection_method
from support.gated import CONFIG, FAST, FC2, OUT, PIXELS, SMALL, small
from support.students import lively, logits, state_of

pytestmark = pytest.mark.filterwarnings("ignore::hf_vitcompress.errors.BudgetWarning")  # heads come whole

RISING = {FC2: torch.arange(24.0), OUT: torch.tensor([1.0, 2.0])}
FALLING = {name: own.flip(0) for name, own in RISING.items()}


@pytest.mark.parametrize("preset", ["vtp", "kumar2022"])
def test_presets_compress_by_scores_they_learn(preset: str, tmp_path: Path) -> None:
    settings = {
        **FAST,
        "gate_duration": "1.0 epochs",
        "max_params": 2400,
        "compensation_duration": "1.0 epochs",
        "held_out_images": 8,
    }
    config = CompressionConfig.preset(preset, **settings)
    compressor = ViTCompressor(config, progress=False)
    dense = small()
    pruned = compressor.compress(dense, PIXELS, checkpoint=tmp_path / "stats")
    report = compressor.report
    assert report is not None
    assert 2100 < report.compressed.parameters <= 2400
    assert report.gates is not None
    assert [layer.name for layer in report.gates.layers] == list(compressor.importance or {})
    assert (OUT in (compressor.importance or {})) is (preset == "vtp")
    shapes = pruned.config.compression["layers"]
    assert "in_features" in shapes[FC2]
    best = compressor.importance[FC2].abs().argsort(descending=True, stable=True)[: shapes[FC2]["in_features"]]
    config = CompressionConfig.from_dict({**config.to_dict(), "compensation": "none"})
    again = ViTCompressor(config, progress=False, importance=compressor.importance).compress(dense, PIXELS)
    expected = dense.get_submodule(FC2).weight[:, best.sort().values]
    torch.testing.assert_close(again.get_submodule(FC2).weight, expected)
    assert "below 0.5" in str(report)
    report.save(tmp_path)
    saved = json.loads((tmp_path / "compression_report.json").read_text(encoding="utf-8"))["gates"]
    assert saved["points"][-1]["near_zero"] == report.gates.near_zero
    assert [path for path in compressor.checkpoints if ".gates-" in path.name]


def test_scores_are_learned_once_for_a_model() -> None:
    compressor = ViTCompressor(CONFIG, progress=False)
    dense = small()
    statistics = compressor.calibrate(dense, PIXELS)
    first = compressor.importance
    compressor.compress(dense, PIXELS, statistics=statistics)
    assert compressor.importance is first
    fresh = ViTCompressor(CONFIG, progress=False)
    with pytest.raises(DataError, match="learns scores from images"):
        fresh.compress(dense, statistics=statistics)
    fresh.compress(dense, PIXELS, statistics=statistics)
    assert first is not None
    assert all(torch.equal(fresh.importance[name], own) for name, own in first.items())
    other = lively(config=SMALL, seed=3)
    compressor.compress(other, PIXELS)
    assert not torch.equal(compressor.importance[FC2], first[FC2])


def test_given_scores_are_used() -> None:
    compressor = ViTCompressor(CONFIG, importance=RISING, progress=False)
    dense = small()
    pruned = compressor.compress(dense, PIXELS)
    width = pruned.get_submodule(FC2).in_features
    torch.testing.assert_close(pruned.get_submodule(FC2).weight, dense.get_submodule(FC2).weight[:, 24 - width :])
    assert compressor.report is not None
    assert compressor.report.gates is None
    assert compressor.importance is RISING


def test_results_with_other_scores_are_not_taken_over(tmp_path: Path) -> None:
    """Of the same files; shapes are the same whatever the scores."""
    changes = {
        "measuring_images": 128,
        "compensation": "distill",
        "compensation_duration": "1.0 epochs",
        "held_out_images": 8,
    }
    config = CompressionConfig.from_dict({**CONFIG.to_dict(), **changes})
    weights, losses = [], []
    for importance, path in ((FALLING, None), (RISING, tmp_path / "stats"), (FALLING, tmp_path / "stats")):
        compressor = ViTCompressor(config, importance=importance, progress=False)
        weights.append(state_of(compressor.compress(small(), PIXELS, checkpoint=path)))
        losses.append(compressor.report.predicted_loss)
    assert all(torch.equal(own, weights[0][name]) for name, own in weights[2].items())
    assert not torch.equal(weights[1][f"{FC2}.weight"], weights[0][f"{FC2}.weight"])
    assert losses[2] == losses[0] != losses[1]
    assert len(Statistics.load(tmp_path / "stats").corrections) == 2
    assert len(list(tmp_path.glob("stats.distill-*"))) == 2


def test_a_compressor_that_is_given_other_scores_solves_again() -> None:
    compressor, dense = ViTCompressor(CONFIG, importance=RISING, progress=False), small()
    statistics = compressor.calibrate(dense, PIXELS)

    def order() -> Tensor:
        groups = compressor.planner(dense, statistics).groups
        return next(group for group in groups if group.role == "mlp").solution.order

    first = order()
    assert order() is first  # nothing is solved twice
    compressor.importance = FALLING
    assert torch.equal(order(), first.flip(0))


def test_scores_name_what_depends_on_them() -> None:
    method = selection_method(CONFIG, RISING)
    assert re.fullmatch(rf"{CONFIG.method}/[0-9a-f]{{12}}", method)
    assert selection_method(CONFIG, dict(reversed(RISING.items()))) == method
    nearly = RISING[FC2].clone()
    nearly[3] += 1e-5
    for other in (FALLING, {FC2: RISING[FC2]}, {**RISING, FC2: nearly}, {FC2 + "x": RISING[FC2], OUT: RISING[OUT]}):
        assert selection_method(CONFIG, other) != method
    assert selection_method(CONFIG, None) == CONFIG.method
    plain = CompressionConfig(criterion="magnitude")
    assert selection_method(plain, RISING) == plain.method


@pytest.mark.parametrize("metric", ["weight", "activation", "row_fisher", "fisher"])
@pytest.mark.parametrize("repair", [True, False])
def test_every_metric_prunes_by_scores(metric: str, repair: bool) -> None:
    values = {**CONFIG.to_dict(), "metric": metric, "repair": repair, "correct_bias": repair}
    config = CompressionConfig.from_dict(values)
    pruned = ViTCompressor(config, importance=RISING, progress=False).compress(small(), PIXELS)
    assert logits(pruned, PIXELS).isfinite().all()


def test_settings_are_checked() -> None:
    for wrong in (
        {"gate_duration": "0 minutes"},
        {"gate_duration": "0.0 epochs"},
        {"gate_l1": -1.0},
        {"gate_learning_rate": 0.0},
    ):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            CompressionConfig.from_dict(wrong)
