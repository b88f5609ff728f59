"""Compression during or at the end of training."""

import weakref
from pathlib import Path
from typing import Any

from torch import nn

from ..config import CompressionConfig
from ..errors import ConfigError
from ..model.assembly import is_factored
from .resources import own_random_state
from .structure import StructureCallback

_compressed_by: "weakref.WeakKeyDictionary[nn.Module, CompressionCallback]" = weakref.WeakKeyDictionary()
"""Which callback has compressed a model, so that it does not compress it again in the model's next training."""


def resolve_step(at: float, max_steps: int) -> int:
    """The optimizer step that `at` means: itself, or that fraction of all steps."""
    return at if isinstance(at, int) else max(1, round(at * max_steps))


def check_moment(name: str, at: Any) -> None:
    """Check a moment of the training.

    Raises:
        ConfigError: `at` is neither an optimizer step of at least 1 nor a fraction of all in (0, 1).
    """
    whole = isinstance(at, int) and not isinstance(at, bool) and at >= 1
    if not whole and not (isinstance(at, float) and 0 < at < 1):
        raise ConfigError(f"{name} is an optimizer step of at least 1, or a fraction of all in (0, 1), not {at!r}.")


class CompressionCallback(StructureCallback):
    """Compresses the model of a `Trainer`, in place: after `trainer.train()`, `trainer.model` is the compressed one.

    Without `at_step` the model is compressed when training ends, after the Trainer has loaded the best checkpoint, if
    it does (`load_best_model_at_end`). With `at_step`, training continues with the compressed model: the optimizer
    keeps its state for all parameters that were not factored, and the learning rate keeps its schedule. A training
    that ends before the step is compressed at its end.

    If the Trainer has an `eval_dataset`, both models are evaluated on it and the results are logged: the dense model
    under `eval_dense_…`, the compressed one under `eval_…`. Training can be resumed from any checkpoint, by a new
    Trainer around the dense model with the same callback. Works with gradient accumulation, mixed precision, several
    processes (`torchrun`, `accelerate launch`) and `torch_compile`.

    Args:
        config: the recipe; by default `CompressionConfig()`, half of the parameters.
        images: calibration images, anything that `ViTCompressor.compress` takes; by default the Trainer's training
            data, through its collator, in an order drawn from `config.seed`.
        at_step: compress after this optimizer step, or after this fraction of all steps, in (0, 1).
        output_dir: folder for the final model, with image processor, recipe, plan and report.
        push_to_hub: Hub repository for the final model.
        evaluate: evaluate just before and just after the compression.
        reset_best: with `at_step`, the best checkpoint is one of the compressed model (`load_best_model_at_end`).

    Attributes:
        report: the `CompressionReport`; `None` before the compression. A training that is resumed after it has that of
            the checkpoint.
        dense_metrics: results of the evaluation just before the compression; empty without an evaluation.
        compressed_metrics: results of the evaluation just after it.

    Raises:
        ConfigError: `at_step` is not a step, or the Trainer uses FSDP or DeepSpeed.
        VitCompressError: when the training begins: images are not found, or no plan has so few parameters. When the
            model is compressed: no plan meets a budget of MACs or of time.

    Examples:
        >>> trainer = Trainer(model, args, train_dataset=images, data_collator=collate)
        >>> callback = CompressionCallback(CompressionConfig(keep_ratio=0.5), at_step=0.5).attach(trainer)
        >>> trainer.train()
        >>> print(callback.report)

        `Trainer(…, callbacks=[callback])` does the same; the callback then finds the Trainer among its callers.
    """

    def __init__(
        self,
        config: CompressionConfig | None = None,
        images: Any = None,
        at_step: float | None = None,
        output_dir: str | Path | None = None,
        push_to_hub: str | None = None,
        evaluate: bool = True,
        reset_best: bool = True,
    ) -> None:
        super().__init__(images, output_dir, push_to_hub, reset_best)
        if at_step is not None:
            check_moment("at_step", at_step)
        self.config = config or CompressionConfig()
        self.at_step, self.evaluate = at_step, evaluate
        self.dense_metrics: dict[str, float] = {}
        self.compressed_metrics: dict[str, float] = {}
        self._done = False
        self._done_at: int | None = None
        self._step: int | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        model, self._done_at = self.model, None
        self._step = None if self.at_step is None else resolve_step(self.at_step, state.max_steps)
        factored = is_factored(model)
        passed = self._step is not None and state.global_step >= self._step
        if passed and not factored:
            raise ConfigError(
                f"Training goes on at step {state.global_step}, after at_step={self.at_step}, but with a dense model: "
                "the checkpoint was made without this callback, or its structure was not loaded. Give the Trainer the "
                "callback when it is made, and a model instead of model_init."
            )
        self._done = passed or (factored and self.has_compressed(model))
        if not self._done:
            self.foresee(self.config)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._done or self._step is None or state.global_step < self._step:
            return
        self._compress()
        if not control.should_evaluate:  # else the Trainer is about to
            self.compressed_metrics = self._evaluation("eval")

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._done_at == state.global_step and not self.compressed_metrics:
            self.compressed_metrics = dict(kwargs["metrics"])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.take_best()
        if not self._done:
            self._compress()
            self.compressed_metrics = self._evaluation("eval")
        self.finish()

    def has_compressed(self, model: nn.Module) -> bool:
        """Whether this callback has compressed a model; later trainings then go on with it as it is."""
        return _compressed_by.get(model) is self

    def _compress(self) -> None:
        self.dense_metrics, self.compressed_metrics = self._evaluation("eval_dense"), {}
        self.compress(self.config)
        self._done, self._done_at = True, self.trainer.state.global_step
        _compressed_by[self.model] = self

    def _evaluation(self, prefix: str) -> dict[str, float]:
        trainer = self.trainer
        if not self.evaluate or trainer.eval_dataset is None:
            return {}
        planned = trainer.control.should_log, trainer.control.should_evaluate
        with own_random_state(self.config.seed):
            metrics = dict(trainer.evaluate(metric_key_prefix=prefix))
        # An evaluation takes back what the Trainer has planned to do at this step.
        trainer.control.should_log, trainer.control.should_evaluate = planned
        return metrics
