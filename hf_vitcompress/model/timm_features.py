"""Models of timm that are refused: those that only give feature maps, and those that are compressed already."""

from typing import Any

from torch import nn

from ..configuration_timm import ENTRY_POINT
from ..errors import UnsupportedModelError

BACKBONE = "timm_backbone"
"""Model type of what transformers makes of a feature extractor of timm."""


def check_whole(model: Any) -> None:
    """That a model is a whole one and dense, as far as timm is concerned; anything but a module passes.

    Raises:
        UnsupportedModelError: it is a feature extractor of timm, or compressed.
    """
    if not isinstance(model, nn.Module):
        return
    config = getattr(model, "config", None)
    settings = getattr(model, "pretrained_cfg", None) or {}
    architecture = settings.get("architecture") or getattr(config, "architecture", None) or ""
    if architecture.partition(".")[0] == ENTRY_POINT:
        raise UnsupportedModelError(
            f"This {type(model).__name__} is compressed already. Compress the dense model it came from, at the budget "
            "you want now."
        )
    arguments = getattr(config, "model_args", None) or {}
    if arguments.get("features_only") or any(map(gives_features, (model, getattr(model, "timm_model", None)))):
        raise UnsupportedModelError(
            f"{type(model).__name__} is a feature extractor of timm, which is not compressed by itself. Compress the "
            "whole model, ViTCompressor().compress(timm.create_model(NAME, pretrained=True), images), and take feature "
            'maps from the result: after `import hf_vitcompress.timm`, timm.create_model("local-dir:FOLDER", '
            'pretrained=True, features_only=True), or TimmBackbone.from_pretrained("local-dir:FOLDER").'
        )


def gives_features(module: nn.Module | None) -> bool:
    """Whether it is a feature extractor, of timm or as transformers wraps it."""
    of_timm = type(module).__module__.startswith("timm.models._features")
    return of_timm or getattr(getattr(module, "config", None), "model_type", None) == BACKBONE
