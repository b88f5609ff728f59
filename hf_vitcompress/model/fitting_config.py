"""The config that would build a model which its own does not: found by trying."""

import copy
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2CLS

from ..configuration_factored import inner_configs

MOST_CHANGES = 3
"""So many settings are changed together."""

NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[-+]?\d+)?")

Key = tuple[str, str]


def fitting_config(
    model: PreTrainedModel,
    found: Mapping[Key, Any],
    wanted: Mapping[Key, Any],
    different: Sequence[Key],
    distance: Callable[[PreTrainedConfig], int],
) -> dict[str, Any]:
    """Settings of the config, by their path in it, with which it builds the model; empty where none were found.

    Args:
        found, wanted: structures of the model and of what its config builds.
        different: where they differ.
        distance: number of differences between the model and what a config builds; raises where it builds nothing.
    """
    config, left, changes = copy.deepcopy(model.config), len(different), {}
    candidates = list(_candidates(model, found, wanted, different))
    for _ in range(MOST_CHANGES):
        tried = [(_tried(config, path, value, distance), path, value) for path, value in candidates]
        best, path, value = min(tried, key=lambda trial: trial[0], default=(left, "", None))
        if best >= left:
            return {}
        left, changes[path] = int(best), value
        _set(config, path, value)
        if left == 0:
            return changes
    return {}


def _tried(config: PreTrainedConfig, path: str, value: Any, distance: Callable[[PreTrainedConfig], int]) -> float:
    trial = copy.deepcopy(config)
    try:
        _set(trial, path, value)
        return distance(trial)
    except Exception:  # values that do not go together; it is one trial of many
        return float("inf")


def _set(config: PreTrainedConfig, path: str, value: Any) -> None:
    *outer, name = path.split(".")
    for part in outer:
        config = getattr(config, part)
    setattr(config, name, value)


def _candidates(
    model: PreTrainedModel, found: Mapping[Key, Any], wanted: Mapping[Key, Any], different: Sequence[Key]
) -> Iterator[tuple[str, Any]]:
    """(Path, value): numbers that are those of a shape or a count, flags the other way round, and activations."""
    numbers = {
        (built, now) for key in different for built, now in _sizes(found.get(key), wanted.get(key)) if built and now
    }
    numbers |= {(built, now) for built, now in _lengths(found, wanted) if built != now}
    classes = {found.get(key) for key in different if key[1] == "module"}
    if nn.Identity in classes:
        yield "num_labels", 0
    for path, value in _settings_of(model.config):
        name = path.rpartition(".")[2]
        if isinstance(value, bool):
            if name.startswith("use_") or name.endswith("_bias"):
                yield path, not value
        elif isinstance(value, int | float):
            yield from ((path, wish) for wish in _wishes(model.config, name, value, numbers) if wish != value)
        elif name.endswith("_act") or name == "activation_function":
            yield from ((path, act) for act, own in ACT2CLS.items() if any(own is c for c in classes) and act != value)


def _wishes(
    config: PreTrainedConfig, name: str, value: float, numbers: Iterable[tuple[float, float]]
) -> Iterator[float]:
    """What a number of the config may have to be where the numbers `built` have to become `now`."""
    patch = getattr(config, "patch_size", None)
    for built, now in numbers:
        if "ratio" in name:
            yield value * now / built
        elif "heads" in name and isinstance(built, int) and isinstance(now, int):
            yield int(value * built // now)  # of another size
        elif name == "image_size" and isinstance(patch, int):
            beside = built - (value // patch) ** 2  # tokens that are no patches
            yield patch * math.isqrt(max(0, int(now - beside)))
        if built == value:
            yield now


def _sizes(found: Any, wanted: Any) -> Iterator[tuple[float, float]]:
    """(Built, now) of the numbers in which two shapes, or the settings of two modules, differ."""
    one, other = (_numbers(value) for value in (wanted, found))
    if len(one) == len(other):
        yield from ((built, now) for built, now in zip(one, other, strict=True) if built != now)


def _numbers(value: Any) -> Sequence[float]:
    if isinstance(value, dict):
        texts = NUMBER.findall(" ".join(value.values()))
        return [float(text) if set(text) & set(".e") else int(text) for text in texts]
    return value if isinstance(value, tuple) else ()


def _lengths(found: Mapping[Key, Any], wanted: Mapping[Key, Any]) -> Iterator[tuple[int, int]]:
    """How many modules each list has, where the config builds it and where it is."""
    for (name, kind), value in wanted.items():
        if kind == "module" and value is nn.ModuleList:
            counts = [
                sum(1 for child, own in names if own == "module" and child.rpartition(".")[0] == name)
                for names in (wanted, found)
            ]
            yield counts[0], counts[1]


def _settings_of(config: PreTrainedConfig, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Path → value, also of the configs in it."""
    yield f"{prefix}num_labels", config.num_labels
    for name, value in vars(config).items():
        if not name.startswith("_") and not isinstance(value, PreTrainedConfig):
            yield f"{prefix}{name}", value
    for name, inner in inner_configs(config).items():
        yield from _settings_of(inner, f"{prefix}{name}.")
