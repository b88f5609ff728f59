"""The latency profile of a model: what its groups may run, measured under conditions that are written down."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import nn
from transformers import PreTrainedModel

from ..architectures.inputs import example_inputs, image_shape
from ..architectures.layers import LayerInfo, find_layers
from ..architectures.running import attention_implementations, without_dropout
from ..architectures.subject import Subject
from ..config import CompressionConfig
from ..evaluation.latency import time_forward
from ..profiling.measuring import Bench, take_profile
from ..profiling.operations import Merge, Operation
from ..profiling.profile import Conditions, LatencyProfile
from ..runtime.devices import device_name
from ..runtime.distributed import from_main, local_work
from ..runtime.run import Run
from ..statistics.statistics import Statistics
from .grouping import make_groups
from .groups.base import Given, LayerGroup
from .tokens import merges_tokens

ROUNDS, FEWEST_ROUNDS, ROUND_SECONDS = 15, 5, 10.0
"""Forward passes of the dense model that are timed: so many, or as many as these seconds allow, but so few at least."""


def profile_of(
    subject: Subject,
    run: Run,
    given: LatencyProfile | None = None,
    shape: tuple[int, ...] | None = None,
    earlier: LatencyProfile | None = None,
) -> LatencyProfile:
    """Measure what plans of a model may run on this device, or take a known profile of the same.

    Args:
        given: to use, and nothing else.
        shape: of one image's `pixel_values`; by default that which the model is made for.
        earlier: to use where it was measured under the same conditions.

    Raises:
        ConfigError: the given one was measured under other conditions; or nothing is left to compress.
    """
    model, config = subject.model, run.config
    shape = shape or image_shape(model)
    layers = find_layers(model, config.target_modules, config.skip_modules)
    conditions = conditions_of(model, layers, config, shape)
    if given is not None:
        given.check(conditions)
        return given
    if earlier is not None and earlier.conditions == conditions:
        return earlier
    with local_work(run.accelerator, "The latency profile"):
        taken = None
        if run.is_main:
            counted = Statistics(images=1, tokens=tokens_of(model, layers, shape))
            groups = make_groups(layers, Given(model, counted, config))
            taken = _measured(model, groups, run, conditions, merges_tokens(subject, config))
    return cast(LatencyProfile, from_main(run.accelerator, taken))


def check_profile(subject: Subject, config: CompressionConfig, given: LatencyProfile) -> None:
    """Refuse a profile of another model or device; the size of the images is known after calibration.

    Raises:
        ConfigError: naming what differs.
    """
    layers = find_layers(subject.model, config.target_modules, config.skip_modules)
    given.check(conditions_of(subject.model, layers, config, given.conditions.image_shape))


def conditions_of(
    model: PreTrainedModel, layers: Sequence[LayerInfo], config: CompressionConfig, shape: tuple[int, ...]
) -> Conditions:
    """What a profile is measured under."""
    sizes = sorted({(layer.role, layer.in_features, layer.out_features) for layer in layers})
    described = ", ".join(f"{role} {inputs} × {outputs}" for role, inputs, outputs in sizes)
    return Conditions(
        device_name(model.device),
        torch.get_num_threads(),
        str(model.dtype).removeprefix("torch."),
        config.latency_batch_size,
        tuple(shape),
        attention_implementations(model).get("", "eager"),
        f"{type(model).__name__} with {len(layers)} layers: {described}",
        torch.__version__,
    )


def tokens_of(model: PreTrainedModel, layers: Sequence[LayerInfo], shape: tuple[int, ...]) -> dict[str, int]:
    """Vectors of one image that each layer reads, by the name of its input."""
    found: dict[str, int] = {}

    def count(name: str, _: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        found[name] = given[0].numel() // given[0].shape[-1]

    hooks = [
        model.get_submodule(layer.name).register_forward_pre_hook(functools.partial(count, layer.input_name))
        for layer in layers
    ]
    try:
        with without_dropout(model), torch.inference_mode():
            model(**example_inputs(model, 1, shape))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _measured(
    model: PreTrainedModel, groups: Sequence[LayerGroup], run: Run, conditions: Conditions, merges: bool
) -> LatencyProfile:
    config = run.config
    operations: set[Operation] = {one for group in groups for one in group.spanning(config.rank_multiple)}
    if merges:
        operations |= {Merge(group.positions, group.layers[0].in_features) for group in groups}
    bench = Bench(model.device, model.dtype, config.latency_batch_size, conditions.attention != "eager")
    once = forward_pass(model, config.latency_batch_size, conditions.image_shape)
    rounds = rounds_for(min(once(), once()))
    before = min(once() for _ in range(rounds))
    with run.bar("profiling", "operations") as bar:
        profile = take_profile(bench, operations, before, conditions, done=bar.update)
    # Other work may have kept the device busy at first, which the operations then were not.
    return replace(profile, dense=min(before, *(once() for _ in range(rounds))))


def rounds_for(seconds: float) -> int:
    """How many passes of so many seconds are timed."""
    return max(FEWEST_ROUNDS, min(ROUNDS, int(ROUND_SECONDS / max(seconds, 1e-6))))


def forward_pass(model: PreTrainedModel, batch_size: int, shape: tuple[int, ...]) -> Callable[[], float]:
    """Runs a batch and gives its seconds."""
    return functools.partial(time_forward, model, example_inputs(model, batch_size, shape))
