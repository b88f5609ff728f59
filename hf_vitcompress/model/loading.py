"""Models and image processors by Hub id, folder or as they are."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import transformers
from accelerate import Accelerator
from safetensors import SafetensorError
from transformers import AutoConfig, AutoImageProcessor, AutoProcessor, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import CONFIG_MAPPING
from transformers.quantizers.quantizer_torchao import TorchAoHfQuantizer
from transformers.utils.generic import is_timm_config_dict
from transformers.utils.quantization_config import QuantizationConfigMixin

from ..architectures.families import FAMILIES, TIMM, supported
from ..architectures.registration import register
from ..configuration_factored import MODEL_TYPE_PREFIX, dense_config_class, heads_of, inner_configs
from ..errors import QuantizationError, UnsupportedModelError
from ..modeling_factored import factored_model_class
from ..runtime.distributed import new_accelerator
from ..runtime.outputs import complete_exchange


def load_model(
    name: str | Path,
    accelerator: Accelerator | None = None,
    quantization_config: QuantizationConfigMixin | None = None,
) -> PreTrainedModel:
    """Load a dense or compressed model, with the head that its checkpoint was saved with.

    Args:
        name: Hub id or folder.
        accelerator: places the model on its device.
        quantization_config: how to quantize the model while it is loaded; `None` leaves it as it was saved.

    Raises:
        UnsupportedModelError: the model cannot be found, or its architecture is not supported.
        QuantizationError: the model is quantized already or cannot be quantized, or the library that quantized it is
            missing.
    """
    complete_exchange(name)
    try:
        config = _load_config(name)
        if quantization_config is not None and hasattr(config, "quantization_config"):
            raise QuantizationError(
                f"The model {str(name)!r} is quantized already. Quantize the folder it was made from, in the way you "
                "want now."
            )
        chosen = model_class(config)
        loaded_by = chosen if quantization_config is None else _quantizable(chosen)
        model = loaded_by.from_pretrained(name, config=config, quantization_config=quantization_config)
        model.__class__ = chosen
        if type(quantizer := getattr(model, "hf_quantizer", None)) is TorchAoHfQuantizer:
            quantizer.__class__ = ReadableQuantizer
    except ImportError as error:
        raise QuantizationError(
            f"The model {str(name)!r} is quantized by a library that is missing here: {_first_line(error)} Install it; "
            "for models of `vitcompress quantize` that is `pip install torchao`."
        ) from error
    except (OSError, ValueError, SafetensorError) as error:
        if isinstance(error, UnsupportedModelError):
            raise
        if "does not recognize this architecture" in str(error):
            raise UnsupportedModelError(f"{str(name)!r} has an unknown architecture. {supported()}") from error
        raise UnsupportedModelError(
            f"The model {str(name)!r} cannot be loaded: {_first_line(error)} Give a folder made by save_pretrained, or "
            "a Hub id (a private one needs `hf auth login`)."
        ) from error
    except RuntimeError as error:
        if quantization_config is None or isinstance(error, QuantizationError):
            raise
        raise QuantizationError(f"The model {str(name)!r} cannot be quantized: {_first_line(error)}") from error
    device = (accelerator or new_accelerator()).device
    return model.to(device).eval()


class ReadableQuantizer(TorchAoHfQuantizer):
    """Writes what torchao reads again: its list can have no tensor whose name has no dot, as CLIP's logit_scale.

    Tensors that are not in it are read as those of any checkpoint.
    """

    def get_state_dict_and_metadata(self, model: PreTrainedModel) -> tuple[dict[str, Any], dict[str, str]]:
        """As torchao's, without the names that it could not read."""
        state, metadata = super().get_state_dict_and_metadata(model)
        listed = [name for name in json.loads(metadata["tensor_names"]) if "." in name]
        return state, {**metadata, "tensor_names": json.dumps(listed)}


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
        raise UnsupportedModelError(f"Give a transformers model, a folder or a Hub id, not a {name}. {supported()}")
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


def load_processor(model: PreTrainedModel) -> Any:
    """What prepares texts and images for a model that takes both, or `None` where nothing of it lies beside it."""
    name = model.config.name_or_path
    try:
        return AutoProcessor.from_pretrained(name) if name else None
    except (OSError, ValueError, ImportError):
        return None


def auto_class_name(model_type: str, architectures: Sequence[str] | None) -> str:
    """Name of the Auto class that builds `architectures[0]`; `AutoModel` where none does or a config does not say."""
    wanted = {name.removeprefix("Factored") for name in architectures or []}
    heads = heads_of(model_type) if model_type.removeprefix(MODEL_TYPE_PREFIX) in CONFIG_MAPPING else {}
    return next((name for name, classes in heads.items() if wanted & {c.__name__ for c in classes}), "AutoModel")


def model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class a checkpoint was saved from, dense or factored; the default one where its config does not say."""
    heads = heads_of(config.model_type)
    known = {dense.__name__: dense for classes in heads.values() for dense in classes}
    names = [name.removeprefix("Factored") for name in config.architectures or []]
    chosen = next((found for name in names if (found := known.get(name) or _class_of(name, config))), None)
    dense = chosen or next(iter([*heads.get("AutoModel", ()), *known.values()]))
    return factored_model_class(dense) if config.model_type.startswith(MODEL_TYPE_PREFIX) else dense


def _quantizable(found: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """The class to quantize while loading: transformers then asks for input embeddings, which images need not have."""

    def get_input_embeddings(model: PreTrainedModel) -> Any:
        try:
            return found.get_input_embeddings(model)
        except NotImplementedError:
            return None

    body = {"__module__": found.__module__, "get_input_embeddings": get_input_embeddings}
    return type(found.__name__, (found,), body)


def _class_of(name: str, config: PreTrainedConfig) -> type[PreTrainedModel] | None:
    """The model class of transformers of that name, of those that no Auto class knows, such as `…WithProjection`."""
    found = getattr(transformers, name, None)
    ours = dense_config_class(config.model_type)
    return found if isinstance(found, type) and getattr(found, "config_class", None) is ours else None


def _load_config(name: str | Path) -> PreTrainedConfig:
    """Of a supported model, dense or compressed.

    Raises:
        UnsupportedModelError: the architecture is not supported.
    """
    content = PreTrainedConfig.get_config_dict(name)[0]
    model_type = content.get("model_type", "")
    if is_timm_config_dict(content) or model_type == "timm_wrapper":
        raise UnsupportedModelError(TIMM)
    if model_type.startswith(MODEL_TYPE_PREFIX) and model_type.removeprefix(MODEL_TYPE_PREFIX) in CONFIG_MAPPING:
        register(model_type.removeprefix(MODEL_TYPE_PREFIX))
    config = AutoConfig.from_pretrained(name)
    check_model_type(config)
    return config


def check_model_type(config: PreTrainedConfig) -> None:
    """That the architecture, or a part of it, is a supported one.

    Raises:
        UnsupportedModelError: it is not.
    """
    dense_type = config.model_type.removeprefix(MODEL_TYPE_PREFIX)
    if not (set(_model_types(config)) & set(FAMILIES)):
        raise UnsupportedModelError(f"The model type {dense_type!r} is not supported. {supported()}")


def _model_types(config: PreTrainedConfig) -> Iterator[str]:
    """Of a config and of those in it."""
    yield config.model_type.removeprefix(MODEL_TYPE_PREFIX)
    for inner in inner_configs(config).values():
        yield from _model_types(inner)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") + "."
