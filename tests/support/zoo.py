"""A tiny random model of every head of every supported family, with images and, where its loss wants them, targets."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from support.models import TINY, seeded

IMAGES = 24
"""Enough that the moments of these narrow layers are not singular."""

FOUR_BLOCKS = {**TINY, "num_hidden_layers": 4}
WITHOUT_WIDTH = {name: value for name, value in TINY.items() if name != "intermediate_size"}
STAGES = {
    "image_size": 32,
    "patch_size": 2,
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
    "mlp_ratio": 3.0,
    "num_labels": 5,
    "encoder_stride": 4,
}
TEXT = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 12,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
VISION = {name: value for name, value in TINY.items() if name != "num_labels"}
PATCHES = {name: value for name, value in VISION.items() if name != "image_size"} | {"num_patches": 16}
PYRAMID = {"neck_hidden_sizes": [8, 8, 16, 16], "fusion_hidden_size": 8, "num_labels": 5}


@dataclass(frozen=True)
class Head:
    """One model class and how to make a tiny one of it.

    Attributes:
        name: of the class in transformers.
        settings: of its config.
        images: shape of what it takes for one image.
        targets: random `labels` for that many images, or `None` where the class computes no loss.
        variant: what is special about the settings.
        old_prefix: what transformers 4 put before all names in a checkpoint and `save_original_format` does not.
    """

    name: str
    settings: dict[str, Any]
    images: tuple[int, ...] = (3, 16, 16)
    targets: Callable[[int], Any] | None = None
    variant: str = ""
    old_prefix: str = ""

    @property
    def model_class(self) -> type[PreTrainedModel]:
        return getattr(transformers, self.name)

    @property
    def family(self) -> str:
        return self.model_class.config_class.model_type

    def __str__(self) -> str:
        return f"{self.name}-{self.variant}".rstrip("-")

    def dense(self, seed: int = 0) -> PreTrainedModel:
        """In evaluation mode; its answers differ from image to image."""
        model = seeded(self.model_class, self.model_class.config_class(**self.settings), seed)
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, nn.LayerNorm):
                    module.weight.copy_(1 + 0.3 * torch.randn_like(module.weight))
                elif isinstance(module, nn.Conv2d) and module.out_channels == 1 and module.bias is not None:
                    module.bias.fill_(1)  # a depth is not negative; this one would mostly be 0
        return model

    def pixels(self, count: int = IMAGES, seed: int = 2) -> Tensor:
        return torch.randn(count, *self.images, generator=torch.Generator().manual_seed(seed))


def classes(count: int) -> Tensor:
    return torch.arange(count) % 5


def segments(*size: int) -> Callable[[int], Tensor]:
    return lambda count: torch.arange(count).reshape(-1, *(1 for _ in size)).expand(count, *size) % 5


def boxes(count: int) -> list[dict[str, Tensor]]:
    return [
        {"class_labels": torch.tensor([i % 5]), "boxes": torch.tensor([[0.5, 0.5, 0.4, 0.3]])} for i in range(count)
    ]


def _heads(family: str, settings: dict[str, Any], *names: str, **options: Any) -> list[Head]:
    """`family` + name, for each; a classifier has classes as targets."""
    found = []
    for name in names:
        own = {"targets": classes, **options} if name.startswith("ForImageClassification") else options
        found.append(Head(family + name, settings, **own))
    return found


def _backbone(name: str, settings: dict[str, Any], **options: Any) -> Any:
    return getattr(transformers, f"{name}Config")(**settings, **options)


def _dinov2(count: int = 4, **options: Any) -> Any:
    layers = {**WITHOUT_WIDTH, "mlp_ratio": 3, "num_hidden_layers": count}
    return _backbone("Dinov2", layers, reshape_hidden_states=False, apply_layernorm=True, **options)


MASKED = {**TINY, "encoder_stride": 4}
DINOV2 = {**WITHOUT_WIDTH, "mlp_ratio": 3, "out_indices": [1, 2]}
GATED = {**WITHOUT_WIDTH, "mlp_ratio": 4, "use_swiglu_ffn": True}
BEIT = {**TINY, "use_relative_position_bias": True, "out_indices": [1, 2], "reshape_hidden_states": True}
SEGMENTED = {**FOUR_BLOCKS, "pool_scales": [1, 2], "use_auxiliary_head": False}
WINDOWS = {"images": (3, 32, 32)}
MAE = {"decoder_hidden_size": 16, "decoder_intermediate_size": 48, "decoder_num_hidden_layers": 1}
DENSE_PREDICTION = {**FOUR_BLOCKS, **PYRAMID, "backbone_out_indices": [0, 1, 2, 3], "use_auxiliary_head": False}
TOWERS = {"text_config": TEXT, "projection_dim": 16, "num_labels": 5}
SWIN_BACKBONE = {
    **STAGES,
    "depths": [1, 1, 1, 1],
    "num_heads": [2, 2, 4, 4],
    "out_features": [f"stage{i}" for i in range(1, 5)],
}

HEADS: list[Head] = [
    *_heads("ViT", MASKED, "Model", "ForImageClassification", "ForMaskedImageModeling"),
    *_heads("DeiT", MASKED, "Model", "ForImageClassification", "ForMaskedImageModeling"),
    *_heads("DeiT", MASKED, "ForImageClassificationWithTeacher", targets=None),
    *_heads("Dinov2", DINOV2, "Model", "ForImageClassification", "Backbone"),
    *_heads("Dinov2", GATED, "Model", "ForImageClassification", variant="gated"),
    *_heads("Dinov2WithRegisters", DINOV2, "Model", "ForImageClassification", "Backbone"),
    *_heads("Dinov2WithRegisters", GATED, "Model", variant="gated"),
    *_heads("DINOv3ViT", VISION, "Model", "Backbone"),
    *_heads("DINOv3ViT", {**VISION, "use_gated_mlp": True}, "Model", variant="gated"),
    *_heads("Beit", BEIT, "Model", "ForImageClassification", "ForMaskedImageModeling", "Backbone"),
    *_heads(
        "Beit", {**TINY, "use_shared_relative_position_bias": True}, "ForImageClassification", variant="shared-bias"
    ),
    *_heads("Beit", {**SEGMENTED, "out_indices": [1, 2, 3, 4]}, "ForSemanticSegmentation", targets=segments(16, 16)),
    *_heads("Data2VecVision", {**TINY, "use_relative_position_bias": True}, "Model", "ForImageClassification"),
    *_heads(
        "Data2VecVision",
        {**SEGMENTED, "out_indices": [0, 1, 2, 3]},
        "ForSemanticSegmentation",
        targets=segments(16, 16),
    ),
    *_heads("Swin", STAGES, "Model", "ForImageClassification", "ForMaskedImageModeling", "Backbone", **WINDOWS),
    *_heads("Swinv2", STAGES, "Model", "ForImageClassification", "ForMaskedImageModeling", "Backbone", **WINDOWS),
    *_heads("ViTMAE", {**VISION, **MAE, "decoder_num_attention_heads": 2}, "Model", "ForPreTraining"),
    *_heads("ViTMSN", TINY, "Model", "ForImageClassification"),
    *_heads("IJepa", TINY, "Model", "ForImageClassification"),
    *_heads("Yolos", {**TINY, "image_size": [16, 16], "num_detection_tokens": 5}, "Model"),
    *_heads("Yolos", {**TINY, "image_size": [16, 16], "num_detection_tokens": 5}, "ForObjectDetection", targets=boxes),
    *_heads("CLIPVision", {**VISION, "projection_dim": 16}, "Model", old_prefix="vision_model."),
    *_heads("CLIPVision", {**VISION, "projection_dim": 16}, "ModelWithProjection"),
    *_heads("CLIP", {**TOWERS, "vision_config": VISION}, "ForImageClassification"),
    *_heads("SiglipVision", VISION, "Model", old_prefix="vision_model."),
    *_heads("Siglip", {**TOWERS, "vision_config": VISION}, "ForImageClassification"),
    *_heads("Siglip2Vision", PATCHES, "Model", images=(16, 48), old_prefix="vision_model."),
    *_heads("Siglip2", {**TOWERS, "vision_config": PATCHES}, "ForImageClassification", images=(16, 48)),
    *_heads("DPT", DENSE_PREDICTION, "Model", "ForDepthEstimation"),
    *_heads(
        "DPT", {**DENSE_PREDICTION, "use_auxiliary_head": True}, "ForSemanticSegmentation", targets=segments(64, 64)
    ),
    *_heads(
        "DPT",
        {**DENSE_PREDICTION, "backbone_config": _dinov2(out_indices=[1, 2, 3, 4])},
        "ForDepthEstimation",
        variant="dinov2",
    ),
    *_heads(
        "DepthAnything",
        {
            **PYRAMID,
            "backbone_config": _dinov2(out_indices=[1, 2, 3, 4]),
            "reassemble_hidden_size": 32,
            "patch_size": 4,
        },
        "ForDepthEstimation",
    ),
    *_heads(
        "UperNet",
        {"backbone_config": _backbone("Swin", SWIN_BACKBONE), "hidden_size": 8, "pool_scales": [1, 2], "num_labels": 5},
        "ForSemanticSegmentation",
        targets=segments(32, 32),
        **WINDOWS,
    ),
]
"""Every head class that an Auto class knows, for every family; and some that none knows but people use."""
