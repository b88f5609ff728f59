"""Figures of the compression, for every tracker that the Trainer reports to."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import nn
from transformers import PreTrainedModel, Trainer
from transformers.utils import logging

from ..architectures.layers import find_layers
from ..architectures.subject import Subject
from ..config import CompressionConfig
from ..errors import one_line
from ..evaluation.checks import REMEDY, check_comparable
from ..evaluation.costs import Costs, count_costs
from ..evaluation.reference import Reference
from ..images.sources import open_images
from ..layers_factored import Constant, FactoredLinear, Removed
from ..model.assembly import empty_model
from ..model.loading import load_dense_model
from ..model.timm import is_wrapper
from ..publish.record import CompressionRecord
from ..runtime.run import Run
from .ending import say_whose_card
from .link import TrainerLink
from .resources import batches_of, image_processor_of, own_random_state, training_images

PREFIX = "compression_"
KL = "compression_kl_measured"

logger = logging.get_logger(__name__)


class CompressionMetricsCallback(TrainerLink):
    """Adds figures of the compression to the Trainer's logs: trackers, `state.log_history` and progress bar get them.

    Every log of a loss or an evaluation gets `compression_parameters`, `compression_macs` (per image),
    `compression_keep_ratio` (share of the dense model's parameters), `compression_rank_mean` and
    `compression_rank_min` over the layers that can be factored, `compression_rank_mean_q`, `…_k` and so on by role (a
    dense layer counts with its full rank), and `compression_kl_predicted` if the model carries a prediction. Logs of
    an evaluation, and the first log after a change of structure, also get `compression_kl_measured`: the divergence
    from the dense model, nats per image.

    Args:
        dense: the dense model, for `compression_kl_measured`: a folder, a Hub id or a loaded model. It runs once, when
            training begins, and is not kept. Without it, no divergence is measured; nor against one that has other
            classes, another output or takes other images, which one line says when the training begins.
        images: images to measure the divergence on, anything that `ViTCompressor.compress` takes; by default the
            Trainer's evaluation data, or else its training data.
        num_images: number of these images.

    Examples:
        >>> trainer = Trainer(model, args, train_dataset=images, data_collator=collate)
        >>> CompressionMetricsCallback(dense="google/vit-base-patch16-224").attach(trainer)
    """

    def __init__(
        self, dense: str | Path | PreTrainedModel | None = None, images: Any = None, num_images: int = 256
    ) -> None:
        super().__init__()
        self.dense, self.images, self.num_images = dense, images, num_images
        self._said: set[str] = set()
        self._reference: Reference | None = None
        self._original: Costs | None = None
        self._figures: dict[str, float] = {}
        self._measured = False

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_reference": None}

    def meet(self, trainer: Trainer) -> None:
        super().meet(trainer)
        self._reference = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        self._original, self._figures, self._measured = None, {}, False  # `model_init` may have made another model
        self._said.clear()
        if self.dense is not None and self._reference is None:
            with own_random_state(0):
                self._reference = self._refer(self.trainer, self.dense)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        say_whose_card(self)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        logs = kwargs["logs"]
        evaluated = any(name.startswith("eval_") for name in logs)
        if not evaluated and "loss" not in logs:
            return
        with own_random_state(0):
            figures = self._current(kwargs["model"], evaluated)
        logs.update(figures)
        state.log_history[-1].update(figures)  # a copy of the logs, made before

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        metrics = kwargs["metrics"]
        # These are the evaluation's own again: a search over hyperparameters sums them.
        for name in [name for name in metrics if name.startswith(PREFIX)]:
            del metrics[name]

    def _current(self, model: PreTrainedModel, evaluated: bool) -> dict[str, float]:
        parameters = sum(parameter.numel() for parameter in model.parameters())
        if self._figures.get("parameters") != parameters:
            self._figures, self._measured = {"parameters": parameters}, False
            with self._left_out_on_error("figures of the structure"):
                self._figures = self._structure(model)
        figures = dict(self._figures)
        if self._reference is not None and (evaluated or not self._measured):
            self._measured = True
            with self._left_out_on_error(KL):
                figures["kl_measured"] = self._reference.loss_of(model)
        return {PREFIX + name: value for name, value in figures.items()}

    @contextmanager
    def _left_out_on_error(self, what: str) -> Iterator[None]:
        """A block without which the training goes on, whatever happens in it: a figure is worth less than that."""
        try:
            yield
        except Exception as error:  # of any model, on any images and device
            if what not in self._said and self.trainer.is_world_process_zero():
                reason = one_line(error).removesuffix(REMEDY.rstrip(".")).rstrip(". ")
                logger.warning(f"The logs have no {what}, and the training goes on: {reason}.")
            self._said.add(what)

    def _structure(self, model: PreTrainedModel) -> dict[str, float]:
        if self._original is None:
            self._original = count_costs(empty_model(model, {}))
        costs = self._original if is_wrapper(model) else count_costs(model)
        figures: dict[str, float] = {
            "parameters": costs.parameters,
            "macs": costs.macs,
            "keep_ratio": costs.parameters / self._original.parameters,
            **rank_figures(model),
        }
        for record in getattr(model, "companions", []):
            if isinstance(record, CompressionRecord) and record.report.predicted_loss is not None:
                figures["kl_predicted"] = record.report.predicted_loss
        return figures

    def _refer(self, trainer: Trainer, dense: str | Path | PreTrainedModel) -> Reference | None:
        """The dense model's outputs; `None` where those of the Trainer's model cannot be compared with them."""
        config = CompressionConfig(precision="float32")
        images = self.images
        if images is None and trainer.eval_dataset is not None and not isinstance(trainer.eval_dataset, dict):
            loader = trainer.get_eval_dataloader()
            images = batches_of(loader.dataset, loader.collate_fn, 2 * config.batch_size)
        elif images is None:
            images = training_images(trainer, config)
        source = open_images(images, limit=self.num_images, labels=False).sample(self.num_images, config.seed)
        with self._left_out_on_error(KL):
            model = load_dense_model(dense, trainer.accelerator)
            subject = Subject.alone(model, image_processor_of(trainer))
            check_comparable(self.model, model)
            reference = Reference.of(subject, source, Run(config, trainer.accelerator, progress=False))
            reference.check_form(self.model)
            return reference
        return None


def layer_ranks(model: PreTrainedModel) -> dict[str, list[int]]:
    """Ranks of the layers that can be factored, by role; a dense layer has its full rank, a removed one 0."""
    ranks, dense = defaultdict(list), empty_model(model, {})
    layers = dense if is_wrapper(model) else model  # timm has one layer for several
    for layer in find_layers(dense):
        module = layers.get_submodule(layer.name)
        if isinstance(module, FactoredLinear):
            ranks[str(layer.role)].append(module.rank)
        elif isinstance(module, nn.Linear):
            ranks[str(layer.role)].append(min(module.in_features, module.out_features))
        elif isinstance(module, Removed | Constant):
            ranks[str(layer.role)].append(0)
    return dict(ranks)


def rank_figures(model: PreTrainedModel) -> dict[str, float]:
    """Mean and smallest rank, and the mean by role; empty if no layer can be factored."""
    ranks = layer_ranks(model)
    every = [rank for own in ranks.values() for rank in own]
    by_role = {f"rank_mean_{role}": fmean(own) for role, own in ranks.items()}
    return {"rank_mean": fmean(every), "rank_min": min(every), **by_role} if every else {}
