"""Models and image processors by Hub id, folder or as they are."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import transformers
from accelerate import Accelerator
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    TorchAoConfig,
)
from transformers.image_processing_base import ImageProcessingMixin
from transformers.models.auto import CONFIG_MAPPING
from transformers.utils import IMAGE_PROCESSOR_NAME, logging

from ..architectures.families import FAMILIES, supported
from ..architectures.registration import register
from ..architectures.timm_inputs import WRAPPER
from ..configuration_factored import MODEL_TYPE_PREFIX, OWN_TYPES, dense_config_class, heads_of, inner_configs
from ..errors import QuantizationError, UnsupportedModelError
from ..images.unloaded import UnloadedProcessor
from ..modeling_factored import factored_model_class
from ..runtime.distributed import new_accelerator
from ..runtime.outputs import complete_exchange
from .boundary import config_content, damaged_processor, explained
from .completeness import check_complete, check_size, without_report
from .making import MAKING
from .plain import check_plain, unwrapped
from .quantizing import quantizable, spare_layers_with_biases_beside, spare_narrow_layers, write_readably
from .timm import is_timm_module, wrapped
from .timm_features import BACKBONE, feature_maps_of, from_its_folder, gives_features
from .timm_images import timm_processor

logger = logging.get_logger(__name__)


def load_model(
    name: str | Path,
    accelerator: Accelerator | None = None,
    quantization_config: TorchAoConfig | None = None,
) -> PreTrainedModel:
    """Load a dense or compressed model, with the head that its checkpoint was saved with.

    Args:
        name: Hub id or folder.
        accelerator: places the model on its device.
        quantization_config: how to quantize the model while it is loaded; `None` leaves it as it was saved.

    Raises:
        UnsupportedModelError: the model cannot be found or read, its architecture is not supported, or its checkpoint
            lacks weights that it runs with.
        QuantizationError: the model is quantized already or cannot be quantized, or the library that quantized it is
            missing.
    """
    place = accelerator or new_accelerator()
    with explained(str(name), quantizing=quantization_config is not None):
        complete_exchange(name)
        config = _load_config(str(name))
        if quantization_config is not None and hasattr(config, "quantization_config"):
            raise QuantizationError(
                f"The model {str(name)!r} is quantized already. Quantize the folder it was made from, in the way you "
                "want now."
            )
        chosen = model_class(config)
        check_size(str(name), chosen, config)
        loaded_by, narrow, beside = from_its_folder(chosen), [], []
        if quantization_config is not None and config.model_type == BACKBONE:
            raise QuantizationError(
                f"The model {str(name)!r} is a TimmBackbone, which transformers loads from no folder, quantized or "
                "not. Quantize the folder of its compressed form."
            )
        if quantization_config is not None:
            loaded_by, narrow = quantizable(chosen), spare_narrow_layers(quantization_config, chosen, config)
            beside = spare_layers_with_biases_beside(quantization_config, chosen, config)
        with MAKING, without_report():
            loaded: Any = loaded_by.from_pretrained(
                name,
                config=config,
                quantization_config=quantization_config,
                ignore_mismatched_sizes=True,  # they are refused below, by name
                output_loading_info=True,
            )
        model, info = loaded
        model.__class__ = chosen
        write_readably(model)
        remark = check_complete(str(name), model, info)
        remarks = [
            remark,
            _spared(narrow, "reads one feature", "read one feature"),
            _spared(beside, "has its biases beside it", "have their biases beside them"),
        ]
        remark = " ".join(said for said in remarks if said) or None
        if remark is not None and place.is_main_process:
            logger.warning(remark)
        if chosen is not loaded_by and quantization_config is None:
            model = feature_maps_of(model)
        return model.to(place.device).eval()


def _spared(names: Sequence[str], of_one: str, of_several: str) -> str:
    if not names:
        return ""
    if len(names) == 1:
        return f"The layer {names[0]} {of_one}, which torchao cannot quantize, and stays as it is."
    listed = ", ".join(names)
    return f"{len(names)} layers {of_several}, which torchao cannot quantize, and stay as they are: {listed}."


def load_dense_model(model: str | Path | PreTrainedModel, accelerator: Accelerator | None = None) -> PreTrainedModel:
    """`model` itself, without what wraps it, or loaded by `load_model`.

    Raises:
        UnsupportedModelError: see `load_model` and `check_model`.
    """
    loaded = load_model(model, accelerator) if isinstance(model, str | Path) else unwrapped(model)
    if isinstance(loaded, nn.Module) and gives_features(loaded):
        loaded = feature_maps_of(loaded)
    elif is_timm_module(loaded):
        loaded = wrapped(loaded)
    check_model(loaded)
    return loaded


def check_model(model: Any) -> None:
    """That it is a model of transformers, and all its weights are there and plain.

    Raises:
        UnsupportedModelError: it is none, is quantized, offloaded or without weights, or has adapters.
    """
    name = type(model).__name__
    if getattr(model, "_hf_peft_config_loaded", False) or hasattr(model, "merge_and_unload"):
        raise UnsupportedModelError(
            f"This {name} has adapters. Give what `merge_and_unload` of PEFT makes of a model from `get_peft_model`."
        )
    if is_timm_module(model):
        raise UnsupportedModelError(
            f"This {name} is a module of timm, and here a model of transformers is needed, such as a "
            "TimmWrapperForImageClassification: write the module to a folder with timm.models.save_for_hf, and give "
            "AutoModelForImageClassification.from_pretrained(folder)."
        )
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedModelError(f"Give a transformers model, a folder or a Hub id, not a {name}. {supported()}")
    if getattr(model, "hf_quantizer", None) is not None:
        raise UnsupportedModelError(f"This {name} is quantized already. Give the model as it was before quantization.")
    check_plain(model)


def load_image_processor(model: str | Path | PreTrainedModel) -> Any:
    """The image processor that a model is saved with, or else the one beside it; `None` where there is none.

    That of a timm model is made of its config, unless there is a file of another beside it. One that cannot be loaded
    here, because a package is missing or transformers lacks its class, is an `UnloadedProcessor`.

    Raises:
        UnsupportedModelError: its file is damaged.
    """
    for companion in getattr(model, "companions", []):
        if isinstance(companion, ImageProcessingMixin | UnloadedProcessor):
            return companion
    name = model.config.name_or_path if isinstance(model, PreTrainedModel) else str(model)
    config = model.config.to_dict() if isinstance(model, PreTrainedModel) else None
    if not name:
        return timm_processor(config or {})
    settings = None
    try:
        settings = ImageProcessingMixin.get_image_processor_dict(name)[0]
        # In the folder of a timm model, transformers would pass over this file. Where nothing is said of remote code,
        # it asks at the terminal.
        return AutoImageProcessor.from_pretrained(
            name, image_processor_filename=IMAGE_PROCESSOR_NAME, trust_remote_code=False
        )
    except MemoryError:
        raise
    except Exception as error:  # values of a file reach constructors that check none of them
        if isinstance(settings, dict) and _is_of_the_environment(error):
            return UnloadedProcessor.of(name, settings, error)
        if isinstance(error, OSError | ValueError) and not any(Path(name).glob("*processor_config.json")):
            return timm_processor(config or PreTrainedConfig.get_config_dict(name)[0])
        raise damaged_processor(name, error) from error


def _is_of_the_environment(error: Exception) -> bool:
    """Whether an image processor may be loaded elsewhere."""
    return isinstance(error, ImportError) or any(sign in str(error) for sign in ("Unrecognized", "trust_remote_code"))


def load_processor(model: PreTrainedModel) -> Any:
    """What prepares texts and images for a model that takes both, or `None` where nothing usable lies beside it."""
    name = model.config.name_or_path
    try:
        return AutoProcessor.from_pretrained(name, trust_remote_code=False) if name else None
    except (OSError, ValueError, ImportError):
        return None
    except Exception as error:  # as above; what was computed by now is worth more than the processor
        logger.warning(f"{damaged_processor(str(name), error)} The compressed model is saved without it.")
        return None


def auto_class_name(model_type: str, architectures: Sequence[str] | None) -> str:
    """Name of the Auto class that builds `architectures[0]`; `AutoModel` where none does or a config does not say."""
    wanted = {name.removeprefix("Factored") for name in architectures or []}
    heads = heads_of(model_type) if _is_known(model_type) else {}
    return next((name for name, classes in heads.items() if wanted & {c.__name__ for c in classes}), "AutoModel")


def _is_known(model_type: str) -> bool:
    """Whether the type, dense or factored, has classes here."""
    name = model_type.removeprefix(MODEL_TYPE_PREFIX)
    return name in CONFIG_MAPPING or name in OWN_TYPES


def model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class a checkpoint was saved from, dense or factored; the default one where its config does not say."""
    heads = heads_of(config.model_type)
    known = {dense.__name__: dense for classes in heads.values() for dense in classes}
    names = [str(name).removeprefix("Factored") for name in config.architectures or []]
    if config.model_type == WRAPPER and not names:
        names = ["TimmWrapperForImageClassification" if config.num_labels else "TimmWrapperModel"]
    chosen = next((found for name in names if (found := known.get(name) or _class_of(name, config))), None)
    dense = chosen or next(iter([*heads.get("AutoModel", ()), *known.values()]))
    return factored_model_class(dense) if config.model_type.startswith(MODEL_TYPE_PREFIX) else dense


def _class_of(name: str, config: PreTrainedConfig) -> type[PreTrainedModel] | None:
    """The model class of transformers of that name, of those that no Auto class knows, such as `…WithProjection`."""
    found = getattr(transformers, name, None)
    ours = dense_config_class(config.model_type)
    return found if isinstance(found, type) and getattr(found, "config_class", None) is ours else None


def _load_config(name: str) -> PreTrainedConfig:
    """Of a supported model, dense or compressed.

    Raises:
        UnsupportedModelError: the architecture is not supported.
    """
    model_type = config_content(name)["model_type"]
    if model_type.startswith(MODEL_TYPE_PREFIX) and _is_known(model_type):
        register(model_type.removeprefix(MODEL_TYPE_PREFIX))
    config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    if config.model_type == WRAPPER and config.model_args:
        # timm's own files state it there, too, and the wrapper hands it on beside the number of labels.
        config.model_args.pop("num_classes", None)
    check_model_type(config)
    return config


def check_model_type(config: PreTrainedConfig) -> None:
    """That the architecture, or a part of it, is a supported one.

    Raises:
        UnsupportedModelError: it is not.
    """
    dense_type = config.model_type.removeprefix(MODEL_TYPE_PREFIX)
    if dense_type != BACKBONE and not (set(_model_types(config)) & {*FAMILIES, WRAPPER}):
        raise UnsupportedModelError(f"The model type {dense_type!r} is not supported. {supported(config)}")


def _model_types(config: PreTrainedConfig) -> Iterator[str]:
    """Of a config and of those in it."""
    yield config.model_type.removeprefix(MODEL_TYPE_PREFIX)
    for inner in inner_configs(config).values():
        yield from _model_types(inner)
