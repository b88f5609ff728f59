"""Feature extractors of timm, plain or as `TimmBackbone`: what of them is a model, and what is refused."""

from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel

from ..architectures.timm_inputs import timm_images
from ..configuration_timm import ENTRY_POINT, TimmViTConfig
from ..errors import UnsupportedModelError, one_line
from .making import on_meta
from .timm_arguments import arguments_of, extracts
from .timm_images import preprocessing_of

BACKBONE = "timm_backbone"
"""Model type of what transformers makes of a feature extractor of timm."""

WHOLE = (
    "compress the whole model, ViTCompressor().compress(timm.create_model(NAME, pretrained=True), images), and take "
    'feature maps from the result: after `import hf_vitcompress.timm`, timm.create_model("local-dir:FOLDER", '
    "pretrained=True, features_only=True)."
)
"""What to do where a feature extractor is none that can be compressed."""


def check_dense(model: Any) -> None:
    """That a model of timm is not compressed, and is no part of another; anything else passes.

    Raises:
        UnsupportedModelError: it is.
    """
    if not isinstance(model, nn.Module):
        return
    settings = getattr(extractor_in(model) or model, "pretrained_cfg", None) or {}
    architecture = settings.get("architecture") or getattr(getattr(model, "config", None), "architecture", None) or ""
    if architecture.partition(".")[0] == ENTRY_POINT:
        raise UnsupportedModelError(
            f"This {type(model).__name__} is compressed already. Compress the dense model it came from, at the budget "
            "you want now."
        )
    if isinstance(model, PreTrainedModel) and not gives_features(model) and any(map(extracts, model.modules())):
        raise UnsupportedModelError(
            f"This {type(model).__name__} reads a feature extractor of timm. Compress that by itself, "
            "ViTCompressor().compress(TimmBackbone.from_pretrained(NAME, out_indices=…), images), build the larger "
            "model with backbone_config=compressed.config, and put the compressed backbone into it."
        )


def gives_features(module: nn.Module) -> bool:
    """Whether it is a feature extractor, of timm or as transformers wraps it."""
    return extractor_in(module) is not None


def extractor_in(model: nn.Module) -> nn.Module | None:
    """The feature extractor of timm that a model is, or wraps; `None` of any other model."""
    parts = (model, getattr(model, "_backbone", None), getattr(model, "timm_model", None))
    return next((part for part in parts if type(part).__module__.startswith("timm.models._features")), None)


def from_its_folder(model_class: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """A class to load a model by: that of `TimmBackbone` takes the name of any folder for one of timm's models."""
    if cast(Any, model_class.config_class).model_type != BACKBONE:
        return model_class
    loading: Any = classmethod(cast(Any, PreTrainedModel.from_pretrained).__func__)
    return type(
        model_class.__name__, (model_class,), {"__module__": model_class.__module__, "from_pretrained": loading}
    )


def feature_maps_of(model: nn.Module) -> PreTrainedModel:
    """A backbone around the very module of timm that a feature extractor holds.

    Args:
        model: for which `gives_features`.

    Raises:
        UnsupportedModelError: the extractor holds parts of a model, or does not say which it is of.
    """
    from ..modeling_timm_backbone import FusedTimmBackbone

    extractor: Any = extractor_in(model)
    name = type(extractor).__name__
    if not extracts(extractor):
        raise UnsupportedModelError(
            f"This feature extractor of timm, a {name}, is put together from the parts of a model. Make it with "
            f'feature_cls="getter", which holds the model and gives maps (n, channels, height, width), or {WHOLE}'
        )
    if extractor.norm or extractor.output_fmt != "NCHW":
        raise UnsupportedModelError(
            f"This {name} of timm gives normalized features, or features in another order than (n, channels, height, "
            "width), and a backbone of transformers does not. Make it by timm.create_model(NAME, features_only=True)."
        )
    config = _config_of(extractor)
    try:
        with on_meta():
            backbone: Any = FusedTimmBackbone(config)
    except Exception as error:  # of any constructor, on arguments that were read off a module that people may change
        raise UnsupportedModelError(
            f"transformers makes no backbone of this feature extractor of timm: {one_line(error)}. Instead, {WHOLE}"
        ) from error
    backbone.timm_model = extractor.model
    _note_images(backbone)
    backbone.config.name_or_path = getattr(getattr(model, "config", None), "name_or_path", "")
    backbone.training = model.training  # `train` would set the modes of the modules inside, too
    return cast(PreTrainedModel, backbone)


def _config_of(extractor: Any) -> TimmViTConfig:
    settings = getattr(extractor, "pretrained_cfg", None) or getattr(extractor.model, "pretrained_cfg", None) or {}
    if not settings.get("architecture"):
        raise UnsupportedModelError(
            f"This {type(extractor).__name__} of timm does not say which architecture it is of (pretrained_cfg). Make "
            "it by timm.create_model(NAME, features_only=True)."
        )
    stages = extractor.feature_info.info
    left_out = ("num_classes", "label_names")
    build: Any = TimmViTConfig
    config: TimmViTConfig = build(
        architecture=settings["architecture"],
        model_args=arguments_of(extractor, settings["architecture"]),
        num_labels=0,
        pretrained_cfg={name: value for name, value in dict(settings).items() if name not in left_out},
        out_indices=sorted(index % len(stages) for index in extractor.feature_info.out_indices),
    )
    return config


def _note_images(backbone: Any) -> None:
    """In its config, for what images it is."""
    about = timm_images(backbone)
    for name, value in vars(about).items():
        setattr(backbone.config, name, value)
    backbone.config.pretrained_cfg = preprocessing_of(backbone.config.pretrained_cfg, about)
