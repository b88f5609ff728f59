"""A dense model's outputs on some images, to hold compressed ones against."""

from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from ..architectures.outputs import is_classifier
from ..config import CompressionConfig
from ..errors import BudgetError
from ..images.images import Batch, ImageSource
from ..runtime.devices import resolve_precision
from ..runtime.distributed import gather_rows, local_work, mean_over_processes, new_accelerator, own_share, sum_numbers
from .evaluation import Outputs, divergences, model_outputs, predictions


@dataclass
class Reference:
    """A dense model's outputs on some images, to hold compressed ones against.

    Attributes:
        batches: this process's share of the images.
        outputs: of the dense model on them.
        labels: (n,), or `None`.
        classes: whether every image has one class.
        images: how many images all processes together have.
        accelerator: over whose processes the images are dealt out.
    """

    batches: list[Batch]
    precision: str
    outputs: Outputs
    labels: Tensor | None
    classes: bool
    images: int
    accelerator: Accelerator

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        images: ImageSource,
        processor: Any,
        config: CompressionConfig,
        accelerator: Accelerator | None = None,
    ) -> "Reference":
        accelerator = accelerator or new_accelerator()
        precision = resolve_precision(config.precision, model.device)
        with local_work(accelerator, "Reading images"):
            share = own_share(accelerator, images.batch_count(2 * config.batch_size))
            batches = list(images.batches(processor, 2 * config.batch_size, share))
            outputs, labels = model_outputs(model, batches, precision)
        count = round(sum_numbers(accelerator, [sum(len(terms[0]) for terms in outputs)])[0])
        if count == 0:
            raise images.unreadable()
        return cls(batches, precision, outputs, labels, is_classifier(model), count, accelerator)

    def losses_of(self, model: PreTrainedModel) -> Tensor:
        """Divergence from the dense model (images,), nats (see `outputs.divergence`), on every process."""
        outputs = model_outputs(model, self.batches, self.precision)[0]
        return gather_rows(self.accelerator, divergences(self.outputs, outputs))

    def loss_of(self, model: PreTrainedModel) -> float:
        """Their mean."""
        return float(self.losses_of(model).mean())

    def drop_of(self, model: PreTrainedModel) -> float:
        """Accuracy lost, as a fraction; without labels, share of images on which the two models differ."""
        dense = predictions(self.outputs)
        truth = dense if self.labels is None else self.labels
        correct = predictions(model_outputs(model, self.batches, self.precision)[0]) == truth
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
