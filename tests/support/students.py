"""Tiny dense models whose classes lie apart, and compressed ones that have lost something to win back."""

import copy
import hashlib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel, ViTForImageClassification

from hf_vitcompress import CompressionConfig, CompressionPlan, Statistics, ViTCompressor
from hf_vitcompress.architectures.subject import Subject
from hf_vitcompress.compensation.distillation import Distillation
from hf_vitcompress.compensation.residual import ResidualCompensation
from hf_vitcompress.config.groups import CompensationSettings
from hf_vitcompress.evaluation.reference import Reference
from hf_vitcompress.images.images import ImageSource
from hf_vitcompress.planning.building import build_model
from hf_vitcompress.planning.planner import Planner
from hf_vitcompress.runtime.checkpoints import Checkpoint
from support.models import seeded, tiny_config
from support.stages import quiet

HELD_OUT = 24
LOW_RANK = {"attention": "low_rank", "mlp": "low_rank"}
METHODS: dict[str, dict[str, str]] = {
    "default": {},
    "low rank": LOW_RANK,
    "pruned": {"attention": "prune", "mlp": "prune"},
    "joint and pruned": {"mlp": "prune"},
}
"""Settings of ways to compress, by what to call them in a test."""


def lively(
    model_class: type[PreTrainedModel] = ViTForImageClassification, config: Any = None, seed: int = 0
) -> PreTrainedModel:
    """A random model whose answers differ from image to image, and suffer when it is compressed."""
    model = seeded(model_class, config or tiny_config(), seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.weight.copy_(1 + 0.3 * torch.randn_like(module.weight))
        if hasattr(model, "classifier"):
            model.classifier.weight.mul_(2)
    return model


def random_images(count: int, seed: int = 2) -> Tensor:
    """(count, 3, 16, 16)"""
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


@dataclass
class Case:
    """A dense model ready for compensation; every `student()` is a new compressed model, all of them alike."""

    dense: PreTrainedModel
    config: CompressionConfig
    statistics: Statistics
    prepared: Planner
    plan: CompressionPlan
    train: ImageSource
    reference: Reference

    def student(self) -> PreTrainedModel:
        return build_model(self.dense, self.plan, self.prepared.groups)

    def residual(self, student: PreTrainedModel) -> ResidualCompensation:
        return ResidualCompensation(student, self.prepared, self.plan, self.train, self.reference, quiet(self.config))

    def distillation(self, student: PreTrainedModel) -> Distillation:
        return Distillation(student, Subject.alone(self.dense), self.train, self.reference, quiet(self.config))


def compressed(
    dense: PreTrainedModel | None = None,
    images: Tensor | list[Any] | None = None,
    labels: list[int] | None = None,
    ranks: dict[str, int] | None = None,
    layers: dict[str, dict[str, int]] | None = None,
    **settings: Any,
) -> Case:
    """Calibrated, planned and factorized; the last `HELD_OUT` images judge.

    The work is done once for all tests that ask for the same; each gets a copy, with which it may do as it likes.

    Args:
        ranks: by layer name, to factor these and nothing else, each by itself.
        layers: a plan's shapes, for whatever `settings` say.
    """
    if ranks is not None:
        settings, layers = {**LOW_RANK, **settings}, low_rank_plan(ranks).layers
    dense = dense or lively()
    images = list(random_images(96) if images is None else images)
    values = {"keep_ratio": 0.4, "rank_multiple": 1, "precision": "float32", "measuring_images": 0, **settings}
    config = CompressionConfig(**values)
    before = {name: value for name, value in values.items() if name not in AFTERWARDS or config.criterion == "gates"}
    key = digest(dense, images, repr((labels, layers, sorted(before.items()))))
    if key not in CASES:
        source = ImageSource(images, labels, "the images")
        CASES[key] = new_case(dense, source, layers, CompressionConfig(**before))
        if len(CASES) > KEPT:
            del CASES[next(iter(CASES))]
    return replace(copy.deepcopy(CASES[key]), config=config)


AFTERWARDS = {field.name for field in fields(CompensationSettings)}
"""Settings that change nothing of a student before it is compensated, unless scores are learned for it."""

CASES: dict[bytes, Case] = {}
"""What was compressed last, by a digest of all that it was made of."""
KEPT = 64


def digest(model: PreTrainedModel, images: list[Any], said: str) -> bytes:
    """Of a model, images that are tensors or bytes, and what else is said."""
    found = hashlib.sha256()
    for group in (type(model).__qualname__, model.config.to_json_string(use_diff=False), said):
        found.update(group.encode())
    for name, tensor in [*model.state_dict().items(), *enumerate(images)]:
        content = bytes_of(tensor) if isinstance(tensor, Tensor) else tensor
        found.update(f"{name} {getattr(tensor, 'dtype', None)}".encode() + content)
    return found.digest()


def bytes_of(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def new_case(
    dense: PreTrainedModel, source: ImageSource, layers: dict[str, dict[str, int]] | None, config: CompressionConfig
) -> Case:
    compressor = ViTCompressor(config, progress=False)
    end = len(source) - HELD_OUT
    statistics = compressor.calibrate(dense, source.select(range(end)))
    prepared = compressor.planner(dense, statistics)
    plan = prepared.plan(config, exact=False) if layers is None else CompressionPlan(layers)
    reference = Reference.of(Subject.alone(dense), source.select(range(end, len(source))), quiet(config))
    return Case(dense, config, statistics, prepared, plan, source.select(range(end)), reference)


def low_rank_plan(ranks: dict[str, int]) -> CompressionPlan:
    return CompressionPlan({name: {"rank": rank} for name, rank in ranks.items()})


def checkpoint(path: Path | None = None) -> Checkpoint:
    return Checkpoint(path, Accelerator())


def state_of(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(before: dict[str, Tensor], model: PreTrainedModel) -> set[str]:
    """Names of the tensors that are no longer the same to the bit."""
    after = model.state_dict()
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def logits(model: PreTrainedModel, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(pixel_values=pixels).logits
