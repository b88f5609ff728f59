"""A dense model's outputs on some images, to hold compressed ones against."""

import itertools
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from ..architectures.outputs import is_classifier
from ..architectures.subject import Subject
from ..errors import BudgetError, DataWarning
from ..images.classes import UNLABELLED
from ..images.images import Batch, ImageSource
from ..runtime.devices import resolve_precision
from ..runtime.distributed import gather_objects, gather_rows, local_work, mean_over_processes, own_share, sum_numbers
from ..runtime.run import Run
from .checks import check_same_form
from .evaluation import Outputs, divergences, model_outputs, predictions
from .intervals import wilson_interval
from .labels import FEWEST, guessing, is_guessing

HELD_IMAGES = 1024
"""So many images at most stay in memory, as the model takes them: 620 MB of 224 × 224. The recipe's own shares
(`measuring_images`, `held_out_images`, `validation_images`) have no more by default."""


@dataclass
class Reference:
    """A dense model's outputs on some images, to hold compressed ones against.

    Attributes:
        subject: the dense model.
        source: the images, not yet read.
        share: the batches that are this process's.
        held: these batches, if there are no more images than `HELD_IMAGES`.
        outputs: of the dense model on them.
        labels: (n,), `UNLABELLED` where one is not known, or `None`.
        images: how many images all processes together have.
        accelerator: over whose processes the images are dealt out.
        trusted: whether labels may be used; see `distrust_guesses`.
    """

    subject: Subject
    source: ImageSource
    share: range
    held: list[Batch] | None
    batch_size: int
    precision: str
    outputs: Outputs
    labels: Tensor | None
    images: int
    accelerator: Accelerator
    trusted: bool = True

    @classmethod
    def of(cls, subject: Subject, images: ImageSource, run: Run) -> "Reference":
        """Run the dense model on all of the images, this process on its share."""
        config, accelerator = run.config, run.accelerator
        precision = resolve_precision(config.precision, subject.model.device)
        with local_work(accelerator, "Reading images"):
            share = own_share(accelerator, images.batch_count(2 * config.batch_size))
            batches = images.batches(subject.processor, 2 * config.batch_size, share)
            held = list(batches) if len(images) <= HELD_IMAGES else None
            outputs, labels = model_outputs(subject, batches if held is None else held, precision)
        count = round(sum_numbers(accelerator, [sum(len(terms[0]) for terms in outputs)])[0])
        images.account(accelerator)
        return cls(subject, images, share, held, 2 * config.batch_size, precision, outputs, labels, count, accelerator)

    @property
    def classes(self) -> bool:
        """Whether every image has one class."""
        return is_classifier(self.subject.model)

    def check_form(self, model: PreTrainedModel) -> None:
        """Run a model on the first batch, if this process has one.

        Raises:
            ConfigError: its outputs have another form than the dense model's.
        """
        for batch in itertools.islice(self.batches, 1):
            ours = model_outputs(self.subject.like(model), [batch], self.precision)[0]
            check_same_form(ours[0], self.outputs[0])

    def outputs_of(self, model: PreTrainedModel) -> Outputs:
        """What a compressed form of the dense model says about the same images."""
        return model_outputs(self.subject.like(model), self.batches, self.precision)[0]

    @property
    def batches(self) -> Iterable[Batch]:
        """This process's share of the images; many are read again each time, so that memory does not grow with them."""
        if self.held is not None:
            return self.held
        return self.source.batches(self.subject.processor, self.batch_size, self.share)

    def losses_of(self, model: PreTrainedModel) -> Tensor:
        """Divergence from the dense model (images,), nats (see `outputs.divergence`), on every process."""
        return gather_rows(self.accelerator, divergences(self.outputs, self.outputs_of(model)))

    def loss_of(self, model: PreTrainedModel) -> float:
        """Their mean."""
        return float(self.losses_of(model).mean())

    def distrust_guesses(self, instead: str) -> None:
        """Do without the labels where the dense model's accuracy on them is that of guessing, and say so.

        So, too, where nearly none of the images has a label.

        Args:
            instead: what takes the labels' place, for the warning.
        """
        if not self.classes:
            return
        # A process without images has no labels either, and must take part all the same.
        parts = [part for part in gather_objects(self.accelerator, self._known_right()) if part is not None]
        if not parts:
            return
        right = torch.cat(parts)
        problem = ""
        if len(right) < min(FEWEST, self.images):
            problem = f"Only {len(right)} of {self.images} images of {self.source.name} have labels that fit the model"
        else:
            top1 = wilson_interval(int(right.sum()), len(right))
            if is_guessing(top1, len(right), self.subject.model.config.num_labels):
                problem = guessing("The dense model's", top1, self.source.name)
        if problem:
            self.labels, self.trusted = None, False
            if self.accelerator.is_main_process:
                warnings.warn(f"{problem}. They are not used; {instead}.", DataWarning, stacklevel=2)

    def _known_right(self) -> Tensor | None:
        """Of each labelled image whether the dense model knows its class."""
        if self.labels is None:
            return None
        known = self.labels != UNLABELLED
        return (predictions(self.outputs) == self.labels)[known]

    def labelled_images(self) -> int:
        """On how many images of all processes `drop_of` counts labels; 0 where it counts agreement on all of them."""
        known = 0 if self.labels is None else int((self.labels != UNLABELLED).sum())
        return round(sum_numbers(self.accelerator, [known])[0])

    def drop_of(self, model: PreTrainedModel) -> float:
        """Accuracy lost on the labelled images, as a fraction; without labels, share on which the two models differ."""
        dense, ours = predictions(self.outputs), predictions(self.outputs_of(model))
        if self.labels is None:
            return mean_over_processes(self.accelerator, (dense != ours).double())
        known = self.labels != UNLABELLED
        lost = (dense == self.labels).double() - (ours == self.labels).double()
        return mean_over_processes(self.accelerator, lost[known])


def check_classes(model: PreTrainedModel) -> None:
    """That there is an accuracy to lose.

    Raises:
        BudgetError: the model has no classes.
    """
    if not is_classifier(model):
        raise BudgetError(
            f"max_accuracy_drop needs a classifier, and {type(model).__name__} has no classes. Use keep_ratio."
        )
