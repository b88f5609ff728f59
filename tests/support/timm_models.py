"""Tiny models of timm, as transformers wraps them."""

from typing import Any

import timm
import torch
from transformers import PreTrainedModel, TimmWrapperConfig, TimmWrapperForImageClassification, TimmWrapperModel

PLAIN = {"depth": 2, "embed_dim": 32, "num_heads": 2, "img_size": 32}
SWIN = {"depths": (2, 2), "embed_dim": 16, "num_heads": (2, 2), "img_size": 32, "window_size": 4}
VIT, EVA, SWIN_TINY = "vit_tiny_patch16_224", "eva02_tiny_patch14_224", "swin_tiny_patch4_window7_224"
ARGUMENTS: dict[str, dict[str, Any]] = {VIT: PLAIN, EVA: {**PLAIN, "img_size": 28}, SWIN_TINY: SWIN}
"""By architecture, what makes a model of it tiny."""


def wrapper(name: str = VIT, seed: int = 0, classes: int = 10, **arguments: Any) -> PreTrainedModel:
    """Of random weights, none of them zero; headless without classes. Its `timm_model` is the module of timm."""
    arguments = {**ARGUMENTS[name], **arguments}
    size = [3, arguments["img_size"], arguments["img_size"]]
    pretrained = {**timm.get_pretrained_cfg(name).to_dict(remove_source=True), "input_size": size}
    pretrained.pop("num_classes")
    build: Any = TimmWrapperConfig
    config = build(architecture=name, model_args=arguments, num_labels=classes, pretrained_cfg=pretrained)
    torch.manual_seed(seed)
    model: PreTrainedModel = (TimmWrapperForImageClassification if classes else TimmWrapperModel)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def images(model: PreTrainedModel, count: int = 8, seed: int = 0) -> torch.Tensor:
    """Of the size that a model takes, (count, 3, height, width)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *model.config.pretrained_cfg["input_size"], generator=generator)
