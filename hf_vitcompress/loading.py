"""Models and image processors by Hub id, folder or as they are."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors import SafetensorError
from transformers import AutoConfig, AutoImageProcessor, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.utils.quantization_config import QuantizationConfigMixin

from .distribution import new_accelerator
from .errors import QuantizationError, UnsupportedModelError
from .families import supported_model_types
from .modeling_factored import FACTORED_ARCHITECTURES, MODEL_TYPE_PREFIX


def load_model(
    name: str | Path,
    accelerator: Accelerator | None = None,
    quantization_config: QuantizationConfigMixin | None = None,
) -> PreTrainedModel:
    """A dense or compressed model with the head its checkpoint was saved with.

    Args:
        quantization_config: how to quantize it while it is loaded; `None` leaves it as it was saved, quantized or not.

    Raises:
        UnsupportedModelError: it cannot be found, or its architecture is not supported.
        QuantizationError: it is to be quantized and is so already, or the library that quantized it is missing.
    """
    try:
        config = AutoConfig.from_pretrained(name)
        if quantization_config is not None and hasattr(config, "quantization_config"):
            raise QuantizationError(
                f"The model {str(name)!r} is quantized already. Quantize the folder it was made from, in the way you "
                "want now."
            )
        if config.model_type.removeprefix(MODEL_TYPE_PREFIX) not in FACTORED_ARCHITECTURES:
            raise UnsupportedModelError(f"The model type {config.model_type!r} is not supported. {_supported()}")
        auto_class = getattr(modeling_auto, auto_class_name(config.model_type, config.architectures))
        model = auto_class.from_pretrained(name, config=config, quantization_config=quantization_config)
    except ImportError as error:
        raise QuantizationError(
            f"The model {str(name)!r} is quantized by a library that is missing here: {_first_line(error)} Install it; "
            "for models of `vitcompress quantize` that is `pip install torchao`."
        ) from error
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
    """`model` itself, or loaded by `load_model`.

    Raises:
        UnsupportedModelError: see `load_model` and `check_model`.
    """
    loaded = load_model(model, accelerator) if isinstance(model, str | Path) else model
    check_model(loaded)
    return loaded


def check_model(model: Any) -> None:
    """That it is a model of transformers whose linear layers have plain weights.

    Raises:
        UnsupportedModelError: it is none, is quantized or has adapters.
    """
    name = type(model).__name__
    if getattr(model, "_hf_peft_config_loaded", False) or hasattr(model, "merge_and_unload"):
        raise UnsupportedModelError(
            f"This {name} has adapters. Give what `merge_and_unload` of PEFT makes of a model from `get_peft_model`."
        )
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedModelError(f"Give a transformers model, a folder or a Hub id, not a {name}. {_supported()}")
    if getattr(model, "hf_quantizer", None) is not None:
        raise UnsupportedModelError(f"This {name} is quantized already. Give the model as it was before quantization.")


def load_image_processor(model: str | Path | PreTrainedModel) -> Any:
    """The image processor beside a model, or `None` where there is none."""
    name = model.config.name_or_path if isinstance(model, PreTrainedModel) else str(model)
    if not name:
        return None
    try:
        return AutoImageProcessor.from_pretrained(name)
    except (OSError, ValueError):
        return None


def auto_class_name(model_type: str, architectures: Sequence[str] | None) -> str:
    """Name of the Auto class that builds `architectures[0]`; `AutoModel` where a config does not say."""
    architecture = FACTORED_ARCHITECTURES.get(model_type.removeprefix(MODEL_TYPE_PREFIX))
    heads = {} if architecture is None else architecture.heads
    wanted = {name.removeprefix("Factored") for name in architectures or []}
    return next((name for name, classes in heads.items() if wanted & set(classes)), "AutoModel")


def _supported() -> str:
    return f"Supported model types: {', '.join(supported_model_types())}."


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") + "."
