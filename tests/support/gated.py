"""Tiny dense models whose neurons and heads get importance scores."""

from typing import Any
from unittest import mock

from torch import Tensor
from transformers import (
    Dinov2Config,
    Dinov2Model,
    DPTConfig,
    DPTModel,
    PreTrainedModel,
    YolosConfig,
    YolosModel,
)

from hf_vitcompress import CompressionConfig
from hf_vitcompress.architectures.subject import Subject
from hf_vitcompress.images.images import ImageSource
from hf_vitcompress.importance.gates import GATE_LEARNING_RATE
from hf_vitcompress.importance.learning import learn_gates
from hf_vitcompress.importance.report import GateReport
from hf_vitcompress.runtime.checkpoints import Checkpoint
from support.models import tiny_config
from support.stages import quiet
from support.students import lively, random_images

PIXELS = random_images(48)
SMALL = tiny_config(num_hidden_layers=1, hidden_size=16, intermediate_size=24, num_attention_heads=2)
WIDE: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
FAST = {"precision": "float32", "rank_multiple": 1, "measuring_images": 0}
# Of 3,149 parameters; a neuron has 32 and a head 512, so that ratios would be met by chance only.
CONFIG = CompressionConfig.preset("vtp", max_params=2400, compensation="none", gate_duration="2.0 epochs", **FAST)
FC2, OUT = "vit.layers.0.mlp.fc2", "vit.layers.0.attention.o_proj"

ELSEWHERE: dict[str, tuple[type[PreTrainedModel], Any, str, str]] = {
    "gated": (
        Dinov2Model,
        Dinov2Config(**WIDE, mlp_ratio=3, use_swiglu_ffn=True),
        "encoder.layer.0.mlp.down_proj",
        "encoder.layer.0.attention.o_proj",
    ),
    "yolos": (
        YolosModel,
        YolosConfig(**{**WIDE, "image_size": [16, 16]}, intermediate_size=24, num_detection_tokens=3),
        "encoder.layer.0.output.dense",
        "encoder.layer.0.attention.output.dense",
    ),
    "dpt": (
        DPTModel,
        DPTConfig(**WIDE, intermediate_size=24, backbone_out_indices=[0, 0, 0, 0]),
        "encoder.layer.0.output.dense",
        "encoder.layer.0.attention.output.dense",
    ),
}
"""Gated feed-forward networks, and output projections outside of the attention module: fc2 and o by name."""


def small() -> PreTrainedModel:
    return lively(config=SMALL)


def images() -> ImageSource:
    return ImageSource(list(PIXELS), None, "the images")


def learned(
    model: PreTrainedModel | None = None,
    duration: str = "2 epochs",
    source: ImageSource | None = None,
    checkpoint: Checkpoint | None = None,
    learning_rate: float = GATE_LEARNING_RATE,
    **changes: Any,
) -> tuple[dict[str, Tensor], GateReport]:
    """The scores of a model, by default of `small()`, and the report."""
    config = CompressionConfig.from_dict({**CONFIG.to_dict(), "gate_duration": duration, **changes})
    subject, run = Subject.alone(model or small()), quiet(config)
    with mock.patch("hf_vitcompress.importance.learning.GATE_LEARNING_RATE", learning_rate):
        found = learn_gates(subject, source or images(), run, checkpoint)
    return found.scores, found.report
