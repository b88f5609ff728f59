"""Exported programs, and how each runtime runs them."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTForMaskedImageModeling,
    DeiTModel,
    PreTrainedModel,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTModel,
)

from hf_vitcompress.configuration_factored import factored_config_class
from hf_vitcompress.deploy.export_formats import FORMATS
from hf_vitcompress.deploy.export_report import ExportReport
from hf_vitcompress.modeling_factored import factored_model_class
from support.models import TINY, seeded
from support.students import METHODS, compressed
from support.terminal import Run, running_commands  # noqa: F401  (the fixture "run")

EVERYTHING: dict[str, dict[str, int]] = {
    "layers.0.attention": {"qk_rank": 6},
    "layers.0.attention.v_proj": {"out_features": 20, "rank": 8},
    "layers.0.attention.o_proj": {"in_features": 20, "rank": 9},
    "layers.0.mlp.fc1": {"out_features": 40, "rank": 7},
    "layers.0.mlp.fc2": {"in_features": 40},
    **{f"layers.1.attention.{letter}_proj": {"out_features": 24} for letter in "qkv"},
    "layers.1.attention.o_proj": {"in_features": 24},
    "layers.1.mlp.fc1": {"rank": 8},
}
"""A shared `down`, values with a head dimension of their own, heads and neurons pruned, and factors of all that."""
REMOVED: dict[str, dict[str, int]] = {
    "layers.0.mlp.fc1": {"out_features": 0},
    "layers.0.mlp.fc2": {"in_features": 0},
    **{f"layers.1.attention.{letter}_proj": {"out_features": 0} for letter in "qkv"},
    "layers.1.attention.o_proj": {"in_features": 0},
}
"""A feed-forward and attention that are gone."""


def dense(model_class: type[PreTrainedModel], **changes: Any) -> PreTrainedModel:
    return seeded(model_class, model_class.config_class(**{**TINY, "encoder_stride": 4, **changes}))


def formed(model_class: type[PreTrainedModel], **changes: Any) -> PreTrainedModel:
    config_class = factored_config_class(model_class.config_class.model_type)
    config = config_class(**{**TINY, "encoder_stride": 4, "compression": {"layers": EVERYTHING}, **changes})
    return seeded(factored_model_class(model_class), config)


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "dense": lambda: dense(ViTForImageClassification),
    "everything": lambda: formed(ViTForImageClassification),
    "default": lambda: compressed(**METHODS["default"]).student(),
    "low rank": lambda: compressed(**METHODS["low rank"]).student(),
    "pruned": lambda: compressed(**METHODS["pruned"]).student(),
    "removed modules": lambda: formed(ViTForImageClassification, compression={"layers": REMOVED}),
    "without a head": lambda: formed(ViTModel),
    "dense DeiT without a head": lambda: dense(DeiTModel),
    "DeiT with a teacher": lambda: formed(DeiTForImageClassificationWithTeacher),
    "bfloat16": lambda: formed(DeiTForImageClassification).to(torch.bfloat16),
    "float16, eager": lambda: with_eager(formed(ViTForImageClassification)).half(),
    "masked images": lambda: formed(ViTForMaskedImageModeling),
    "dense DeiT, masked images": lambda: dense(DeiTForMaskedImageModeling),
    "not square": lambda: formed(ViTForImageClassification, image_size=(16, 8), num_channels=1),
}
"""Models by what is special about them."""
Make = Callable[[str], PreTrainedModel]


def with_eager(model: PreTrainedModel) -> PreTrainedModel:
    model.set_attn_implementation("eager")
    return model


def skip_without(to: str) -> None:
    missing = [package for package in FORMATS[to].packages if importlib.util.find_spec(package) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} is not installed (pip install {' '.join(FORMATS[to].packages)})")


def values_of(model: PreTrainedModel, images: Tensor) -> list[Tensor]:
    """Outputs in float32, which the model then is in."""
    with torch.no_grad():
        return [value for value in model.float().eval()(images).values() if isinstance(value, Tensor)]


def images_for(report: ExportReport, count: int) -> Tensor:
    """Others than those the program was checked with."""
    return torch.randn(count, *report.inputs[0].shape[1:], generator=torch.Generator().manual_seed(77))


def run_onnx(file: Path, images: Tensor) -> list[Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return session.run(None, {"pixel_values": images.numpy()})


def run_executorch(file: Path, images: Tensor) -> list[Any]:
    from executorch.runtime import Runtime

    return Runtime.get().load_program(file).load_method("forward").execute([images])
