"""Opening what is to be compressed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers import PreTrainedModel

from ..architectures.layers import check_class
from ..architectures.subject import Subject
from ..errors import UnsupportedModelError
from ..runtime.random_state import unchanged_random_state
from .loading import load_dense_model, load_image_processor
from .stored import stored_dtype
from .towers import check_takes_images, part_of


@unchanged_random_state()
def open_subject(
    model: str | Path | PreTrainedModel,
    target: str | None = None,
    image_processor: Any = None,
    accelerator: Accelerator | None = None,
) -> Subject:
    """The dense model to compress: `model`, or the model inside it that `target` names.

    Args:
        model: Hub id, local folder or loaded model.
        image_processor: by default the one beside the model.

    Raises:
        ConfigError: `target` names no model or several, or the model takes more than images and there is no `target`.
        UnsupportedModelError: the model has no weights; or see `loading.load_model`, `loading.check_model` and
            `layers.check_class`.
    """
    dense = load_dense_model(model, accelerator)
    if any(parameter.is_meta for parameter in dense.parameters()):
        raise UnsupportedModelError(
            f"This {type(dense).__name__} has no weights: it is on the device `meta`. Load it with from_pretrained, "
            "without a device_map that leaves layers there."
        )
    processor = image_processor if image_processor is not None else load_image_processor(dense)
    stored = stored_dtype(model) if isinstance(model, str | Path) else None
    if target is None:
        check_takes_images(dense)
        return replace(Subject.alone(dense, processor), stored=stored)
    subject = part_of(dense, target, processor)
    check_class(dense)
    return replace(subject, stored=stored)
