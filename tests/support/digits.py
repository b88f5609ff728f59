"""The model of handwritten digits, compressed."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_vitcompress import CompressionConfig, ViTCompressor
from support.models import DIGITS

RECIPE = CompressionConfig(keep_ratio=0.4, rank_multiple=2, precision="float32")
CALIBRATION = DIGITS / "calibration.parquet"


def new(config: CompressionConfig = RECIPE, **changes: Any) -> ViTCompressor:
    return ViTCompressor(CompressionConfig.from_dict({**config.to_dict(), **changes}), progress=False)


def small_recipe(**changes: Any) -> ViTCompressor:
    """For the tiny random models, whose layers are 32 wide."""
    values = {"keep_ratio": 0.6, "rank_multiple": 1, "precision": "float32", **changes}
    return ViTCompressor(CompressionConfig(**values), progress=False)


def identical(a: PreTrainedModel | dict[str, Tensor], b: PreTrainedModel | dict[str, Tensor]) -> bool:
    first, second = (m if isinstance(m, dict) else m.state_dict() for m in (a, b))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def output(model: PreTrainedModel, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        result = model.eval()(pixel_values=pixels)
    return next(result[key] for key in ("logits", "reconstruction", "last_hidden_state") if key in result)
