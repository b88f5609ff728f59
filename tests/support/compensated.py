"""Tiny models compressed and compensated."""

from typing import Any

import pytest

from hf_vitcompress import CompressionConfig, ViTCompressor
from hf_vitcompress.compensation.course import CompensationReport

RECIPE: dict[str, Any] = {
    "keep_ratio": 0.4,
    "rank_multiple": 1,
    "precision": "float32",
    "measuring_images": 0,
    "metric": "activation",
    "compensation": "both",
    "compensation_duration": "5 epochs",
    "distill_batch_size": 16,
    "learning_rate": 1e-3,
    "feature_weight": 1.0,
}
IMAGES = 96
JUDGES = 19  # a fifth of them
STAGES = {"residual": ["residual"], "distill": ["distill"], "both": ["residual", "distill"]}

every_method = pytest.mark.parametrize("method", STAGES)


def new(**changes: Any) -> ViTCompressor:
    values = {**RECIPE, **changes}
    return ViTCompressor(CompressionConfig(**values), progress=False)


def done(compressor: ViTCompressor) -> CompensationReport:
    assert compressor.report is not None
    assert compressor.report.compensation is not None
    return compressor.report.compensation
