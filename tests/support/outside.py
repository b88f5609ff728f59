"""An architecture that neither transformers nor this package knows, as another package would bring it along.

Its first half of blocks fuses queries, keys and values into one layer; its second half has one layer for each.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, ImageClassifierOutput
from transformers.models.vit.modeling_vit import eager_attention_forward  # noqa: F401  (what factored attention calls)

from hf_vitcompress.architectures.families import Family, register_family
from hf_vitcompress.architectures.layers import find_layers
from hf_vitcompress.layers_factored import Attention


class OutsideConfig(PreTrainedConfig):
    model_type = "outside"

    hidden_size: int = 32
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    image_size: int = 16
    patch_size: int = 4
    num_channels: int = 3
    initializer_range: float = 0.02


class FusedAttention(nn.Module):
    def __init__(self, config: OutsideConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class PlainAttention(nn.Module):
    def __init__(self, config: OutsideConfig) -> None:
        super().__init__()
        self.config = config
        self.size = config.hidden_size // config.num_attention_heads
        self.scale, self.drop, self.is_causal = self.size**-0.5, 0.0, False
        self.to_q, self.to_k, self.to_v, self.out = (
            nn.Linear(config.hidden_size, config.hidden_size) for _ in range(4)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        q, k, v = (
            layer(x).unflatten(-1, (-1, self.size)).transpose(1, 2) for layer in (self.to_q, self.to_k, self.to_v)
        )
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)), None


class Block(nn.Module):
    def __init__(self, config: OutsideConfig, fused: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(config.hidden_size), nn.LayerNorm(config.hidden_size)
        self.attn = FusedAttention(config) if fused else PlainAttention(config)
        self.wide, self.narrow = nn.Linear(config.hidden_size, 96), nn.Linear(96, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        attended = self.attn(self.norm1(x))
        x = x + (attended[0] if isinstance(attended, tuple) else attended)
        return x + self.narrow(nn.functional.gelu(self.wide(self.norm2(x))))


class OutsidePreTrainedModel(PreTrainedModel):
    config_class = OutsideConfig
    base_model_prefix = "trunk"
    main_input_name = "pixel_values"
    _supports_sdpa = True


class OutsideModel(OutsidePreTrainedModel):
    def __init__(self, config: OutsideConfig) -> None:
        super().__init__(config)
        self.patches = nn.Conv2d(config.num_channels, config.hidden_size, config.patch_size, config.patch_size)
        count = config.num_hidden_layers
        self.blocks = nn.ModuleList([Block(config, fused=i < count // 2) for i in range(count)])
        self.post_init()

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutput:
        x = self.patches(pixel_values).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return BaseModelOutput(last_hidden_state=x)


class OutsideForImageClassification(OutsidePreTrainedModel):
    def __init__(self, config: OutsideConfig) -> None:
        super().__init__(config)
        self.trunk = OutsideModel(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **_: Any) -> ImageClassifierOutput:
        logits = self.classifier(self.trunk(pixel_values).last_hidden_state.mean(1))
        loss = None if labels is None else torch.nn.functional.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)


OUTSIDE = Family(
    title="Outside",
    block=r"(?:trunk\.)?blocks\.\d+",
    layers={
        "attn.qkv": "qkv",
        "attn.to_q": "q",
        "attn.to_k": "k",
        "attn.to_v": "v",
        "attn.out": "o",
        "wide": "fc1",
        "narrow": "fc2",
    },
)
NAMES = Attention(
    query="to_q", key="to_k", value="to_v", output="out", head_dim="size", scaling="scale", dropout="drop"
)


def register() -> None:
    """What the package would do when it is imported."""
    AutoConfig.register("outside", OutsideConfig, exist_ok=True)
    AutoModel.register(OutsideConfig, OutsideModel, exist_ok=True)
    AutoModelForImageClassification.register(OutsideConfig, OutsideForImageClassification, exist_ok=True)
    register_family("outside", OUTSIDE, attentions={PlainAttention: NAMES})


def find_layers_unregistered() -> None:
    """In a process of its own, where only transformers has been told of the architecture."""
    AutoConfig.register("outside", OutsideConfig)
    AutoModel.register(OutsideConfig, OutsideModel)
    find_layers(OutsideModel(OutsideConfig()))
