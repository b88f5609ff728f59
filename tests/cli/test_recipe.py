"""What a command makes of the flags of a recipe, without the work."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_vitcompress import CompressionConfig, cli
from hf_vitcompress.errors import ConfigWarning
from support.terminal import Run, running_commands  # noqa: F401  (the fixture "run")


@pytest.fixture
def recipe_of(run: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[..., CompressionConfig]:
    class StopHereError(BaseException):
        """Which no command takes for an error of its own."""

    seen: list[CompressionConfig] = []

    def remember(config: CompressionConfig, *_: object) -> None:
        seen.append(config)
        raise StopHereError

    monkeypatch.setattr(cli.compression, "_compressor", remember)

    def call(*arguments: object) -> CompressionConfig:
        with pytest.raises(StopHereError):
            run("plan", "unused", "--statistics", "unused", *arguments)
        return seen[-1]

    return call


def write(path: Path, **settings: Any) -> Path:
    path.write_text(json.dumps(settings))
    return path


@pytest.mark.parametrize(
    "flag",
    [["--max-params", 9], ["--max-macs", 9], ["--speedup", 2], ["--max-latency-ms", 9], ["--max-accuracy-drop", 0.5]],
)
def test_a_budget_flag_beats_the_budget_of_the_file(
    flag: list[Any], recipe_of: Callable[..., CompressionConfig], tmp_path: Path
) -> None:
    file = write(tmp_path / "r.json", keep_ratio=0.3, max_latency_ms=80, latency_batch_size=8, seed=5)
    config = recipe_of("--config", file, *flag)
    assert list(config.budgets) == [flag[0].removeprefix("--").replace("-", "_")]
    assert (config.seed, config.latency_batch_size) == (5, 8)


def test_budgets_of_flags_hold_together(recipe_of: Callable[..., CompressionConfig]) -> None:
    config = recipe_of("--speedup", 2, "--keep-ratio", 0.5, "--latency-batch-size", 32)
    assert config.budgets == {"keep_ratio": 0.5, "speedup": 2.0}
    assert config.latency_batch_size == 32


def test_a_batch_size_is_no_budget_and_leaves_those_of_the_file(
    recipe_of: Callable[..., CompressionConfig], tmp_path: Path
) -> None:
    file = write(tmp_path / "r.json", speedup=2.0, keep_ratio=0.5)
    assert recipe_of("--config", file, "--latency-batch-size", 4).budgets == {"keep_ratio": 0.5, "speedup": 2.0}


def test_flags_beat_the_file_which_beats_the_preset(
    recipe_of: Callable[..., CompressionConfig], tmp_path: Path
) -> None:
    file = write(tmp_path / "r.json", preset="svd", damping=0.01, batch_size=3, correct_bias=True)
    config = recipe_of("--config", file, "--batch-size", 4, "--preset", "svd_llm")
    assert config == CompressionConfig.preset("svd_llm", damping=0.01, batch_size=4, correct_bias=True)


def test_flags_beat_a_file_of_an_earlier_version(recipe_of: Callable[..., CompressionConfig], tmp_path: Path) -> None:
    file = write(tmp_path / "r.json", selector="magnitude", compensation_minutes=3, seed=5)
    with pytest.warns(ConfigWarning, match="selector is called criterion now"):
        config = recipe_of("--config", file, "--criterion", "gates", "--compensation-duration", "2 epochs")
    assert config == CompressionConfig(criterion="gates", compensation_duration="2 epochs", seed=5)


def test_a_target_is_a_setting_like_others(recipe_of: Callable[..., CompressionConfig]) -> None:
    assert recipe_of("--target", "vision_model") == CompressionConfig(target="vision_model")


@pytest.mark.parametrize("value", [True, False])
def test_switches_work_both_ways(value: bool, recipe_of: Callable[..., CompressionConfig], tmp_path: Path) -> None:
    file = write(tmp_path / "r.json", correct_bias=not value)
    assert recipe_of("--config", file, "--correct-bias" if value else "--no-correct-bias").correct_bias is value


def test_patterns_can_be_given_several_times(recipe_of: Callable[..., CompressionConfig]) -> None:
    config = recipe_of("--skip-modules", "fc1", "--skip-modules", "layers.0.*")
    assert config.skip_modules == ["fc1", "layers.0.*"]
    assert config.target_modules is None


def test_no_flags_are_the_default_recipe(recipe_of: Callable[..., CompressionConfig]) -> None:
    assert recipe_of() == CompressionConfig()
