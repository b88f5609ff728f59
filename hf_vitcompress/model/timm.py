"""timm's models as models of transformers whose fused layers are split; see `modeling_timm`."""

import copy
import importlib.util
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, TimmWrapperConfig

from ..architectures.inputs import example_inputs
from ..architectures.running import passing, without_dropout
from ..architectures.timm_inputs import WRAPPER, timm_images
from ..configuration_timm import TimmViTConfig
from ..errors import UnsupportedModelError
from .as_built import Naming, check_as_built, shared_parameters
from .making import on_meta, take_buffers, without_storage
from .timm_arguments import arguments_of, check_pooled, check_storable_arguments, classes_of, creation
from .timm_images import preprocessing_of

ADVICE = (
    "If other arguments of timm.create_model build it, give a TimmWrapper of transformers whose config.model_args they "
    "are; take any other change off before, and put it back on the result."
)
"""What to do about a model that its config does not build."""


FOR_FEATURES = (
    "Make the feature extractor by timm.create_model(NAME, features_only=True, …) with the arguments that build it, or "
    "compress the whole model."
)
"""What to do about a feature extractor that its config does not build."""


def check_timm() -> None:
    """That timm is installed, and torchvision, which it needs.

    Raises:
        UnsupportedModelError: one of them is not.
    """
    missing = [name for name in ("timm", "torchvision") if importlib.util.find_spec(name) is None]
    if missing:
        raise UnsupportedModelError(
            f"This is a model of timm, and {' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} missing here: "
            '`pip install "hf-vitcompress[timm]"`.'
        )


def is_timm_module(model: Any) -> bool:
    """Whether it is what `timm.create_model` makes."""
    return isinstance(model, nn.Module) and type(model).__module__.startswith("timm.")


def is_wrapper(model: Any) -> bool:
    """Whether it is a model around one of timm whose fused layers are not split: a `TimmWrapper`, or feature maps."""
    if not isinstance(model, PreTrainedModel):
        return False
    return model.config.model_type == WRAPPER or type(model).__name__ == "FusedTimmBackbone"


def wrapped(module: nn.Module) -> PreTrainedModel:
    """A `TimmWrapper` around this very module of timm.

    Raises:
        UnsupportedModelError: the module does not say which architecture of timm it is.
    """
    from transformers import TimmWrapperForImageClassification, TimmWrapperModel

    config = _config_of(module)
    with on_meta():
        kind = TimmWrapperForImageClassification if config.num_labels else TimmWrapperModel
        shell: Any = kind(copy.deepcopy(config))
    shell.timm_model, shell.config = module, config
    shell.training = module.training  # `train` would set the modes of the modules inside, too
    return cast(PreTrainedModel, shell)


def _config_of(module: nn.Module) -> TimmWrapperConfig:
    given = getattr(module, "pretrained_cfg", None)
    if not given or not given.get("architecture"):
        raise UnsupportedModelError(
            f"This {type(module).__name__} of timm does not say which architecture it is (pretrained_cfg). Give what "
            "timm.create_model makes, or a folder that timm.models.save_for_hf wrote."
        )
    pretrained = {key: value for key, value in dict(given).items() if key not in ("num_classes", "label_names")}
    content = {
        "architecture": given["architecture"],
        "model_args": arguments_of(module, given["architecture"]),
        "num_classes": classes_of(module),
        "pretrained_cfg": pretrained,
    }
    if (names := given.get("label_names")) and len(names) == content["num_classes"]:
        content["label_names"] = list(names)
    return TimmWrapperConfig.from_dict(content)  # which knows the names of ImageNet's classes


def split_form(wrapper: PreTrainedModel) -> PreTrainedModel:
    """A `TimmWrapper` with its fused layers split; it shares the memory of the weights, and the wrapper stays as it is.

    Raises:
        UnsupportedModelError: the wrapper is not what its config builds.
    """
    config = cast(Any, wrapper.config)
    check_storable_arguments(config)
    module = cast(Any, wrapper).timm_model
    classes = classes_of(module)
    advice = f"Set model.config.num_labels={classes}." if classes not in (0, config.num_labels) else ADVICE
    advice = FOR_FEATURES if isinstance(config, TimmViTConfig) else advice
    name = f"{type(module).__name__} of timm"
    check_as_built(wrapper, Naming(name, creation(config), "timm builds", "timm_model.", advice))
    check_pooled(wrapper)
    if shared_parameters(wrapper):
        raise UnsupportedModelError(
            f"This {name} has parameters in several places, and a checkpoint of transformers holds each once. The "
            "nearest models that can be compressed are xcit_*, cait_* and vit_*."
        )
    split = without_storage(split_class(wrapper), split_config(wrapper), {"": "sdpa"}, wrapper.dtype)
    take_buffers(split, wrapper)
    split.load_state_dict(split_state(wrapper.state_dict(), split), assign=True)
    return cast(Any, split).to(wrapper.device).train(wrapper.training)


def check_runs(split: PreTrainedModel, wrapper: PreTrainedModel) -> None:
    """That a model of timm runs on an image of its size: timm builds some that do not.

    The module that was given is run only where its split form fails, to tell which of them is at fault.

    Raises:
        UnsupportedModelError: it does not, and why.
    """
    inputs = example_inputs(split)
    try:
        _run(split, inputs)
    except Exception:  # of any module of timm
        with passing(wrapper, inputs["pixel_values"]):
            _run(wrapper, inputs)
        raise


@torch.no_grad()
def _run(model: PreTrainedModel, inputs: dict[str, Any]) -> None:
    with without_dropout(model):
        model(**inputs)


def split_class(wrapper: PreTrainedModel) -> type[PreTrainedModel]:
    """The class of the split form."""
    from ..modeling_timm import TimmViTBackbone, TimmViTForImageClassification, TimmViTModel

    headless = {"TimmWrapperModel": TimmViTModel, "FusedTimmBackbone": TimmViTBackbone}
    return headless.get(type(wrapper).__name__, TimmViTForImageClassification)


def split_config(wrapper: PreTrainedModel) -> TimmViTConfig:
    """The config of the split form."""
    config = cast(Any, wrapper.config)
    if isinstance(config, TimmViTConfig):
        return copy.deepcopy(config)
    known = {name: value for name, value in vars(config).items() if not name.startswith("_")}
    left_out = ("model_type", "architectures", "label_names", "num_classes")
    values = {name: copy.deepcopy(value) for name, value in known.items() if name not in left_out}
    about = timm_images(wrapper)
    if values.get("pretrained_cfg"):
        values["pretrained_cfg"] = preprocessing_of(values["pretrained_cfg"], about)
    split = TimmViTConfig(**values, **vars(about))
    split.name_or_path = config.name_or_path
    return split


def split_state(state: dict[str, Tensor], split: nn.Module) -> dict[str, Tensor]:
    """The tensors of a timm model by the names that they have in its split form, where they share their memory."""
    from ..modeling_timm import rows_in_timm

    renamed = {}
    for own, rows in rows_in_timm(split).items():
        renamed[own] = state[rows.name].chunk(rows.parts)[rows.part]
    return {name: renamed.get(name, state.get(name, tensor)) for name, tensor in split.state_dict().items()}
