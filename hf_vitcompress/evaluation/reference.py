"""A dense model's outputs on some images, to hold compressed ones against."""

from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from ..architectures.outputs import is_classifier
from ..architectures.subject import Subject
from ..errors import BudgetError
from ..images.images import Batch, ImageSource
from ..runtime.devices import resolve_precision
from ..runtime.distributed import gather_objects, gather_rows, local_work, mean_over_processes, own_share, sum_numbers
from ..runtime.run import Run
from .checks import check_same_form
from .evaluation import Outputs, divergences, model_outputs, predictions
from .intervals import wilson_interval
from .labels import is_guessing, warn_of_guessing


@dataclass
class Reference:
    """A dense model's outputs on some images, to hold compressed ones against.

    Attributes:
        subject: the dense model.
        source: the images, not yet read.
        batches: this process's share of the images.
        outputs: of the dense model on them.
        labels: (n,), or `None`.
        images: how many images all processes together have.
        accelerator: over whose processes the images are dealt out.
    """

    subject: Subject
    source: ImageSource
    batches: list[Batch]
    precision: str
    outputs: Outputs
    labels: Tensor | None
    images: int
    accelerator: Accelerator

    @classmethod
    def of(cls, subject: Subject, images: ImageSource, run: Run) -> "Reference":
        """Run the dense model on all of the images, this process on its share."""
        config, accelerator = run.config, run.accelerator
        precision = resolve_precision(config.precision, subject.model.device)
        with local_work(accelerator, "Reading images"):
            share = own_share(accelerator, images.batch_count(2 * config.batch_size))
            batches = list(images.batches(subject.processor, 2 * config.batch_size, share))
            outputs, labels = model_outputs(subject, batches, precision)
        count = round(sum_numbers(accelerator, [sum(len(terms[0]) for terms in outputs)])[0])
        images.account(accelerator)
        return cls(subject, images, batches, precision, outputs, labels, count, accelerator)

    @property
    def classes(self) -> bool:
        """Whether every image has one class."""
        return is_classifier(self.subject.model)

    def check_form(self, model: PreTrainedModel) -> None:
        """Run a model on the first batch, if this process has one.

        Raises:
            ConfigError: its outputs have another form than the dense model's.
        """
        if self.batches:
            ours = model_outputs(self.subject.like(model), self.batches[:1], self.precision)[0]
            check_same_form(ours[0], self.outputs[0])

    def outputs_of(self, model: PreTrainedModel) -> Outputs:
        """What a compressed form of the dense model says about the same images."""
        return model_outputs(self.subject.like(model), self.batches, self.precision)[0]

    def losses_of(self, model: PreTrainedModel) -> Tensor:
        """Divergence from the dense model (images,), nats (see `outputs.divergence`), on every process."""
        return gather_rows(self.accelerator, divergences(self.outputs, self.outputs_of(model)))

    def loss_of(self, model: PreTrainedModel) -> float:
        """Their mean."""
        return float(self.losses_of(model).mean())

    def distrust_guesses(self) -> None:
        """Do without the labels where the dense model's accuracy on them is that of guessing, and say so."""
        if not self.classes:
            return
        # A process without images has no labels either, and must take part all the same.
        own = None if self.labels is None else predictions(self.outputs) == self.labels
        parts = [part for part in gather_objects(self.accelerator, own) if part is not None]
        if not parts:
            return
        known = torch.cat(parts)
        top1 = wilson_interval(int(known.sum()), len(known))
        if is_guessing(top1, len(known), self.subject.model.config.num_labels):
            self.labels = None
            if self.accelerator.is_main_process:
                instead = "They are not used; agreement with the dense model takes their place"
                warn_of_guessing("The dense model's", top1, self.source.name, instead)

    def drop_of(self, model: PreTrainedModel) -> float:
        """Accuracy lost, as a fraction; without labels, share of images on which the two models differ."""
        dense = predictions(self.outputs)
        truth = dense if self.labels is None else self.labels
        correct = predictions(self.outputs_of(model)) == truth
        return mean_over_processes(self.accelerator, (dense == truth).double() - correct.double())


def check_classes(model: PreTrainedModel) -> None:
    """That there is an accuracy to lose.

    Raises:
        BudgetError: the model has no classes.
    """
    if not is_classifier(model):
        raise BudgetError(
            f"max_accuracy_drop needs a classifier, and {type(model).__name__} has no classes. Use keep_ratio."
        )
