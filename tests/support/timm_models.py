"""Tiny models of timm, in which every weight has a value that an output depends on."""

from typing import Any

import pytest
import torch

TINY_TIMM: dict[str, Any] = {"embed_dim": 32, "depth": 2, "num_heads": 4, "img_size": 32}

TINY_SWIN: dict[str, Any] = {"embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4), "img_size": 56, "num_classes": 5}


def tiny_timm(name: str, **arguments: Any) -> Any:
    """A model of that architecture; without `arguments` it has `TINY_TIMM`'s sizes and five classes."""
    timm = pytest.importorskip("timm", reason="timm is not installed here; `make test-torchvision` has it")
    size = TINY_SWIN if name.startswith("swin") else {**TINY_TIMM, "num_classes": 5}
    return filled(timm.create_model(name, pretrained=False, **{**size, **arguments}))


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
