"""What can be said of a compression before anything is measured."""

import os
from collections.abc import Callable, Mapping
from typing import Any

from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from ..architectures.layers import find_layers
from ..architectures.subject import Subject
from ..config import DEFAULT_KEEP_RATIO, CompressionConfig
from ..errors import BudgetError, ConfigError, DataError
from ..evaluation.reference import check_classes
from ..images.images import ImageSource
from ..importance.gates import gated_layers
from ..profiling.profile import LatencyProfile
from ..runtime.arguments import require
from ..runtime.files import check_file
from ..statistics.statistics import Statistics
from .allocation import check_reachable
from .grouping import make_groups
from .groups.base import Given, LayerGroup
from .joining import smallest_parameters
from .plan import CompressionPlan
from .planner import parameter_budgets
from .profiles import check_profile
from .selection import learned_scores

KINDS: dict[str, tuple[type | tuple[type, ...], str]] = {
    "config": (
        CompressionConfig,
        "Its methods `from_dict` and `load` make one of a mapping and of a file.",
    ),
    "accelerator": (Accelerator, "accelerate.Accelerator() makes one."),
    "image_processor": (Callable, "AutoImageProcessor.from_pretrained loads one."),  # type: ignore[dict-item]
    "profile": (LatencyProfile, "LatencyProfile.load reads a file."),
    "importance": (Mapping, "Give scores by the name of the layer that reads what they are of."),
    "statistics": (Statistics, "Statistics.load reads a file, and `calibrate` measures them."),
    "plan": (CompressionPlan, "CompressionPlan.load reads a file, and CompressionPlan(layers) makes one of shapes."),
    "checkpoint": ((str, os.PathLike), "Give the path of a file."),
}
"""What `ViTCompressor` takes by that name, and how to make one."""


def check_arguments(*, needed: bool = False, **given: Any) -> None:
    """Refuse arguments of `ViTCompressor` of another kind than `KINDS` says.

    Args:
        needed: whether `None` is refused, too.
        given: by name.

    Raises:
        ConfigError: naming the argument.
        OutputError: no checkpoint can be written at that place.
    """
    for name, value in given.items():
        if value is not None or needed:
            require(name, value, *KINDS[name])
    for layer, scores in (given.get("importance") or {}).items():
        require(f"importance[{layer!r}]", scores, Tensor, "Give a score of each neuron or head.")
    if given.get("checkpoint") is not None:
        check_file(given["checkpoint"], renews=lambda _: True)


def check_feasible(
    subject: Subject,
    config: CompressionConfig,
    plan: CompressionPlan | None,
    images: ImageSource | None,
    validation: ImageSource | None,
    importance: Mapping[str, Tensor] | None = None,
    profile: LatencyProfile | None = None,
) -> None:
    """Refuse what no calibration could help.

    Args:
        plan: that is to be used; otherwise one is made for the budget of `config`.
        images: to compensate on.
        validation: images to search `max_accuracy_drop` on.
        importance: scores that were given; by default they are learned.
        profile: latency profile that was given; by default it is measured.

    Raises:
        ConfigError: the plan names modules or shapes that the model cannot have, or stands beside another budget than
            it was made for; or nothing is left to compress;
            or scores are missing or not finite; or the profile is of another model or device.
        BudgetError: see `check_reach`; or there is no accuracy to lose, or there are no images to lose it on.
        DataError: there are no images to compensate on.
    """
    if config.compensation != "none" and images is None:
        raise DataError(
            f"compensation={config.compensation!r} learns from images: give some (images=…, --data), or use "
            'compensation="none".'
        )
    if config.criterion == "gates" and importance is not None:
        for name, count in gated_layers(subject.model, config).items():
            learned_scores(importance, name, count)
    if profile is not None:
        check_profile(subject, config, profile)
    if plan is not None:
        plan.check(_groups(subject, config), subject)
        check_one_budget(config, plan)
    elif config.searches_accuracy:
        check_search(subject.model, config, validation is not None, images is not None)
    else:
        check_reach(subject, config)


def check_one_budget(config: CompressionConfig, plan: CompressionPlan) -> None:
    """Refuse a budget that a given plan would leave unspent; the default one was not asked for.

    Raises:
        ConfigError: the config has another budget than the plan was made for.
    """
    if config.budgets not in ({"keep_ratio": DEFAULT_KEEP_RATIO}, plan.budget):
        asked = " and ".join(f"{name}={value}" for name, value in config.budgets.items())
        raise ConfigError(f"A plan takes the place of a budget: leave out {asked}, or the plan.")


def check_search(model: PreTrainedModel, config: CompressionConfig, validation: bool, images: bool) -> None:
    """Refuse a search of `max_accuracy_drop` that has nothing to search on.

    Args:
        validation: whether there are images to measure on.
        images: whether there are images to compensate on.

    Raises:
        BudgetError: the model has no classes, or images are missing.
    """
    check_classes(model)
    if not validation:
        raise BudgetError("max_accuracy_drop is searched on images: give validation images (validation=…).")
    if config.compensation != "none" and not images:
        raise BudgetError(
            "max_accuracy_drop takes compensation into account and needs the images to compensate on "
            '(images=…, --data), or compensation="none".'
        )


def check_reach(subject: Subject, config: CompressionConfig) -> None:
    """Refuse a budget of parameters that no plan can meet; those of MACs and of time are known after calibration only.

    Raises:
        ConfigError: nothing is left to compress.
        BudgetError: the smallest model with these settings has more parameters.
    """
    groups = _groups(subject, config)
    parameters = sum(parameter.numel() for parameter in subject.model.parameters())
    fixed = parameters - sum(group.dense_parameters for group in groups)
    for budget in parameter_budgets(config, parameters, fixed):
        check_reachable(budget, smallest_parameters(groups, config), len(groups), config.rank_multiple)


def within_reach(subject: Subject, config: CompressionConfig) -> CompressionConfig:
    """`config` with a budget that a plan meets, for looking at a model: of the default one, as near as there is.

    Raises:
        ConfigError, BudgetError: see `check_reach`; another budget than the default one was asked for.
    """
    if config.budgets == {"keep_ratio": DEFAULT_KEEP_RATIO}:
        groups = _groups(subject, config)
        parameters = sum(parameter.numel() for parameter in subject.model.parameters())
        fixed = parameters - sum(group.dense_parameters for group in groups)
        lowest = (fixed + smallest_parameters(groups, config) + 1) / parameters  # rounding must not put it out of reach
        return config.with_budget(keep_ratio=min(1.0, max(DEFAULT_KEEP_RATIO, lowest)))
    check_reach(subject, config)
    return config


def _groups(subject: Subject, config: CompressionConfig) -> list[LayerGroup]:
    """Not to be solved."""
    layers = find_layers(subject.model, config.target_modules, config.skip_modules)
    return make_groups(layers, Given(subject.model, Statistics(), config))
