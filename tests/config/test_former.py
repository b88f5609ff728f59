"""Recipes of earlier versions still load, and say what became of their settings."""

import warnings
from pathlib import Path
from typing import Any

import pytest

from hf_vitcompress import CompressionConfig
from hf_vitcompress.config import load_settings, renamed
from hf_vitcompress.errors import ConfigError, ConfigWarning

SAVED = """\
allocation: greedy
attention: joint
augmentation: true
batch_size: 16
cache_megabytes: 1024
calibration_loss: output
compensation: distill
compensation_minutes: 5.0
correct_bias: true
correct_curves: true
crop: 0.0
damping: 1.0e-06
distill_batch_size: 32
feature_weight: 20.0
fisher_probes: 2
gate_l1: 2.0
gate_learning_rate: 0.05
gate_minutes: 2.0
held_out_images: 256
keep_ratio: 0.4
label_weight: 0.0
learning_rate: 1.5e-05
measuring_images: 128
metric: fisher
mlp: auto
num_images: 1024
on_bad_image: skip
optimizer: preconditioned
precision: auto
rank_multiple: 8
repair: true
residual_share: 1.0
seed: 0
selector: fisher
skip_modules: []
temperature: 1.0
token_weighting: 0.2
validation_images: 512
"""
"""As an earlier version wrote it beside a model."""


def test_a_saved_recipe_loads_and_names_what_has_gone(tmp_path: Path) -> None:
    (tmp_path / "compression_recipe.yaml").write_text(SAVED)
    with pytest.warns(ConfigWarning) as caught:
        config = CompressionConfig.load(tmp_path / "compression_recipe.yaml")
    expected = {"keep_ratio": 0.4, "compensation": "distill", "compensation_duration": "5 minutes"}
    assert config == CompressionConfig(**expected, measuring_images=128, learning_rate=1.5e-5)  # defaults of then
    (warning,) = caught
    for name in ("selector", "compensation_minutes", "gate_minutes", "correct_curves", "crop", "cache_megabytes"):
        assert name in str(warning.message)


@pytest.mark.parametrize(
    ("former", "today", "message"),
    [
        ({"selector": "magnitude"}, {"criterion": "magnitude"}, "selector is called criterion now"),
        ({"compensation_minutes": 5}, {"compensation_duration": "5 minutes"}, "'5 minutes'"),
        ({"compensation_minutes": 2.5}, {"compensation_duration": "2.5 minutes"}, "compensation_duration"),
        ({"compensation_epochs": 2.0}, {"compensation_duration": "2 epochs"}, "compensation_duration"),
        ({"gate_minutes": 0.5}, {"gate_duration": "0.5 minutes"}, "gate_duration"),
        ({"gate_minutes": 2.0, "gate_epochs": 3}, {"gate_duration": "3 epochs"}, "gate_epochs and gate_minutes"),
        ({"gate_minutes": 2.0, "gate_epochs": None}, {"gate_duration": "2 minutes"}, "gate_duration"),
        ({"correct_curves": False}, {"measuring_images": 0}, "measuring_images"),
        ({"correct_curves": False, "measuring_images": 64}, {"measuring_images": 0}, "measuring_images"),
        ({"correct_curves": True, "measuring_images": 64}, {"measuring_images": 64}, "measuring_images"),
        ({"crop": 0.0}, {}, "crop is always 0 now"),
        ({"cache_megabytes": 1024}, {}, "cache_megabytes is always 1024 now"),
        ({"gate_learning_rate": 0.05}, {}, r"gate_learning_rate is always 0\.05 now"),
    ],
)
def test_a_former_setting_is_taken_up(former: dict[str, Any], today: dict[str, Any], message: str) -> None:
    with pytest.warns(ConfigWarning, match=message):
        config = CompressionConfig.from_dict(former)
    assert config == CompressionConfig(**today)


def test_a_former_setting_beats_the_preset() -> None:
    with pytest.warns(ConfigWarning):
        config = CompressionConfig.preset("vtp", selector="magnitude")
    assert config == CompressionConfig.preset("vtp", criterion="magnitude")


@pytest.mark.parametrize(
    "former",
    [{"crop": 0.25}, {"cache_megabytes": 64}, {"gate_learning_rate": 0.1}],
    ids=lambda former: next(iter(former)),
)
def test_another_value_of_what_is_a_constant_now_is_refused(former: dict[str, Any]) -> None:
    ((name, value),) = former.items()
    with pytest.raises(ConfigError, match=rf"{name} is no setting any more: it is always .*, not {value}"):
        CompressionConfig.from_dict(former)


@pytest.mark.parametrize(
    "both",
    [
        {"selector": "gates", "criterion": "fisher"},
        {"compensation_minutes": 5, "compensation_duration": "2 epochs"},
        {"gate_epochs": 5, "gate_duration": "2 epochs"},
    ],
)
def test_a_setting_under_both_names_is_refused(both: dict[str, Any]) -> None:
    former, today = both
    with pytest.raises(ConfigError, match=f"{former} and {today} are both given"):
        CompressionConfig.from_dict(both)


@pytest.mark.parametrize("value", [0, -1, float("inf"), "long", True])
def test_a_former_value_that_cannot_be_is_refused(value: Any) -> None:
    with pytest.warns(ConfigWarning), pytest.raises(ConfigError, match="compensation_duration"):
        CompressionConfig.from_dict({"compensation_minutes": value})


def test_a_metric_that_has_gone_is_refused() -> None:
    with pytest.raises(ConfigError, match="metric is one of weight, activation, row_fisher, fisher, not 'diagonal'"):
        CompressionConfig.from_dict({"metric": "diagonal"})


def test_settings_of_a_file_have_todays_names(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text('{"selector": "gates", "crop": 0, "seed": 3}')
    with pytest.warns(ConfigWarning):
        assert load_settings(tmp_path / "recipe.json") == {"criterion": "gates", "seed": 3}


def test_todays_settings_load_in_silence(tmp_path: Path) -> None:
    config = CompressionConfig.preset("kumar2022", compensation_duration="1 epoch")
    config.save(tmp_path / "recipe.yaml")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert CompressionConfig.load(tmp_path / "recipe.yaml") == config


def test_names_alone_can_be_brought_up_to_date() -> None:
    assert renamed({"selector": "gates", "crop": 0.3}) == {"criterion": "gates", "crop": 0.3}
