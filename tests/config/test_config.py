"""What a recipe accepts, refuses and writes to disk."""

import dataclasses
import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from hf_vitcompress import CompressionConfig
from hf_vitcompress.config import (
    BASELINES,
    BUDGETS,
    DEFAULT_KEEP_RATIO,
    OWN_PRESETS,
    PRESETS,
    load_settings,
)
from hf_vitcompress.durations import Duration
from hf_vitcompress.errors import ConfigError

EVERY_FIELD = {
    "max_params": 12345,
    "speedup": 1.5,
    "latency_batch_size": 32,
    "metric": "activation",
    "attention": "prune",
    "mlp": "low_rank",
    "tokens": "none",
    "criterion": "magnitude",
    "gate_duration": "1.5 epochs",
    "gate_l1": 1e-4,
    "repair": False,
    "allocation": "uniform",
    "correct_bias": False,
    "token_weighting": 0.75,
    "damping": 1e-9,
    "rank_multiple": 4,
    "target_modules": ["fc1", "layers.0.*"],
    "skip_modules": ["q_proj"],
    "num_images": 77,
    "batch_size": 5,
    "measuring_images": 6,
    "calibration_loss": "task",
    "fisher_probes": 3,
    "validation_images": 9,
    "compensation": "both",
    "residual_share": 0.5,
    "compensation_duration": "2.5 epochs",
    "compensation_images": 55,
    "held_out_images": 11,
    "optimizer": "adamw",
    "learning_rate": 2e-4,
    "distill_batch_size": 8,
    "temperature": 2.0,
    "feature_weight": 0.0,
    "label_weight": 0.5,
    "augmentation": False,
    "precision": "float32",
    "on_bad_image": "error",
    "seed": 4,
}


def test_without_a_budget_half_the_parameters_are_kept() -> None:
    config = CompressionConfig()
    assert config.budgets == {"keep_ratio": 0.5}
    assert config.keep_ratio == DEFAULT_KEEP_RATIO == 0.5


@pytest.mark.parametrize("name", BUDGETS)
def test_one_budget_is_the_budget_in_force(name: str) -> None:
    config = CompressionConfig(**{name: 1})
    assert config.budgets == {name: 1}
    assert [other for other in BUDGETS if getattr(config, other) is not None] == [name]


@pytest.mark.parametrize("second", BUDGETS[1:-1])
def test_several_budgets_hold_at_once(second: str) -> None:
    config = CompressionConfig(keep_ratio=0.5, **{second: 1})
    assert config.budgets == {"keep_ratio": 0.5, second: 1}
    assert CompressionConfig(**dict.fromkeys(BUDGETS[:-1], 1)).budgets == dict.fromkeys(BUDGETS[:-1], 1)


@pytest.mark.parametrize("second", BUDGETS[:-1])
def test_an_accuracy_drop_stands_alone(second: str) -> None:
    with pytest.raises(ConfigError, match=f"{second} and max_accuracy_drop.*stands alone"):
        CompressionConfig(max_accuracy_drop=0.01, **{second: 1})


@pytest.mark.parametrize(("name", "times"), [("speedup", True), ("max_latency_ms", True), ("max_macs", False)])
def test_budgets_of_time_are_known_as_such(name: str, times: bool) -> None:
    assert CompressionConfig(**{name: 9}).times is times
    assert CompressionConfig(keep_ratio=0.5, **{name: 9}).times is times
    assert not CompressionConfig(latency_batch_size=4).times


def test_another_budget_keeps_the_batch_that_latency_is_of() -> None:
    config = CompressionConfig(speedup=2.0, keep_ratio=0.5, latency_batch_size=32).with_budget(max_latency_ms=3.5)
    assert config == CompressionConfig(max_latency_ms=3.5, latency_batch_size=32)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("keep_ratio", 0),
        ("keep_ratio", 1.01),
        ("keep_ratio", -0.5),
        ("keep_ratio", float("nan")),
        ("keep_ratio", "half"),
        ("keep_ratio", True),
        ("max_params", 0),
        ("max_params", 1000.5),
        ("max_macs", -1),
        ("max_macs", "many"),
        ("speedup", 0.99),
        ("speedup", float("inf")),
        ("speedup", "2x"),
        ("max_latency_ms", 0),
        ("max_latency_ms", -3.0),
        ("max_latency_ms", float("nan")),
        ("latency_batch_size", 0),
        ("latency_batch_size", 1.5),
        ("latency_batch_size", None),
        ("max_accuracy_drop", -0.01),
        ("max_accuracy_drop", 2),
        ("metric", "hessian"),
        ("metric", "diagonal"),
        ("metric", None),
        ("allocation", "gready"),
        ("attention", "shared"),
        ("attention", None),
        ("mlp", "joint"),
        ("mlp", None),
        ("criterion", "random"),
        ("criterion", None),
        ("repair", "yes"),
        ("repair", None),
        ("precision", "float16"),
        ("on_bad_image", "ignore"),
        ("token_weighting", 1.5),
        ("token_weighting", None),
        ("damping", 0),
        ("damping", 2),
        ("damping", None),
        ("rank_multiple", 0),
        ("rank_multiple", 2.0),
        ("rank_multiple", None),
        ("num_images", 0),
        ("batch_size", -1),
        ("batch_size", None),
        ("measuring_images", -1),
        ("measuring_images", None),
        ("fisher_probes", 0),
        ("fisher_probes", None),
        ("validation_images", "all"),
        ("validation_images", None),
        ("compensation", "finetune"),
        ("compensation", None),
        ("residual_share", 0),
        ("residual_share", 1.1),
        ("compensation_duration", "0 minutes"),
        ("compensation_duration", "inf minutes"),
        ("compensation_duration", "-1 epochs"),
        ("compensation_duration", "5"),
        ("compensation_duration", 5),
        ("compensation_duration", ""),
        ("gate_duration", "0 epochs"),
        ("gate_duration", "2 hours"),
        ("gate_duration", None),
        ("compensation_images", 0),
        ("held_out_images", 0),
        ("held_out_images", None),
        ("optimizer", "sgd"),
        ("learning_rate", 0),
        ("distill_batch_size", 0),
        ("distill_batch_size", 1.5),
        ("temperature", 0),
        ("feature_weight", -1),
        ("label_weight", float("nan")),
        ("augmentation", 1),
        ("seed", -1),
        ("seed", 1.5),
        ("seed", None),
        ("correct_bias", "no"),
        ("correct_bias", None),
        ("target_modules", "fc1"),
        ("target_modules", [1]),
        ("skip_modules", "fc1"),
        ("skip_modules", 5),
        ("skip_modules", None),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        CompressionConfig(**{name: value})


def test_durations_are_minutes_or_epochs() -> None:
    config = CompressionConfig(compensation_duration="3 epochs", gate_duration="0.5 minutes")
    assert config.distillation_duration == Duration(3.0, "epochs")
    assert config.gates_duration == Duration(0.5, "minutes")
    assert CompressionConfig().distillation_duration == Duration(5.0, "minutes")
    assert CompressionConfig().gates_duration == Duration(2.0, "minutes")


@pytest.mark.parametrize(
    ("compensation", "residual", "distill"),
    [("none", False, False), ("residual", True, False), ("distill", False, True), ("both", True, True)],
)
def test_compensation_names_its_stages(compensation: str, residual: bool, distill: bool) -> None:
    config = CompressionConfig(compensation=compensation)  # type: ignore[arg-type]
    assert (config.solves_residuals, config.distills) == (residual, distill)


@pytest.mark.parametrize(
    ("wrong", "right"), [("keep_ration", "keep_ratio"), ("skip_module", "skip_modules"), ("batchsize", "batch_size")]
)
def test_a_misspelt_setting_is_answered_with_the_right_one(wrong: str, right: str) -> None:
    with pytest.raises(ConfigError, match=rf"{wrong}.*Did you mean '{right}'"):
        CompressionConfig.from_dict({wrong: 1})


def test_a_setting_like_no_other_is_refused_without_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="'xyzzy'") as caught:
        CompressionConfig.from_dict({"xyzzy": 1})
    assert "Did you mean" not in str(caught.value)


def test_it_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        CompressionConfig().keep_ratio = 0.1  # type: ignore[misc]


@pytest.mark.parametrize("suffix", ["yaml", "yml", "json"])
def test_every_field_survives_a_file(suffix: str, tmp_path: Path) -> None:
    config = CompressionConfig(**EVERY_FIELD)
    config.save(tmp_path / f"recipe.{suffix}")
    assert CompressionConfig.load(tmp_path / f"recipe.{suffix}") == config
    assert all(getattr(config, name) == value for name, value in EVERY_FIELD.items())


@pytest.mark.parametrize("suffix", ["yaml", "json"])
@pytest.mark.parametrize("config", [CompressionConfig(), CompressionConfig(num_images=None, max_accuracy_drop=0)])
def test_defaults_and_none_survive_a_file(config: CompressionConfig, suffix: str, tmp_path: Path) -> None:
    config.save(tmp_path / f"recipe.{suffix}")
    assert CompressionConfig.load(tmp_path / f"recipe.{suffix}") == config


def test_a_json_file_is_json_and_a_yaml_file_is_yaml(tmp_path: Path) -> None:
    config = CompressionConfig(**EVERY_FIELD)
    config.save(tmp_path / "a.json")
    config.save(tmp_path / "a.yaml")
    assert json.loads((tmp_path / "a.json").read_text()) == EVERY_FIELD
    assert yaml.safe_load((tmp_path / "a.yaml").read_text()) == EVERY_FIELD


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("default", ("fisher", "greedy", True, "none", 1.0)),
        ("low_rank", ("fisher", "greedy", True, "none", 1.0)),
        ("svd", ("weight", "uniform", False, "none", 1.0)),
        ("fwsvd", ("row_fisher", "uniform", False, "none", 1.0)),
        ("svd_llm", ("activation", "uniform", False, "none", 1.0)),
        ("azizi2024", ("activation", "greedy", False, "residual", 0.25)),
    ],
)
def test_presets_are_the_published_recipes(name: str, expected: tuple[Any, ...]) -> None:
    config = CompressionConfig.preset(name)
    method = (config.metric, config.allocation, config.correct_bias)
    assert (*method, config.compensation, config.residual_share) == expected
    assert config.keep_ratio == 0.5
    # The published ones factor each layer by itself and prune nothing.
    assert ((config.attention, config.mlp) == ("low_rank", "low_rank")) is (name != "default")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_take_overrides(name: str) -> None:
    config = CompressionConfig.preset(name, max_params=9, allocation="uniform")
    assert config.budgets == {"max_params": 9}
    assert config.allocation == "uniform"
    assert config.metric == CompressionConfig.preset(name).metric


def test_baselines_are_shown_apart_from_this_packages_own_presets() -> None:
    assert [*OWN_PRESETS, *BASELINES] == list(PRESETS)
    text = inspect.getdoc(CompressionConfig.preset)
    assert text is not None
    before, _, after = text.partition("Baselines (other people's methods):")
    assert all(f'`"{name}"`' in before for name in OWN_PRESETS)
    assert all(f'`"{name}"`' in after for name in BASELINES)


def test_a_preset_can_be_named_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("preset: svd_llm\nkeep_ratio: 0.3\n")
    assert CompressionConfig.load(tmp_path / "recipe.yaml") == CompressionConfig.preset("svd_llm", keep_ratio=0.3)


@pytest.mark.parametrize("name", ["azizi", "svd-llm", ["svd"]])
def test_an_unknown_preset_is_refused_with_the_known_ones(name: Any) -> None:
    with pytest.raises(ConfigError, match="azizi2024"):
        CompressionConfig.from_dict({"preset": name})


def test_with_budget_changes_the_budget_and_nothing_else() -> None:
    config = CompressionConfig(keep_ratio=0.7, metric="weight", seed=3)
    assert config.with_budget(max_macs=10) == CompressionConfig(max_macs=10, metric="weight", seed=3)
    assert config.keep_ratio == 0.7


def test_with_budget_keeps_all_images_when_all_were_asked_for() -> None:
    assert CompressionConfig(num_images=None).with_budget(keep_ratio=0.3).num_images is None


@pytest.mark.parametrize(
    ("metric", "needed"),
    [("weight", False), ("activation", False), ("row_fisher", True), ("fisher", True)],
)
def test_only_fisher_metrics_need_gradients(metric: str, needed: bool) -> None:
    assert CompressionConfig(metric=metric).needs_gradients is needed  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"metric": "weight"},
        {"allocation": "uniform"},
        {"attention": "prune"},
        {"mlp": "prune"},
        {"criterion": "magnitude"},
        {"repair": False},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_changes_the_meaning_of_errors_changes_the_method(change: dict[str, Any]) -> None:
    assert CompressionConfig(**change).method != CompressionConfig().method


def test_budgets_share_their_method() -> None:
    assert CompressionConfig(max_params=3, seed=4, rank_multiple=1).method == CompressionConfig().method


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml"):
        load_settings(tmp_path / "absent.yaml")


@pytest.mark.parametrize("content", [b"keep_ratio: [0.4", b"\xff\xfe\x00", b"just words", b"- 1\n- 2\n", b"1: 2\n"])
def test_a_file_that_is_no_recipe_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes(content)
    with pytest.raises(ConfigError):
        CompressionConfig.load(tmp_path / "recipe.yaml")


def test_a_folder_instead_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=tmp_path.name):
        load_settings(tmp_path)


def test_numbers_in_scientific_notation_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("damping: 1e-5\n")
    assert CompressionConfig.load(tmp_path / "recipe.yaml").damping == 1e-5
