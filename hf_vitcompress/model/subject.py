"""Opening what is to be compressed."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers import PreTrainedModel

from ..architectures.layers import check_class
from ..architectures.subject import Subject
from ..runtime.random_state import independent_of_caller
from .as_built import check_as_built
from .loading import load_dense_model, load_image_processor
from .stored import stored_dtype
from .timm import check_runs, is_wrapper, split_form
from .timm_features import check_dense
from .towers import check_takes_images, part_of


@independent_of_caller()
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
        UnsupportedModelError: see `loading.load_model`, `loading.check_model`, `layers.check_class` and
            `as_built.check_as_built`; and `timm_features.check_dense` and `timm.check_runs`.
    """
    check_dense(model)
    dense = load_dense_model(model, accelerator)
    check_dense(dense)
    if any(parameter.is_inference() for parameter in dense.parameters()):
        dense = copy.deepcopy(dense)  # nothing can be differentiated by weights made under torch.inference_mode
    if is_wrapper(dense):
        wrapper, dense = dense, split_form(dense)
        check_runs(dense, wrapper)
    processor = image_processor if image_processor is not None else load_image_processor(dense)
    stored = stored_dtype(model) if isinstance(model, str | Path) else None
    if target is None:
        check_takes_images(dense)
        subject = Subject.alone(dense, processor)
    else:
        subject = part_of(dense, target, processor)
    check_class(dense)
    check_as_built(dense)
    return replace(subject, stored=stored)
