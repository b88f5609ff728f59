"""The architecture that `docs/families.md` calls `my_vit`: one layer for queries, keys and values."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from support.outside import PlainAttention


class MyAttention(PlainAttention):
    """Another attention of the same package, with one layer for each of queries, keys and values."""


class MyVitConfig(PreTrainedConfig):
    model_type = "my_vit"

    hidden_size: int = 32
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    image_size: int = 16
    patch_size: int = 4
    num_channels: int = 3
    initializer_range: float = 0.02


class Attention(nn.Module):
    def __init__(self, config: MyVitConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, config: MyVitConfig) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(config.hidden_size, 96), nn.Linear(96, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, config: MyVitConfig) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(config.hidden_size), nn.LayerNorm(config.hidden_size)
        self.attn, self.mlp = Attention(config), Mlp(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class MyVitModel(PreTrainedModel):
    config_class = MyVitConfig
    base_model_prefix = "trunk"
    main_input_name = "pixel_values"
    _supports_sdpa = True

    def __init__(self, config: MyVitConfig) -> None:
        super().__init__(config)
        self.patches = nn.Conv2d(config.num_channels, config.hidden_size, config.patch_size, config.patch_size)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.num_hidden_layers)])
        self.post_init()

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutput:
        x = self.patches(pixel_values).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return BaseModelOutput(last_hidden_state=x)


def register() -> None:
    """What the package would do when it is imported."""
    AutoConfig.register("my_vit", MyVitConfig, exist_ok=True)
    AutoModel.register(MyVitConfig, MyVitModel, exist_ok=True)


def tiny() -> PreTrainedModel:
    torch.manual_seed(0)
    return MyVitModel(MyVitConfig()).eval()
