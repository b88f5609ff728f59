"""Learned importance scores inside a training: gates, an L1 penalty, and pruning by what they say."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import Trainer

from ..config import CompressionConfig
from ..errors import ConfigError
from ..importance.gates import (
    GATE_LEARNING_RATE,
    add_penalty_gradient,
    attach_gates,
    fold_gates,
    follow_gates,
    gates_of,
    penalty,
)
from ..importance.report import figures_of
from ..model.assembly import is_factored
from ..model.restructure import follow_layout
from .compression import CompressionCallback

PREFIX = "gates_"
GROUP = "gates"
"""Key of the optimizer's group of scores."""


class ImportanceGateCallback(CompressionCallback):
    """Learns in a `Trainer` which neurons and heads matter, and prunes the others (Zhu et al., arXiv 2104.08500).

    A score multiplies each feature; the training loss and an L1 penalty learn it together with the weights. At the end,
    or after `at_step`, the scores are multiplied into the weights, the features of the smallest ones are removed, and
    an ordinary compressed model is left, in place; with `at_step`, training goes on with it.

    Scores are parameters of the model, in an optimizer group of their own: their own learning rate, on the Trainer's
    schedule, and no weight decay. The penalty's subgradient is added once per step of the optimizer, after
    accumulation, reduction over processes and clipping. Checkpoints hold the scores and can be resumed from, by a new
    Trainer around the dense model with the same callback. Logs of a loss or an evaluation have, until the model is
    pruned, `gates_mean`, `gates_near_zero` and `gates_below_half` (shares of scores below 0.1 and 0.5) and
    `gates_penalty`.

    Args:
        config: the recipe, with `criterion="gates"`; by default the preset `"vtp"` without its own compensation,
            because the training is one.
        l1: weight of the scores' mean size beside the training loss; by default the config's `gate_l1`.
        learning_rate: of the scores; by default `importance.gates.GATE_LEARNING_RATE`.
        at_step: optimizer step after which to prune, or fraction of all steps in (0, 1); by default at the end.
        images, output_dir, push_to_hub, evaluate, reset_best: as in `CompressionCallback`.

    Attributes:
        importance: the scores that the model was pruned by, (neurons,) or (heads,) by the name of the layer that reads
            the features; empty before.
        report, dense_metrics, compressed_metrics: as in `CompressionCallback`; the dense model is the one with gates.

    Raises:
        ConfigError: the config does not select by gates, the model is compressed already, or the callback was added
            after the optimizer was made.

    Example:
        >>> callback = ImportanceGateCallback(CompressionConfig.preset("vtp", compensation="none"), at_step=0.5)
        >>> Trainer(model, args, train_dataset=images, data_collator=collate, callbacks=[callback]).train()
    """

    def __init__(
        self,
        config: CompressionConfig | None = None,
        l1: float | None = None,
        learning_rate: float = GATE_LEARNING_RATE,
        at_step: float | None = None,
        images: Any = None,
        output_dir: str | Path | None = None,
        push_to_hub: str | None = None,
        evaluate: bool = True,
        reset_best: bool = True,
    ) -> None:
        config = config or CompressionConfig.preset("vtp", compensation="none")
        if config.criterion != "gates":
            raise ConfigError(
                f'ImportanceGateCallback prunes by learned scores: use criterion="gates" instead of '
                f'{config.criterion!r}, or CompressionConfig.preset("vtp").'
            )
        super().__init__(config, images, at_step, output_dir, push_to_hub, evaluate, reset_best)
        self.l1 = config.gate_l1 if l1 is None else l1
        self.learning_rate = learning_rate
        if not (self.l1 >= 0 and self.learning_rate > 0):
            raise ConfigError(
                f"l1 must be at least 0 and learning_rate above 0, not {self.l1!r} and {self.learning_rate!r}."
            )
        self.importance: dict[str, Tensor] = {}

    def meet(self, trainer: Trainer) -> None:
        if trainer.is_in_train:
            raise ConfigError(
                "ImportanceGateCallback must be there before the optimizer is made: give it to the Trainer as "
                "Trainer(…, callbacks=[…]) instead of with add_callback."
            )
        super().meet(trainer)
        self._attach()
        # The optimizer is made, and its state loaded, without any event in between.
        trainer.create_optimizer = self._create_optimizer  # type: ignore[method-assign]

    def _attach(self) -> None:
        model = self.model
        follow_layout(model)
        follow_gates(model)
        attach_gates(model, self.config)

    def _create_optimizer(self, model: Any = None) -> Any:
        """The Trainer's own, with a group for the scores."""
        trainer = self.trainer
        if not (self._done or is_factored(self.model) or gates_of(self.model)):
            self._attach()  # a model that `model_init` has made anew
        gates = list(gates_of(self.model).values())
        for gate in gates:
            gate.requires_grad_(False)
        optimizer = type(trainer).create_optimizer(trainer, model)
        for gate in gates:
            gate.requires_grad_(True)
        if not any(group.get(GROUP) for group in optimizer.param_groups):
            # Of a model that is pruned already the group is empty, so that saved states of the optimizer fit.
            optimizer.add_param_group({"params": gates, "lr": self.learning_rate, "weight_decay": 0.0, GROUP: True})
        return optimizer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        add_penalty_gradient(self.model, self.l1)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        logs, learned = kwargs["logs"], gates_of(self.model)
        if not learned or ("loss" not in logs and not any(name.startswith("eval_") for name in logs)):
            return
        values = (*figures_of(learned), penalty(self.model))
        names = ("mean", "near_zero", "below_half", "penalty")
        figures = {PREFIX + name: value for name, value in zip(names, values, strict=True)}
        logs.update(figures)
        state.log_history[-1].update(figures)  # a copy of the logs, made before

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        metrics = kwargs["metrics"]
        for name in [name for name in metrics if name.startswith(PREFIX)]:
            del metrics[name]  # these are the evaluation's own again
        super().on_evaluate(args, state, control, **kwargs)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._done and gates_of(self.model):
            fold_gates(self.model)  # the best checkpoint is one from before the pruning
        super().on_train_end(args, state, control, **kwargs)

    def compress(self, config: CompressionConfig, importance: Mapping[str, Tensor] | None = None) -> None:
        """Fold the scores, and prune the model by them, or else by `importance`."""
        learned = fold_gates(self.model)
        self.importance = dict(importance or learned)
        super().compress(config, self.importance)
