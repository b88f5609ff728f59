"""Tiny random models, and where the real ones are."""

from pathlib import Path

import torch
from transformers import PreTrainedModel, ViTConfig

REPOSITORY = Path(__file__).parents[2]
DIGITS = REPOSITORY / "examples" / "digits"
ASSETS = REPOSITORY.parent / "shared" / "assets"

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "image_size": 16,
    "patch_size": 4,
    "num_labels": 5,
}


def tiny_config(**changes: object) -> ViTConfig:
    return ViTConfig(**{**TINY, **changes})


def seeded(model_class: type[PreTrainedModel], config: object, seed: int = 0) -> PreTrainedModel:
    """A random model with weights large enough that its outputs differ visibly from image to image."""
    torch.manual_seed(seed)
    model = model_class(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.15)
    return model.eval()
