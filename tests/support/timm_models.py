"""Tiny models of timm, as transformers wraps them."""

from typing import Any

import timm
import torch
from transformers import PreTrainedModel, TimmWrapperConfig, TimmWrapperForImageClassification, TimmWrapperModel

from hf_vitcompress.architectures.layers import find_layers
from hf_vitcompress.configuration_factored import factored_config_class
from hf_vitcompress.model.timm import split_form
from hf_vitcompress.modeling_factored import factored_model_class

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


def factored(name: str = VIT, seed: int = 0, **arguments: Any) -> PreTrainedModel:
    """A compressed one of random weights: queries and keys of rank 4, narrow values, feed-forwards of rank 6."""
    split = split_form(wrapper(name, seed, **arguments))
    layers: dict[str, dict[str, int]] = {}
    for layer in find_layers(split):
        own = {"v": {"out_features": layer.out_features // 2}, "o": {"in_features": layer.in_features // 2}}
        if layer.role == "q":
            layers[layer.parent] = {"qk_rank": 4}
        elif layer.role != "k":
            layers[layer.name] = own.get(layer.role, {"rank": 6})
    values = {**split.config.to_dict(), "compression": {"layers": layers}}
    values.pop("model_type")
    torch.manual_seed(seed)
    return factored_model_class(type(split))(factored_config_class("timm_vit").from_dict(values)).eval()


@torch.no_grad()
def logits(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """What a model, or a module of timm, says of images, (n, classes)."""
    output = model(pixels)
    return output if isinstance(output, torch.Tensor) else output.logits
