"""A model held against the dense one that it came from: costs, answers, times."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator
from transformers import PreTrainedModel

from ..images.images import ImageSource
from ..model.loading import load_model
from ..model.towers import compressed_part
from ..runtime.distributed import new_accelerator
from ..runtime.weights import disk_bytes
from .costs import Costs, count_costs, patch_tokens
from .evaluation import Evaluation, evaluate_model
from .latency import LATENCY_BATCHES, Latency, measure_latency

if TYPE_CHECKING:
    from evaluate import EvaluationModule


@dataclass(frozen=True)
class Candidate:
    """A model to be compared, and the checkpoint it was loaded from.

    Attributes:
        name: Hub id or folder.
        model: compressed or dense, in evaluation mode.
        disk_bytes: of the folder's weight files; `None` for a checkpoint on the Hub.
    """

    name: str
    model: PreTrainedModel
    disk_bytes: int | None

    @classmethod
    def load(cls, name: str, accelerator: Accelerator | None = None) -> "Candidate":
        """Load a checkpoint onto the accelerator's device.

        Raises:
            UnsupportedModelError: it cannot be found, or its architecture is not supported.
        """
        size = disk_bytes(name) if Path(name).is_dir() else None
        return cls(name, load_model(name, accelerator), size)


@dataclass
class Comparison:
    """Figures of a model and, where one was given, of the dense model it is compared with.

    `patch_tokens` are those of one image in the first and in the last block, of a model that merges tokens.
    """

    model: str
    against: str | None
    data: str
    costs: Costs
    dense_costs: Costs | None
    disk_bytes: int | None
    dense_disk_bytes: int | None
    evaluation: Evaluation
    latency: list[Latency]
    precision: str
    patch_tokens: tuple[int, int] | None = None


def compare(
    candidate: Candidate,
    dense: Candidate | None,
    images: ImageSource,
    image_processor: Any = None,
    *,
    metrics: Sequence["str | EvaluationModule"] = (),
    latency: bool = False,
    batch_size: int = 32,
    precision: str = "float32",
    progress: bool = True,
    accelerator: Accelerator | None = None,
) -> Comparison:
    """Evaluate a model, and hold it against the dense one where that is given.

    Several processes share the images; the main one times the models. Costs and times are for images of their shape.

    Args:
        metrics, precision: see `evaluate_model`.
        latency: whether to time both models, where there are two: with one image and with `batch_size`.
        batch_size: images in a batch.

    Raises:
        ConfigError, DataError: see `evaluate_model`.
    """
    accelerator = accelerator or new_accelerator()
    model, other = candidate.model, None if dense is None else dense.model
    evaluation = evaluate_model(
        model,
        images,
        image_processor,
        other,
        metrics=metrics,
        batch_size=batch_size,
        precision=precision,
        progress=progress,
        accelerator=accelerator,
    )
    shape = _image_shape(images, image_processor, batch_size)
    sizes = sorted({LATENCY_BATCHES[0], batch_size}) if latency and accelerator.is_main_process else []
    return Comparison(
        model=candidate.name,
        against=None if dense is None else dense.name,
        data=images.name,
        costs=count_costs(compressed_part(model, model).model, shape),
        dense_costs=None if other is None else count_costs(compressed_part(other, model).model, shape),
        disk_bytes=candidate.disk_bytes,
        dense_disk_bytes=None if dense is None else dense.disk_bytes,
        evaluation=evaluation,
        latency=[] if other is None else [measure_latency(other, model, size, shape=shape) for size in sizes],
        precision=precision,
        patch_tokens=patch_tokens(compressed_part(model, model).model, shape),
    )


def _image_shape(images: ImageSource, image_processor: Any, batch_size: int) -> tuple[int, ...]:
    """Of one image's `pixel_values`, in the first batch."""
    batch = next(replace(images).batches(image_processor, batch_size))
    return tuple(batch.pixel_values.shape[1:])
