"""Importance scores that a Trainer learns beside the weights, and pruning by them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer

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

    Every neuron and head has a score that multiplies its output; the training loss and an L1 penalty learn the scores
    together with the weights. At the end, or after `at_step`, the scores are multiplied into the weights and the
    features with the smallest scores are removed, in place. What is left is an ordinary compressed model; with
    `at_step`, training continues with it.

    Scores are parameters of the model. They have a group of their own in the optimizer, with their own learning rate,
    on the Trainer's schedule, and without weight decay. The subgradient of the penalty is added once per optimizer
    step, after accumulation, reduction over processes and clipping. Checkpoints hold the scores and can be resumed
    from, by a new Trainer around the dense model with the same callback. Until the model is pruned, logs of a loss or
    an evaluation have `gates_mean`, `gates_near_zero` and `gates_below_half` (shares of scores below 0.1 and 0.5) and
    `gates_penalty`.

    Args:
        config: the recipe, with `criterion="gates"`; by default the preset `"vtp"` without its own compensation,
            because the training is one.
        l1: weight of the penalty beside the training loss; by default the config's `gate_l1`.
        learning_rate: learning rate of the scores; by default `importance.gates.GATE_LEARNING_RATE`.
        at_step: prune after this optimizer step, or after this fraction of all steps, in (0, 1); by default at the end.
        images: images to calibrate on, as in `CompressionCallback`.
        output_dir: folder for the final model.
        push_to_hub: Hub repository for the final model.
        evaluate: whether to evaluate before and after pruning.
        reset_best: as in `CompressionCallback`.

    Attributes:
        importance: the scores that the model was pruned by, by name of the layer that reads the features: (neurons,)
            for fc2, (heads,) for the attention output projection; empty before the pruning.
        report: as in `CompressionCallback`.
        dense_metrics: as in `CompressionCallback`; the dense model is the one with scores.
        compressed_metrics: as in `CompressionCallback`.

    Raises:
        ConfigError: the config does not select by scores, the model is compressed already, or the callback was added
            after the optimizer was made.

    Examples:
        >>> trainer = Trainer(model, args, train_dataset=images, data_collator=collate)
        >>> config = CompressionConfig.preset("vtp", compensation="none")
        >>> callback = ImportanceGateCallback(config, at_step=0.5).attach(trainer)
        >>> trainer.train()
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
        if trainer.is_in_train and trainer.optimizer is not None and scores_group(trainer.optimizer) is None:
            raise ConfigError(
                "ImportanceGateCallback must be there before the optimizer is made. Attach it before the training, "
                "ImportanceGateCallback(…).attach(trainer), or give it to the Trainer as Trainer(…, callbacks=[…])."
            )
        super().meet(trainer)
        if not self.has_compressed(self.model):
            self._attach_gates()
        CreateOptimizerWithScores.put_into(trainer, self)

    def _attach_gates(self) -> None:
        self.split()  # scores belong to layers that a model of timm has when it is split
        model = self.model
        follow_layout(model)
        follow_gates(model)
        attach_gates(model, self.config)

    def prepare_scores(self, trainer: Trainer) -> list[nn.Parameter]:
        """The scores of a Trainer's model, when it is about to make its optimizer; none of a pruned model."""
        self.follow(trainer)
        if trainer.optimizer is None and not (is_factored(self.model) or gates_of(self.model)):
            self._attach_gates()  # to a model that `model_init` has just made
        return list(gates_of(self.model).values())

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        add_penalty_gradient(kwargs["model"], self.l1)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        logs, learned = kwargs["logs"], gates_of(kwargs["model"])
        if not learned or ("loss" not in logs and not any(name.startswith("eval_") for name in logs)):
            return
        values = (*figures_of(learned), penalty(kwargs["model"]))
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
        if self.trainer.model_init is None:  # else the next training has a new model, and a new optimizer
            CreateOptimizerWithScores.take_from(self.trainer)

    def compress(self, config: CompressionConfig, importance: Mapping[str, Tensor] | None = None) -> None:
        """Multiply the scores into the weights, and prune the model by them, or by `importance` if it is given."""
        learned = fold_gates(self.model)
        self.importance = dict(importance or learned)
        super().compress(config, self.importance)


@dataclass
class CreateOptimizerWithScores:
    """Stands in for a Trainer's `create_optimizer`: what that makes, with a group for the scores.

    The group must be there before the Trainer loads the optimizer's state from a checkpoint and makes the learning rate
    schedule, and no event comes between these and the making of the optimizer. `optimizer_cls_and_kwargs` comes at the
    right time, but the Trainer sorts the parameters into groups itself, and a subclass with a `create_optimizer` of its
    own may not read it. So the method is replaced on the object, and put back when the training has ended.

    Attributes:
        own: what stood in the method's place on the object before; `None` if nothing did.
    """

    trainer: Trainer
    callback: ImportanceGateCallback
    own: Callable[..., Any] | None

    def __call__(self, model: PreTrainedModel | None = None) -> Any:
        scores = self.callback.prepare_scores(self.trainer)
        for score in scores:
            score.requires_grad_(False)  # so that the Trainer leaves them out
        optimizer = self.own(model) if self.own else type(self.trainer).create_optimizer(self.trainer, model)
        for score in scores:
            score.requires_grad_(True)
        if scores_group(optimizer) is None:
            # The group of a pruned model is empty, so that states of the optimizer which were saved before fit.
            rate = self.callback.learning_rate
            optimizer.add_param_group({"params": scores, "lr": rate, "weight_decay": 0.0, GROUP: True})
        return optimizer

    @classmethod
    def put_into(cls, trainer: Trainer, callback: ImportanceGateCallback) -> None:
        """Replace the method of a Trainer, once."""
        standing = vars(trainer).get("create_optimizer")
        if not isinstance(standing, cls):
            trainer.create_optimizer = cls(trainer, callback, standing)  # type: ignore[method-assign]

    @classmethod
    def take_from(cls, trainer: Trainer) -> None:
        """Give a Trainer its own method back."""
        standing = vars(trainer).get("create_optimizer")
        if isinstance(standing, cls):
            del trainer.create_optimizer
            if standing.own is not None:
                trainer.create_optimizer = standing.own  # type: ignore[method-assign]


def scores_group(optimizer: Any) -> dict[str, Any] | None:
    """The optimizer's group of scores, if it has one."""
    return next((group for group in optimizer.param_groups if group.get(GROUP)), None)
