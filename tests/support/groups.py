"""Tiny models with statistics, and what their groups of layers pass on."""

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from hf_vitcompress import CompressionConfig, Statistics
from hf_vitcompress.architectures.layers import find_layers
from hf_vitcompress.architectures.subject import Subject
from hf_vitcompress.images.sources import open_images
from hf_vitcompress.planning.planner import Planner, make_planner
from hf_vitcompress.statistics.calibration import calibrate
from support.stages import quiet
from support.students import lively, random_images

IMAGES = random_images(64)


HEADS, SIZE, WIDTH, HIDDEN = 4, 8, 32, 96


def config_of(**settings: Any) -> CompressionConfig:
    return CompressionConfig(**{"precision": "float32", "token_weighting": 0.0, "damping": 1e-12, **settings})


@functools.cache
def calibrated(metric: str, seed: int = 0) -> tuple[PreTrainedModel, Statistics]:
    """A model and its statistics, which serve every method."""
    model, config = lively(seed=seed), config_of(metric=metric, fisher_probes=8)
    return model, calibrate(Subject.alone(model), find_layers(model), open_images(IMAGES), quiet(config))


def prepared(metric: str = "fisher", importance: dict[str, Tensor] | None = None, **settings: Any) -> Planner:
    model, statistics = calibrated(metric)
    config = config_of(metric=metric, **settings)
    return make_planner(Subject.alone(model), statistics, quiet(config), importance)


def flow(model: PreTrainedModel, name: str, images: Tensor = IMAGES) -> Tensor:
    """What flows into a module, (tokens, ·) float64."""
    seen: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_pre_hook(
        lambda _, args: seen.append(args[0].flatten(0, -2).double())
    )
    with torch.no_grad():
        model(pixel_values=images)
    handle.remove()
    return seen[0]


def weight_of(model: PreTrainedModel, name: str) -> Tensor:
    return model.get_submodule(name).weight.detach().double()


def kl(reference: Tensor, found: Tensor) -> float:
    """Mean KL divergence of class probabilities, from logits (n, classes)."""
    log_p, log_q = (own.double().log_softmax(-1) for own in (reference, found))
    return float(functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True))
