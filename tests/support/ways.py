"""Ways to compress."""

from typing import Any

from transformers import PreTrainedModel

from hf_vitcompress import CompressionConfig, ViTCompressor
from hf_vitcompress.architectures.layers import find_layers, may_prune_heads
from support_table import attention_of

SMALLER = 0.4
"""How much of the weights that may be compressed goes."""


def compressor_for(model: PreTrainedModel, way: dict[str, Any]) -> ViTCompressor:
    layers = find_layers(model)
    attention = attention_of(layers)
    if way.get("attention") == "prune" and (attention is None or not may_prune_heads(model, attention)):
        way = {**way, "attention": "none"}
    inside = [layer for layer in layers if way.get("attention") != "none" or layer.role in ("gate", "fc1", "fc2")]
    limit = model.num_parameters() - round(SMALLER * sum(layer.parameters for layer in inside))
    settings = {"rank_multiple": 1, "batch_size": 12, "precision": "float32", "measuring_images": 0, **way}
    return ViTCompressor(CompressionConfig(keep_ratio=None, max_params=limit, **settings), progress=False)
