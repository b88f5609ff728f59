"""An architecture from outside that has all layers of a block side by side, under the names that roles have."""

from typing import Any

from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from hf_vitcompress import Family, register_family


class FlatConfig(PreTrainedConfig):
    model_type = "flat"

    width: int = 32
    image_size: int = 16
    num_channels: int = 3
    initializer_range: float = 0.02


class FlatBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q_proj, self.k_proj, self.v_proj, self.o = (nn.Linear(width, width) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(width, 96), nn.Linear(96, width)

    def forward(self, x: Tensor) -> Tensor:
        read = self.norm1(x)
        q, k, v = (
            layer(read).unflatten(-1, (4, -1)).transpose(1, 2) for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        x = x + self.o(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))


class FlatModel(PreTrainedModel):
    config_class = FlatConfig
    base_model_prefix = "flat"
    main_input_name = "pixel_values"
    _supports_sdpa = True

    def __init__(self, config: FlatConfig) -> None:
        super().__init__(config)
        self.patches = nn.Conv2d(config.num_channels, config.width, 4, 4)
        self.blocks = nn.ModuleList([FlatBlock(config.width) for _ in range(2)])
        self.post_init()

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutput:
        x = self.patches(pixel_values).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return BaseModelOutput(last_hidden_state=x)


FLAT = Family(
    title="Flat",
    block=r"blocks\.\d+",
    layers={"q_proj": "q", "k_proj": "k", "v_proj": "v", "o": "o", "fc1": "fc1", "fc2": "fc2"},
)


def register() -> None:
    """What the package would do when it is imported."""
    AutoConfig.register("flat", FlatConfig, exist_ok=True)
    AutoModel.register(FlatConfig, FlatModel, exist_ok=True)
    register_family("flat", FLAT)
