"""Tiny models of timm, as they are and as transformers wraps them; a test that asks for one is skipped without timm."""

from typing import Any

import pytest
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
    pretrained = {**_timm().get_pretrained_cfg(name).to_dict(remove_source=True), "input_size": size}
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


TINY_TIMM: dict[str, Any] = {"embed_dim": 32, "depth": 2, "num_heads": 4, "img_size": 32}

TINY_SWIN: dict[str, Any] = {"embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4), "img_size": 56, "num_classes": 5}


def _timm() -> Any:
    return pytest.importorskip("timm", reason="timm is not installed here; `make test-torchvision` has it")


def tiny_timm(name: str, **arguments: Any) -> Any:
    """A model of that architecture; without `arguments` it has `TINY_TIMM`'s sizes and five classes."""
    size = TINY_SWIN if name.startswith("swin") else {**TINY_TIMM, "num_classes": 5}
    return filled(_timm().create_model(name, pretrained=False, **{**size, **arguments}))


def filled(module: Any) -> Any:
    """The module with random weights: biases, scales, norms and positions far from what they begin with."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_matrix = parameter.dim() > 1 and name.endswith("weight")
            centre = 1.0 if name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "gamma")) else 0.0
            parameter.copy_(centre + noise * (parameter[0].numel() ** -0.5 if is_matrix else 0.3))
    return module.eval()
