"""What `timm.create_model` calls for the folder or repository of a compressed model."""

import copy
import functools
import sys
from typing import Any, cast

import timm
from timm.models import build_model_with_cfg, register_model
from torch import Tensor, nn

from ..configuration_factored import factored_config_class
from ..configuration_timm import ARCHITECTURE, ENTRY_POINT, MODEL_TYPE
from ..errors import UnsupportedModelError
from ..model.making import on_meta
from ..modeling_factored import factored_model_class
from ..modeling_timm import TimmViTBackbone, TimmViTForImageClassification, TimmViTModel

PREFIX = f"{TimmViTModel.base_model_prefix}."
"""Of the tensors in a folder that transformers wrote."""

OF_WEIGHTS = ("pretrained_cfg_overlay", "pretrained_model_args", "cache_dir")
"""Arguments that say nothing about the module."""


@register_model
def hf_vitcompress(pretrained: bool = False, compressed: dict[str, Any] | None = None, **kwargs: Any) -> nn.Module:
    """The module of a compressed model, as timm's own are.

    Args:
        pretrained: whether its weights are loaded, as they are in the folder; else they are random.
        compressed: what the module is built from where timm has saved it: `architecture`, its name in timm, and
            `layers`, the shapes of its layers. `None`: the folder's config says it.
        **kwargs: of `timm.create_model`.

    Raises:
        UnsupportedModelError: the model is quantized, or its folder lacks tensors.
    """
    settings = _without_dense_weights(kwargs.pop("pretrained_cfg", None) or {})
    if compressed is None:
        config = _config_at(settings, kwargs.get("cache_dir"))
        settings |= {"num_classes": _classes_of(config), "label_names": tuple(config.id2label.values())}
        compressed = {"architecture": config.architecture, "layers": config.compression["layers"]}
    features = _feature_settings(compressed["architecture"], kwargs) if kwargs.get("features_only") else None
    model = build_model_with_cfg(
        functools.partial(_built, compressed),
        ENTRY_POINT,
        pretrained,
        pretrained_cfg={**settings, "architecture": ARCHITECTURE},
        pretrained_filter_fn=_fitting,
        feature_cfg=features,
        **kwargs,
    )
    # timm.models.save_for_hf writes it, and gives it back as an argument.
    vars(model)["_model_args"] = {"compressed": compressed}
    return cast(nn.Module, model)


def _without_dense_weights(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings that lead to the compressed weights alone."""
    elsewhere = ("url", "custom_load", *(("hf_hub_id",) if settings.get("source") == "local-dir" else ()))
    return {name: value for name, value in settings.items() if name not in elsewhere}


def _config_at(settings: dict[str, Any], cache_dir: Any) -> Any:
    """The config in the folder or repository that timm was told to open."""
    place, _, revision = (settings.get("file") or settings.get("hf_hub_id") or "").partition("@")
    if settings.get("source") == "local-dir":
        place, revision = settings["file"], ""
    if not place:
        raise UnsupportedModelError(
            f"{ENTRY_POINT} is no architecture of its own: name the folder or repository of a compressed model, "
            'timm.create_model("local-dir:FOLDER", pretrained=True) or "hf-hub:USER/NAME".'
        )
    config = factored_config_class(MODEL_TYPE).from_pretrained(place, revision=revision or "main", cache_dir=cache_dir)
    if getattr(config, "quantization_config", None) is not None:
        raise UnsupportedModelError(
            f"{place} is quantized, which timm cannot open. Open the model that was quantized, or load this one with "
            "AutoModelForImageClassification."
        )
    if f"Factored{TimmViTBackbone.__name__}" in (config.architectures or ()):
        raise UnsupportedModelError(
            f"{place} is a backbone, without the layers after its last feature map, which timm cannot open. Load it "
            "with AutoModel of transformers, or open the folder of the whole model here, with features_only=True."
        )
    return config


def _classes_of(config: Any) -> int:
    headless = f"Factored{TimmViTModel.__name__}" in (config.architectures or ())
    return 0 if headless else int(config.num_labels)


def _built(compressed: dict[str, Any], num_classes: int = 1000, **arguments: Any) -> nn.Module:
    """The module with random weights."""
    kind = factored_model_class(TimmViTForImageClassification if num_classes else TimmViTModel)
    config = cast(Any, kind.config_class)(
        architecture=compressed["architecture"],
        model_args=arguments,
        num_labels=num_classes,
        compression={"layers": copy.deepcopy(compressed["layers"])},
    )
    return cast(nn.Module, cast(Any, kind)(config).timm_model)


def _feature_settings(architecture: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """How timm makes a feature extractor of the dense model."""
    own = {name: value for name, value in arguments.items() if name not in OF_WEIGHTS}
    with on_meta():
        dense = timm.create_model(architecture, **own)
    indices = tuple(dense.feature_info.out_indices)
    return {"feature_cls": type(dense), "out_indices": indices, "flatten_sequential": True}


def _fitting(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a folder by their names in the module; position embeddings as for the module's image size.

    Raises:
        UnsupportedModelError: the folder lacks tensors of the module, or has others.
    """
    state = {name.removeprefix(PREFIX): tensor for name, tensor in state.items()}
    own, classifier = model.state_dict(), cast(Any, model).pretrained_cfg.get("classifier") or ()
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    trunk = {name for name in {*own, *state} if name.rpartition(".")[0] not in heads}
    lacking, unknown = sorted(trunk & own.keys() - state.keys()), sorted(trunk & state.keys() - own.keys())
    if lacking or unknown:
        raise _unfit(lacking, unknown)
    adapt = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if adapt is not None and any(own[name].shape != state[name].shape for name in trunk):
        return cast(dict[str, Tensor], adapt(state, model))
    return state


def _unfit(lacking: list[str], unknown: list[str]) -> UnsupportedModelError:
    """Of tensors that are in the module or in its folder alone."""
    parts = [f"the folder has no {_counted(lacking)}"] if lacking else []
    parts += [f"the module has no {_counted(unknown)}"] if unknown else []
    if "fc_norm.weight" in lacking:
        remedy = "These arguments move the last norm, as in the dense model. fc_norm=False leaves it where it was."
    else:
        remedy = (
            "Leave out the arguments of timm.create_model that change the layers; without any, the folder is damaged."
        )
    return UnsupportedModelError(f"The weights do not fit this module: {' and '.join(parts)}. {remedy}")


def _counted(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
