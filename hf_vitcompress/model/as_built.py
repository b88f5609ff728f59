"""Whether a model is what its config builds, but for the values of its weights.

Its compressed form is built by the config, and so is whatever loads that from a folder.
"""

import copy
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..architectures.constructors import constructor_options
from ..architectures.running import attention_implementations
from ..configuration_factored import path_of
from ..errors import UnsupportedModelError, one_line
from ..layers_factored import attention_names
from .fitting_config import fitting_config
from .making import without_storage

NAMED = 3
"""So many differences are named, and the others counted."""

Key = tuple[str, str]
"""Name, and which of the three kinds it is: `"module"`, `"settings"` or `"tensor"`."""

Structure = dict[Key, Any]
"""The class of a module, its settings by name as text, and the shape of a tensor."""

LEFT_OVERS: dict[str, str] = {
    r"(.+)\.(\w+)_mask": "{0} is masked: call torch.nn.utils.prune.remove(module, {1!r}) for every module that is",
    r"(.+)\.parametrizations\.(\w+)\..*": "{0} is parametrized: call "
    "torch.nn.utils.parametrize.remove_parametrizations(module, {1!r}) for every module that is",
    r"(.+)\.(\w+)_g": "{0} has a weight norm: call torch.nn.utils.remove_weight_norm(module, {1!r})",
    r"(.+)\.(\w+)_u": "{0} has a spectral norm: call torch.nn.utils.remove_spectral_norm(module, {1!r})",
    r"(.+?)\.(?:base_layer|lora_\w+|hada_\w+|lokr_\w+|oft_\w+)\b.*": "{0} is that of an adapter: give what "
    "`merge_and_unload` of PEFT makes of the model",
    r"(.+)\.importance": "{0} has learned scores: call hf_vitcompress.importance.gates.fold_gates(model)",
    r"(.+?)\._orig_mod\..*": "{0} is compiled: give the model as it was before torch.compile",
}
"""By the name of a tensor that the config does not build: what it was left by, and how it is undone."""


@dataclass(frozen=True)
class Naming:
    """How a model that somebody else's function made is spoken of.

    Attributes:
        model: what it is called.
        builder: what builds it.
        maker: that in two words, with its verb.
        prefix: of module names, which whoever made it does not know.
        advice: what to do where no setting of the config builds it.
    """

    model: str
    builder: str
    maker: str
    prefix: str
    advice: str


def check_as_built(model: PreTrainedModel, naming: Naming | None = None) -> None:
    """Check that the modules of a dense model are those that its config builds, with the same shapes and settings.

    Args:
        naming: of a model that people do not know by its class and config.

    Raises:
        UnsupportedModelError: naming what differs, and what to do: the setting of the config that builds it, if one
            does.
    """
    name = type(model).__name__ if naming is None else naming.model
    try:
        built = twin_of(model, model.config)
    except Exception as error:  # of any class's constructor, on values that its config was given afterwards
        raise UnsupportedModelError(
            f"The config of this {name} builds no model: {one_line(error)}. Restore the config that it was made with."
        ) from error
    found, wanted = structure(model), structure(built)
    different = differing(found, wanted)
    if different:
        refusal = _refusal(model, found, wanted, different) if naming is None else _by_name(naming, found, wanted)
        raise UnsupportedModelError(refusal)
    for names in shared_parameters(model) - shared_parameters(built):
        prefix = "" if naming is None else naming.prefix
        places = ", ".join(sorted(own.removeprefix(prefix) for own in names)[:NAMED])
        raise UnsupportedModelError(
            f"This {name} has one parameter in several places ({places}), which its config "
            "does not tie, and a checkpoint holds as many. Give each its own, for instance by copy.deepcopy of the "
            "module."
        )


def twin_of(model: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
    """What a config builds of the class of `model`, without storage; the config stays as it is."""
    return without_storage(
        type(model),
        copy.deepcopy(config),
        attention_implementations(model),
        model.dtype,
        **constructor_options(model),
    )


def structure(model: nn.Module) -> Structure:
    """All but the values: classes, settings and shapes."""
    found: Structure = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if name:
            found[name, "module"] = type(module)
            if settings := _settings(module):
                found[name, "settings"] = settings
    # Buffers that no checkpoint holds are made anew, and some change their shape when a model is used.
    saved = model.state_dict().keys()
    buffers = [pair for pair in model.named_buffers(remove_duplicate=False) if pair[0] in saved]
    tensors = [*model.named_parameters(remove_duplicate=False), *buffers]
    return found | {(name, "tensor"): tuple(tensor.shape) for name, tensor in tensors}


def _settings(module: nn.Module) -> dict[str, str]:
    """What decides, besides its weights, what a module computes of its input when it is not trained."""
    if "Drop" in type(module).__name__:
        return {}
    names = attention_names(type(module))
    if names is not None:
        return {name: str(getattr(module, name)) for name in (names.head_dim, names.scaling) if name}
    parts = [part.rpartition("=") for part in re.split(r", (?=\w+=)", module.extra_repr()) if part]
    return {name: value for name, _, value in parts}


def differing(found: Structure, wanted: Structure) -> list[Key]:
    """Where two structures differ, in the order of their names."""
    return [key for key in {**wanted, **found} if found.get(key) != wanted.get(key)]


def shared_parameters(model: nn.Module) -> set[frozenset[str]]:
    """The names of each parameter that has several."""
    names = defaultdict(set)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[id(parameter)].add(name)
    return {frozenset(own) for own in names.values() if len(own) > 1}


def _refusal(model: PreTrainedModel, found: Structure, wanted: Structure, different: list[Key]) -> str:
    name = type(model).__name__
    if (left := _left_over(key for key in found if key not in wanted)) is not None:
        return f"This {name} is not what its config builds: {left}."

    def distance(config: PreTrainedConfig) -> int:
        return len(differing(found, structure(twin_of(model, config))))

    described = _described(found, wanted, different)
    changes = fitting_config(model, found, wanted, different, distance)
    if changes:
        settings = " and ".join(f"model.config.{path}={value!r}" for path, value in changes.items())
        return f"This {name} is not what its config builds: {described}. Set {settings}."
    return (
        f"This {name} is not what its config builds: {described}. No setting of the config builds that, so that no "
        f"checkpoint of this class holds it. {_way_out(model, found, wanted, different)}"
    )


def _by_name(naming: Naming, found: Structure, wanted: Structure) -> str:
    ours, theirs = (
        {(name.removeprefix(naming.prefix), kind): value for (name, kind), value in own.items()}
        for own in (found, wanted)
    )
    left = _left_over(key for key in ours if key not in theirs)
    if left is not None:
        return f"This {naming.model} is not what {naming.builder} builds: {left}."
    described = _described(ours, theirs, differing(ours, theirs)).replace("the config builds", naming.maker)
    return f"This {naming.model} is not what {naming.builder} builds: {described}. {naming.advice}"


def _way_out(model: PreTrainedModel, found: Structure, wanted: Structure, different: list[Key]) -> str:
    prefix = model.base_model_prefix
    if all(key not in wanted for key in different):
        return f"Take it off before (del model.{different[0][0]}), and put it back on the result."
    if prefix and (prefix, "module") in found and not any(f"{name}.".startswith(f"{prefix}.") for name, _ in different):
        return f"Compress what is inside, model.{prefix}, and put the rest on the result."
    return "Give the model as it was before that change, or as a class of its own: see register_family."


def _left_over(keys: Iterable[Key]) -> str | None:
    for name in (name for name, kind in keys if kind == "tensor"):
        for pattern, sentence in LEFT_OVERS.items():
            if (match := re.fullmatch(pattern, name)) is not None:
                return sentence.format(*match.groups())
    return None


def _described(found: Structure, wanted: Structure, different: list[Key]) -> str:
    """The outermost differences in words: what is inside a module that is another one, goes without saying."""
    modules = {name for name, kind in different if kind == "module"}
    resized = {name.rpartition(".")[0] for name, kind in different if kind == "tensor"}
    told = [
        (name, kind)
        for name, kind in different
        if not any(name.startswith(f"{outer}.") for outer in modules)
        and (kind == "module" or name not in modules)
        and (kind != "settings" or name not in resized)
    ]
    said = [_difference(name, found.get((name, kind)), wanted.get((name, kind))) for name, kind in told]
    others = f"; and {len(said) - NAMED} more" if len(said) > NAMED else ""
    return "; ".join(said[:NAMED]) + others


def _difference(name: str, found: Any, wanted: Any) -> str:
    if found is None:
        return f"it has no {name}"
    if wanted is None:
        return f"the config builds no {name}"
    if isinstance(found, dict):
        changed = [key for key in {**wanted, **found} if found.get(key) != wanted.get(key)]
        own, others = (
            ", ".join(f"{key}={values.get(key)}".lstrip("=") for key in changed) for values in (found, wanted)
        )
        return f"{name} has {own}, the config builds {others}"
    classes = [value for value in (found, wanted) if isinstance(value, type)]
    alike = len({own.__name__ for own in classes}) < len(classes)
    one, other = (
        (path_of(value) if alike else value.__name__) if isinstance(value, type) else value for value in (found, wanted)
    )
    return f"{name} is {one}, the config builds {other}"
