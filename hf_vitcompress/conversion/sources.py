"""A model of timm, however it is given."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel

from ..architectures.timm_inputs import WRAPPER
from ..errors import UnsupportedModelError
from ..model.boundary import check_not_saved_by_timm, check_place, explained
from ..model.loading import load_model
from ..model.plain import check_plain, unwrapped
from ..model.timm import is_wrapper
from ..model.timm_features import gives_features
from ..runtime.packages import require_package
from .reading import timm_class

GIVE = "Give a Hub id (timm/…), a folder in timm's format, a TimmWrapper or what timm.create_model makes"


@dataclass(frozen=True)
class Source:
    """A model of timm.

    Attributes:
        module: the model itself.
        name: its Hub id or folder, or timm's name of its architecture.
        settings: timm's `pretrained_cfg`: how images are prepared, and what the classes are called.
        labels: `id2label` and `label2id`, or nothing.
    """

    module: nn.Module
    name: str
    settings: dict[str, Any]
    labels: dict[str, Any] = field(default_factory=dict)

    def data_config(self) -> dict[str, Any]:
        """How timm prepares images for the model."""
        settings = self.settings or {"crop_mode": "center"}  # an empty one is refused
        return require_timm("Converting timm's models").data.resolve_data_config(pretrained_cfg=settings)


def require_timm(purpose: str) -> Any:
    """timm, imported.

    Raises:
        MissingPackageError: it is missing or cannot be imported; the extra that installs it is named.
    """
    return require_package("timm", purpose, extra="timm")


def open_timm(model: Any) -> Source:
    """A model of timm by Hub id, folder or as it is.

    Raises:
        UnsupportedModelError: it is none, cannot be loaded, or its weights are not all there and plain.
        MissingPackageError: timm is missing.
    """
    require_timm("Converting timm's models")
    source = _load(str(model)) if isinstance(model, str | Path) else _of_object(unwrapped(model), "")
    check_plain(source.module)
    return source


def _load(name: str) -> Source:
    timm = require_timm("Converting timm's models")
    check_place(name)
    if not Path(name).is_dir() and "/" not in name and timm.is_model(name.partition(".")[0]):
        raise UnsupportedModelError(f"{name!r} is timm's name of a model. Its Hub id is 'timm/{name}'.")
    with explained(name):
        content = PreTrainedConfig.get_config_dict(name)[0]
    check_not_saved_by_timm(name, content)
    # transformers adds this type to configs of timm itself, which have no list of `architectures`.
    kind = content.get("model_type")
    if kind == WRAPPER and content.get("architectures"):
        return _wrapped(name)
    if kind not in (None, WRAPPER):
        raise UnsupportedModelError(f"{name!r} is a model of transformers already ({kind}). {GIVE}.")
    if "architecture" not in content:
        raise UnsupportedModelError(f"The config.json of {name!r} names no architecture of timm. {GIVE}.")
    return _created(f"{'local-dir' if Path(name).is_dir() else 'hf-hub'}:{name}", name)


def _created(address: str, name: str) -> Source:
    timm = require_timm("Converting timm's models")
    with explained(name):
        try:
            module = timm.create_model(address, pretrained=True)
        except Exception:  # of any constructor, or for weights of any content
            load_model(name)  # which says by name what the folder lacks
            raise
    return _of_object(module.eval(), name)


def _wrapped(name: str) -> Source:
    """A folder that `save_pretrained` of a TimmWrapper wrote."""
    with explained(name):
        config = AutoConfig.from_pretrained(name)
        headless = "TimmWrapperModel" in (config.architectures or ()) or not config.num_labels
        loaded = (AutoModel if headless else AutoModelForImageClassification).from_pretrained(name)
    return _of_object(loaded, name)


def _of_object(model: Any, name: str) -> Source:
    if is_wrapper(model):
        module: Any = model.timm_model
        config = model.config
        _check_whole(module)
        settings = getattr(config, "pretrained_cfg", None) or module.pretrained_cfg
        labels = {"id2label": config.id2label, "label2id": config.label2id}
        return Source(module, name or config.name_or_path or config.architecture, dict(settings), labels)
    if isinstance(model, PreTrainedModel) or not isinstance(model, nn.Module) or not timm_class(model):
        raise UnsupportedModelError(f"{type(model).__name__} is not a model of timm. {GIVE}.")
    _check_whole(model)
    settings = dict(getattr(model, "pretrained_cfg", None) or {})
    name = name or settings.get("architecture") or type(model).__name__
    return Source(model, name, settings, _labels(model, settings))


def _check_whole(module: nn.Module) -> None:
    if gives_features(module):
        raise UnsupportedModelError(
            "This model gives feature maps alone (features_only). Give the whole one, without features_only."
        )


def _labels(module: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Names of the classes, as a TimmWrapper gives them: those of the checkpoint, or ImageNet's by their number."""
    classes = getattr(module, "num_classes", 0)
    if not classes:
        return {}
    # Importing it imports timm.
    from transformers import TimmWrapperConfig

    names = settings.get("label_names")
    content = {"num_classes": classes, "architecture": settings.get("architecture") or "resnet50"}
    if names and len(names) == classes:
        descriptions = settings.get("label_descriptions") or {}
        content["label_names"] = [descriptions.get(label, label) for label in names]
    config = TimmWrapperConfig.from_dict(content)
    return {"id2label": config.id2label, "label2id": config.label2id}
