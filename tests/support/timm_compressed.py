"""Tiny compressed models of timm with shapes of every kind, made from configs."""

from pathlib import Path
from typing import Any

import timm
import torch
from transformers import PreTrainedModel

from hf_vitcompress.configuration_factored import factored_config_class
from hf_vitcompress.configuration_timm import MODEL_TYPE
from hf_vitcompress.modeling_factored import factored_model_class
from hf_vitcompress.modeling_timm import TimmViTBackbone, TimmViTForImageClassification, TimmViTModel

VIT, SWIN, EVA = "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "eva02_tiny_patch14_224"
ARGUMENTS: dict[str, dict[str, Any]] = {
    VIT: {"depth": 2, "embed_dim": 32, "num_heads": 2, "img_size": 32},
    SWIN: {"depths": [1, 1], "embed_dim": 16, "num_heads": [2, 2], "img_size": 32, "window_size": 4},
    EVA: {"depth": 2, "embed_dim": 32, "num_heads": 2, "img_size": 28},
}
BLOCKS = {VIT: "blocks.0", SWIN: "layers.0.blocks.0", EVA: "blocks.0"}


def shapes(name: str) -> dict[str, dict[str, int]]:
    """A shared `down`, narrow values and factored layers, in the first block."""
    block = f"timm_model.{BLOCKS[name]}"
    values = 8 if name == SWIN else 16
    found = {
        f"{block}.attn.qkv": {"qk_rank": 4},
        f"{block}.attn.qkv.v": {"out_features": values},
        f"{block}.attn.proj.o": {"in_features": values, "rank": 5},
        f"{block}.mlp.fc2": {"rank": 6},
    }
    gated = {f"{block}.mlp.fc1.g": {"rank": 3}, f"{block}.mlp.fc1.x": {"rank": 6}}
    return found | (gated if name == EVA else {f"{block}.mlp.fc1": {"rank": 7}})


def compressed(name: str, classes: int = 10) -> PreTrainedModel:
    """Of random weights; headless without classes."""
    settings = {**timm.get_pretrained_cfg(name).to_dict(remove_source=True)}
    settings.pop("num_classes")
    config: Any = factored_config_class(MODEL_TYPE)
    config = config(
        architecture=name,
        model_args=ARGUMENTS[name],
        num_labels=classes,
        pretrained_cfg=settings,
        compression={"layers": shapes(name)},
    )
    torch.manual_seed(0)
    model = factored_model_class(TimmViTForImageClassification if classes else TimmViTModel)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def as_backbone(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Saved to a folder, and opened as a backbone that gives the maps of the first block."""
    model.save_pretrained(folder)
    kind: Any = factored_model_class(TimmViTBackbone)
    backbone: PreTrainedModel = kind.from_pretrained(folder, out_indices=[0])
    return backbone


def pixels(name: str, count: int = 2, size: int | None = None, channels: int = 3) -> torch.Tensor:
    """Of the size that `compressed(name)` takes, or of another."""
    size = size or ARGUMENTS[name]["img_size"]
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(1))
