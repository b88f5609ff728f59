"""Compression in stages while a model is being fine-tuned."""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..config import CompressionConfig
from ..errors import ConfigError
from ..model.assembly import empty_model, is_factored
from .compression import check_moment, resolve_step
from .structure import StructureCallback

TOLERANCE = 0.01
"""How far the keep ratio of a resumed model may lie above that of its stage, as a fraction of it."""


class Stage(NamedTuple):
    """One budget of a training, and when it begins.

    Attributes:
        at: optimizer step, or fraction of all steps, after which the model is compressed.
        keep_ratio: parameters that it then keeps ÷ parameters of the original.
    """

    at: float
    keep_ratio: float


def cubic_stages(keep_ratio: float, count: int = 4, begin: float = 0.0, end: float = 0.5) -> list[Stage]:
    """Stages by the schedule of Zhu & Gupta, arXiv 1710.01878: large steps first, while much is redundant.

    After the fraction `begin + (end − begin) · k / count` of all steps, `k = 1 … count`, the model keeps
    `keep_ratio + (1 − keep_ratio) · (1 − k / count)³` of its parameters.

    Raises:
        ConfigError: an argument is out of range.
    """
    if not (0 < keep_ratio < 1 and count >= 1 and 0 <= begin < end < 1):
        raise ConfigError(
            "cubic_stages needs a keep_ratio in (0, 1), at least one stage, and 0 <= begin < end < 1, not "
            f"keep_ratio={keep_ratio!r}, count={count!r}, begin={begin!r}, end={end!r}."
        )
    shares = [k / count for k in range(1, count + 1)]
    return [Stage(begin + (end - begin) * s, keep_ratio + (1 - keep_ratio) * (1 - s) ** 3) for s in shares]


class ProgressiveCompressionCallback(StructureCallback):
    """Lowers the budget of a `Trainer`'s model in stages, in place, and lets it recover in between.

    At each stage the factors of the current model are multiplied out, and the result is calibrated and factored
    again. The optimizer keeps its state for all parameters that are not factored, and the learning rate keeps its
    schedule. A training that ends before its last stage (early stopping) is compressed to that stage at its end.
    Training can be resumed from a checkpoint of any stage, by a new Trainer around the dense model with the same
    callback.

    Args:
        config: the recipe; its `keep_ratio` is that of the default schedule's last stage.
        stages: (step or fraction of all steps, keep ratio) pairs, e.g. `[(0.1, 0.8), (0.3, 0.65), (0.5, 0.5)]`; by
            default `cubic_stages(config.keep_ratio)`. Steps rise and keep ratios fall. Keep ratios are relative to the
            original dense model at every stage.
        images: calibration images, as in `CompressionCallback`.
        images_per_stage: number of calibration images of all stages but the last, which takes `config.num_images`.
        output_dir: folder for the final model.
        push_to_hub: Hub repository for the final model.
        reset_best: after each stage, forget the best checkpoint (`load_best_model_at_end`), because a larger model
            would win. If false, the best checkpoint may be one of an earlier stage; the model then ends with the
            structure of that stage.

    Attributes:
        stage: number of stages that the model has gone through.
        reports: the `CompressionReport` of every stage that this process has built.
        report: the last of them.

    Raises:
        ConfigError: the stages are out of order, the budget is not a keep ratio, or the Trainer uses FSDP or DeepSpeed.

    Examples:
        >>> trainer = Trainer(model, args, train_dataset=images, data_collator=collate)
        >>> stages = [(0.1, 0.8), (0.3, 0.65), (0.5, 0.5)]
        >>> callback = ProgressiveCompressionCallback(CompressionConfig(keep_ratio=0.5), stages).attach(trainer)
        >>> trainer.train()
    """

    def __init__(
        self,
        config: CompressionConfig | None = None,
        stages: Sequence[tuple[float, float]] | None = None,
        images: Any = None,
        images_per_stage: int = 256,
        output_dir: str | Path | None = None,
        push_to_hub: str | None = None,
        reset_best: bool = True,
    ) -> None:
        super().__init__(images, output_dir, push_to_hub, reset_best)
        self.config = config or CompressionConfig()
        if list(self.config.budgets) != ["keep_ratio"]:
            others = " and ".join(name for name in self.config.budgets if name != "keep_ratio")
            raise ConfigError(f"Stages are keep ratios: give keep_ratio instead of {others}.")
        assert self.config.keep_ratio is not None
        self.stages = [Stage(*stage) for stage in stages] if stages else cubic_stages(self.config.keep_ratio)
        self.images_per_stage = images_per_stage
        self.stage = 0
        self.reports: list[Any] = []
        self._steps: list[int] = []
        self._original = 0
        _check_stages(self.stages)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        self._steps = [resolve_step(stage.at, state.max_steps) for stage in self.stages]
        if len(set(self._steps)) < len(self._steps):
            raise ConfigError(f"In {state.max_steps} steps the stages fall on steps {self._steps}; use fewer stages.")
        dense = empty_model(self.model, {})
        self._original = sum(parameter.numel() for parameter in dense.parameters())
        self.stage = sum(step <= state.global_step for step in self._steps)
        self._check_resumed(state.global_step)
        if self.stage < len(self.stages):
            self.foresee(self.config.with_budget(keep_ratio=self.stages[-1].keep_ratio))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        due = sum(step <= state.global_step for step in self._steps)
        if due > self.stage:
            self._enter(due)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.take_best()
        if self.stage < len(self.stages):
            self._enter(len(self.stages))
        self.finish()

    @property
    def keep_ratio(self) -> float:
        """Parameters of the current model ÷ parameters of the original one."""
        return sum(parameter.numel() for parameter in self.model.parameters()) / self._original

    def _enter(self, stage: int) -> None:
        """Enter a stage, 1 for the first. A model that is small enough already stays as it is."""
        self.stage = stage
        wanted = self.stages[stage - 1].keep_ratio
        if self.keep_ratio <= wanted:
            return
        config = self.config.with_budget(keep_ratio=wanted)
        if stage < len(self.stages):
            images = min(self.images_per_stage, config.num_images or self.images_per_stage)
            config = dataclasses.replace(config, num_images=images)
        self.compress(config)
        self.reports.append(self.report)

    def _check_resumed(self, step: int) -> None:
        if self.stage == 0 or step == 0:
            return
        wanted, *later = (stage.keep_ratio for stage in self.stages[self.stage - 1 :])
        # The nearest plan below may have been far below.
        fits = max(later, default=0.0) < self.keep_ratio <= wanted * (1 + TOLERANCE)
        if not is_factored(self.model) or not fits:
            raise ConfigError(
                f"Training goes on at step {step}, in stage {self.stage} of keep ratio {wanted:.4f}, but with a model "
                f"of keep ratio {self.keep_ratio:.4f}. Use the stages and the number of steps that the checkpoint was "
                "made with, and give the Trainer a model instead of model_init."
            )


def _check_stages(stages: Sequence[Stage]) -> None:
    for at, keep_ratio in stages:
        check_moment("A stage's step", at)
        if not 0 < keep_ratio < 1:
            raise ConfigError(f"A stage's keep ratio must lie in (0, 1), not {keep_ratio!r}.")
    if len({isinstance(stage.at, int) for stage in stages}) > 1:
        raise ConfigError("Stages are given either by steps or by fractions of all steps, not by both.")
    for one, other in itertools.pairwise(stages):
        if one.at >= other.at or one.keep_ratio <= other.keep_ratio:
            raise ConfigError(f"Steps of stages must rise and keep ratios fall; {tuple(other)} follows {tuple(one)}.")
