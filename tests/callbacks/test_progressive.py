"""Compression in stages while a Trainer fine-tunes."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForImageClassification, TrainerCallback

from hf_vitcompress.callbacks import (
    ProgressiveCompressionCallback,
    Stage,
    cubic_stages,
)
from hf_vitcompress.errors import ConfigError
from hf_vitcompress.model.assembly import is_factored
from support.training import CONFIG, Watcher, changing_steps, new_trainer


def test_stages_lower_the_budget(tmp_path: Path) -> None:
    stages = [(2, 0.8), (4, 0.65), (6, 0.5)]
    callback, watcher = ProgressiveCompressionCallback(CONFIG, stages, images_per_stage=16), Watcher()
    trainer = new_trainer(tmp_path, callback, watcher)
    trainer.train()
    ratios = [watcher.sizes[step] / watcher.sizes[0] for step in (2, 4, 6)]
    assert changing_steps(watcher) == [2, 4, 6]
    assert ratios == pytest.approx([0.8, 0.65, 0.5], rel=0.005)
    assert [report.calibration_images for report in callback.reports] == [16, 16, 32]
    assert callback.report is callback.reports[-1]
    assert callback.keep_ratio == pytest.approx(0.5, rel=0.005)


def test_a_training_that_stops_early_ends_with_the_last_stage(tmp_path: Path) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == 3

    callback = ProgressiveCompressionCallback(CONFIG, [(0.25, 0.8), (0.9, 0.5)], output_dir=tmp_path / "small")
    trainer = new_trainer(tmp_path, callback, Stop())
    trainer.train()
    assert callback.keep_ratio == pytest.approx(0.5, rel=0.005)
    assert is_factored(AutoModelForImageClassification.from_pretrained(tmp_path / "small"))


def test_the_cubic_schedule_is_that_of_zhu_and_gupta() -> None:
    stages = cubic_stages(0.4, count=3, begin=0.1, end=0.7)
    assert [stage.at for stage in stages] == pytest.approx([0.3, 0.5, 0.7])
    for stage in stages:
        # s_t = s_f + (s_i − s_f) (1 − (t − t_0) / (n Δt))³, with the sparsity s = 1 − keep ratio and s_i = 0
        sparsity = 0.6 - 0.6 * (1 - (stage.at - 0.1) / 0.6) ** 3
        assert 1 - stage.keep_ratio == pytest.approx(sparsity)
    assert ProgressiveCompressionCallback(CONFIG).stages == cubic_stages(0.5)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([(2, 0.5), (4, 0.6)], "keep ratios fall; (4, 0.6) follows (2, 0.5)"),
        ([(4, 0.6), (4, 0.5)], "Steps of stages must rise"),
        ([(0, 0.6)], "at least 1, or a fraction of all in (0, 1), not 0"),
        ([(1.0, 0.6)], "not 1.0"),
        ([(2, 1.5)], "keep ratio must lie in (0, 1), not 1.5"),
        ([(0.5, 0.6), (4, 0.5)], "either by steps or by fractions"),
    ],
)
def test_stages_out_of_order_are_refused(stages: list[tuple[float, float]], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        ProgressiveCompressionCallback(CONFIG, stages)
    assert message in str(error.value)


def test_stages_that_fall_together_are_refused(tmp_path: Path) -> None:
    callback = ProgressiveCompressionCallback(CONFIG, [Stage(0.1, 0.8), Stage(0.11, 0.7)])
    with pytest.raises(ConfigError, match=r"stages fall on steps \[1, 1\]; use fewer stages"):
        new_trainer(tmp_path, callback).train()


@pytest.mark.parametrize(
    "budget", [{"max_params": 1000}, {"max_macs": 10000}, {"speedup": 2}, {"keep_ratio": 0.5, "speedup": 2}]
)
def test_stages_need_a_keep_ratio_and_nothing_else(budget: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"give keep_ratio instead of {list(budget)[-1]}"):
        ProgressiveCompressionCallback(CONFIG.with_budget(**budget))


@pytest.mark.parametrize("values", [{"keep_ratio": 1.0}, {"count": 0}, {"begin": 0.5}, {"end": 1.0}])
def test_a_schedule_out_of_range_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="cubic_stages needs"):
        cubic_stages(**{"keep_ratio": 0.5, **values})  # type: ignore[arg-type]
