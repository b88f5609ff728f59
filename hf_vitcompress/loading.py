"""Models and image processors by Hub id, folder or as they are."""

from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors import SafetensorError
from transformers import AutoConfig, AutoImageProcessor, AutoModel, PreTrainedModel
from transformers.models.auto import modeling_auto

from .distribution import new_accelerator
from .errors import UnsupportedModelError
from .families import supported_model_types
from .modeling_factored import FACTORED_ARCHITECTURES, MODEL_TYPE_PREFIX


def load_model(name: str | Path, accelerator: Accelerator | None = None) -> PreTrainedModel:
    """A dense or compressed model with the head its checkpoint was saved with.

    Raises:
        UnsupportedModelError: it cannot be found, or its architecture is not supported.
    """
    try:
        config = AutoConfig.from_pretrained(name)
        model = _auto_class(config).from_pretrained(name, config=config)
    except (OSError, ValueError, SafetensorError) as error:
        if isinstance(error, UnsupportedModelError):
            raise
        if "does not recognize this architecture" in str(error):
            raise UnsupportedModelError(f"{str(name)!r} has an unknown architecture. {_supported()}") from error
        raise UnsupportedModelError(
            f"The model {str(name)!r} cannot be loaded: {_first_line(error)} Give a folder made by save_pretrained, or "
            "a Hub id (a private one needs `hf auth login`)."
        ) from error
    device = (accelerator or new_accelerator()).device
    return model.to(device).eval()


def load_dense_model(model: str | Path | PreTrainedModel, accelerator: Accelerator | None = None) -> PreTrainedModel:
    """`model` itself, or loaded by `load_model`."""
    if isinstance(model, str | Path):
        return load_model(model, accelerator)
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedModelError(
            f"Give a transformers model, a folder or a Hub id, not a {type(model).__name__}. {_supported()}"
        )
    return model


def load_image_processor(model: str | Path | PreTrainedModel) -> Any:
    """The image processor beside a model, or `None` where there is none."""
    name = model.config.name_or_path if isinstance(model, PreTrainedModel) else str(model)
    if not name:
        return None
    try:
        return AutoImageProcessor.from_pretrained(name)
    except (OSError, ValueError):
        return None


def _auto_class(config: Any) -> Any:
    """The Auto class that builds `config.architectures[0]`; `AutoModel` where the config does not say."""
    model_type = config.model_type.removeprefix(MODEL_TYPE_PREFIX)
    if model_type not in FACTORED_ARCHITECTURES:
        raise UnsupportedModelError(f"The model type {config.model_type!r} is not supported. {_supported()}")
    wanted = {name.removeprefix("Factored") for name in config.architectures or []}
    for auto_name, class_names in FACTORED_ARCHITECTURES[model_type].heads.items():
        if wanted & set(class_names):
            return getattr(modeling_auto, auto_name)
    return AutoModel


def _supported() -> str:
    return f"Supported model types: {', '.join(supported_model_types())}."


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") + "."
