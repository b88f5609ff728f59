"""timm's models as models of transformers whose fused layers are split; see `modeling_timm`."""

import copy
import importlib.util
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, TimmWrapperConfig
from transformers.initialization import meta_device_safe_creation_ops

from ..configuration_timm import TimmViTConfig
from ..errors import UnsupportedModelError
from .as_built import Naming, check_as_built, shared_parameters
from .making import MAKING, take_buffers, without_storage
from .timm_arguments import arguments_of, check_pooled, check_storable_arguments, classes_of, creation

WRAPPER = "timm_wrapper"
"""Model type of what transformers makes of a checkpoint of timm."""

ADVICE = (
    "If other arguments of timm.create_model build it, give a TimmWrapper of transformers whose config.model_args they "
    "are; take any other change off before, and put it back on the result."
)
"""What to do about a model that its config does not build."""


def check_timm() -> None:
    """That timm is installed.

    Raises:
        UnsupportedModelError: it is not.
    """
    if importlib.util.find_spec("timm") is None:
        raise UnsupportedModelError('This is a model of timm, which is missing: `pip install "hf-vitcompress[timm]"`.')


def is_timm_module(model: Any) -> bool:
    """Whether it is what `timm.create_model` makes."""
    return isinstance(model, nn.Module) and type(model).__module__.startswith("timm.")


def is_wrapper(model: Any) -> bool:
    """Whether it is a `TimmWrapper` of transformers, whose fused layers are not split."""
    return isinstance(model, PreTrainedModel) and model.config.model_type == WRAPPER


def wrapped(module: nn.Module) -> PreTrainedModel:
    """A `TimmWrapper` around this very module of timm.

    Raises:
        UnsupportedModelError: the module does not say which architecture of timm it is.
    """
    from transformers import TimmWrapperForImageClassification, TimmWrapperModel

    if type(module).__module__ == "timm.models._features":
        raise UnsupportedModelError(
            f"This {type(module).__name__} of timm (features_only=True) does not say what it was made with. Give a "
            "TimmWrapperModel whose config.model_args are that ('features_only': True, …), with its weights."
        )
    config = _config_of(module)
    with MAKING, torch.device("meta"), meta_device_safe_creation_ops():
        kind = TimmWrapperForImageClassification if config.num_labels else TimmWrapperModel
        shell: Any = kind(copy.deepcopy(config))
    shell.timm_model, shell.config = module, config
    return cast(PreTrainedModel, shell.train(module.training))


def _config_of(module: nn.Module) -> TimmWrapperConfig:
    given = getattr(module, "pretrained_cfg", None)
    if not given or not given.get("architecture"):
        raise UnsupportedModelError(
            f"This {type(module).__name__} of timm does not say which architecture it is (pretrained_cfg). Give what "
            "timm.create_model makes, or a folder that timm.models.save_for_hf wrote."
        )
    pretrained = {key: value for key, value in dict(given).items() if key not in ("num_classes", "label_names")}
    build: Any = TimmWrapperConfig
    return cast(
        TimmWrapperConfig,
        build(
            architecture=given["architecture"],
            model_args=arguments_of(module, given["architecture"]),
            num_labels=classes_of(module),
            pretrained_cfg=pretrained,
        ),
    )


def processor_of(model: PreTrainedModel) -> Any:
    """The image processor that timm's settings in the config describe; `None` where there are none."""
    settings = getattr(model.config, "pretrained_cfg", None)
    if not settings:
        return None
    from transformers import TimmWrapperImageProcessor

    return TimmWrapperImageProcessor(settings, getattr(model.config, "architecture", None))


def split_form(wrapper: PreTrainedModel) -> PreTrainedModel:
    """A `TimmWrapper` with its fused layers split; it shares the memory of the weights, and the wrapper stays as it is.

    Raises:
        UnsupportedModelError: the wrapper is not what its config builds.
    """
    from ..modeling_timm import TimmViTForImageClassification, TimmViTModel

    config = cast(Any, wrapper.config)
    check_storable_arguments(config)
    module = cast(Any, wrapper).timm_model
    classes = classes_of(module)
    advice = f"Set model.config.num_labels={classes}." if classes not in (0, config.num_labels) else ADVICE
    name = f"{type(module).__name__} of timm"
    check_as_built(wrapper, Naming(name, creation(config), "timm builds", "timm_model.", advice))
    check_pooled(wrapper)
    if shared_parameters(wrapper):
        raise UnsupportedModelError(
            f"This {name} has parameters in several places, and a checkpoint of transformers holds each once. The "
            "nearest models that can be compressed are xcit_*, cait_* and vit_*."
        )
    kind = TimmViTModel if type(wrapper).__name__ == "TimmWrapperModel" else TimmViTForImageClassification
    split = without_storage(kind, split_config(wrapper), {"": "sdpa"}, wrapper.dtype)
    take_buffers(split, wrapper)
    split.load_state_dict(split_state(wrapper.state_dict(), split), assign=True)
    return cast(Any, split).to(wrapper.device).train(wrapper.training)


def split_config(wrapper: PreTrainedModel) -> TimmViTConfig:
    """The config of the split form."""
    config = cast(Any, wrapper.config)
    known = {name: value for name, value in vars(config).items() if not name.startswith("_")}
    left_out = ("model_type", "architectures", "label_names", "num_classes")
    values = {name: copy.deepcopy(value) for name, value in known.items() if name not in left_out}
    split = TimmViTConfig(**values, **_image_settings(cast(Any, wrapper).timm_model, config))
    split.name_or_path = config.name_or_path
    return split


def _image_settings(module: Any, config: PreTrainedConfig) -> dict[str, Any]:
    """Image size, patch size and channels."""
    arguments, pretrained = getattr(config, "model_args", None) or {}, getattr(config, "pretrained_cfg", None) or {}
    channels, *size = pretrained.get("input_size", (3, 224, 224))
    patches = getattr(module, "patch_embed", None)
    patch = getattr(patches, "patch_size", None) or 16
    found = arguments.get("img_size") or getattr(patches, "img_size", None) or getattr(module, "img_size", None) or size
    return {
        "image_size": _compact(found),
        "patch_size": _compact(patch),
        "num_channels": arguments.get("in_chans", channels),
    }


def _compact(size: Any) -> int | list[int]:
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    return int(height) if height == width else [int(height), int(width)]


def split_state(state: dict[str, Tensor], split: nn.Module) -> dict[str, Tensor]:
    """The tensors of a timm model by the names that they have in its split form, where they share their memory."""
    from ..modeling_timm import rows_in_timm

    renamed = {}
    for own, rows in rows_in_timm(split).items():
        renamed[own] = state[rows.name].chunk(rows.parts)[rows.part]
    return {name: renamed.get(name, state.get(name, tensor)) for name, tensor in split.state_dict().items()}
