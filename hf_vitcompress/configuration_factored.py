"""Configs of factored models: the shapes of their layers, and the guard that keeps dense classes off their weights.

This file needs torch and transformers only. It is copied beside every saved checkpoint, with `layers_factored.py` and
`modeling_factored.py`.
"""

import dataclasses
import functools
import json
import os
import threading
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast, get_args

import transformers
from transformers import PreTrainedConfig
from transformers.models.auto import CONFIG_MAPPING, modeling_auto

if TYPE_CHECKING:  # models take seconds to import, and a config needs none
    from transformers import PreTrainedModel

MODELING_FILE = "modeling_factored.py"
TRAVELLING_FILES = ("configuration_factored.py", "layers_factored.py", "tokens_factored.py", MODELING_FILE)
"""What loads a checkpoint with `trust_remote_code=True` where the package is not installed."""

MODEL_TYPE_PREFIX = "vitcompress_"

FORMAT_VERSION = 2
"""Of `compression` in `config.json`; higher ones are refused."""
SHAPE_KEYS = ("layers", "tokens", "target")
"""What `compression` holds in memory."""
PLAIN_KEYS = {*SHAPE_KEYS, "version", "guarded"}
"""What it holds on disk."""

# A dense class that is pointed at a factored checkpoint would find none of the factored weights and start from
# random ones with nothing but a warning. On disk the config and the configs in it therefore carry this text in a field
# that is declared as a number: the dense config class refuses it, and its error shows the text. The real values stay in
# `compression`; `FactoredConfigMixin.from_dict` puts them back.
GUARD_FIELDS = ("initializer_range", "initializer_factor", "layer_norm_eps")
"""Preferred for it; a config that has none of them carries it in the first number that it has."""

GUARD_TEXT = (
    "This checkpoint has factored layers, which a dense model class cannot hold. Run `pip install hf-vitcompress`, "
    "then `import hf_vitcompress` and load it with an Auto class, or pass trust_remote_code=True to an Auto class."
)


class FactoredConfigMixin:
    """Adds `compression` to a config: `{"layers": {module name: shape}, "tokens": {module name: number}}`.

    Shapes are plain data:

    * of a linear layer: `{"rank": r}`, a product of two layers; `{"in_features": i}` and `{"out_features": o}`, what
      is left of a layer whose inputs or outputs were pruned; or both;
    * of all layers of a feed-forward or of attention: `{"out_features": 0}` of those that make features and
      `{"in_features": 0}` of the one that reads them, of which a bias is left; the module is removed;
    * of an attention module: `{"qk_rank": r}`, one `qk_down` for its queries and keys.

    `tokens`, where there are any, holds how many tokens a block merges at its end (see `tokens_factored`).

    Names are in-memory module names, with or without the prefix of the base model (`vit.layers.0.mlp.fc1` and
    `layers.0.mlp.fc1` name the same layer of a headed and of a headless model).
    """

    compression: dict[str, Any] | None = None

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers, with the guarded values back in their places.

        Raises:
            ValueError: a newer version of the package wrote the checkpoint.
        """
        return super().from_dict(unguarded(config_dict), **kwargs)  # type: ignore[misc]

    def to_json_file(self, json_file_path: str | os.PathLike, use_diff: bool = True) -> None:
        """Write `config.json`, with the guard against dense classes and the way to the code beside it."""
        content = json.loads(self.to_json_string(use_diff=use_diff))  # type: ignore[attr-defined]
        guarded = {}
        for name, (config, field) in guards_of(cast(PreTrainedConfig, self)).items():
            place = content.get(name) if name else content
            if isinstance(place, dict):
                guarded[f"{name}.{field}".removeprefix(".")] = getattr(config, field)
                place[field] = GUARD_TEXT
        for field, text in _stand_ins(self.model_type).items():  # type: ignore[attr-defined]
            guarded[field], content[field] = content.get(field), text
        compression = content.get("compression") or {}
        content["compression"] = {**compression, "version": _format_of(compression), "guarded": guarded}
        content["auto_map"] = self._auto_map()
        with open(json_file_path, "w", encoding="utf-8") as file:
            file.write(json.dumps(content, indent=2, sort_keys=True) + "\n")

    def _auto_map(self) -> dict[str, str]:
        own = own_type(self.model_type)  # type: ignore[attr-defined]
        files = own.files if own else (MODELING_FILE,)
        module = files[-1].removesuffix(".py")
        auto_map = {"AutoConfig": f"{files[0].removesuffix('.py')}.{type(self).__name__}"}
        for auto_class, dense_names in head_names_of(self.model_type).items():  # type: ignore[attr-defined]
            names = [f"Factored{dense}" for dense in dense_names]
            chosen = [name for name in names if name in (self.architectures or [])]  # type: ignore[attr-defined]
            auto_map[auto_class] = f"{module}.{(chosen or names)[0]}"
        return auto_map


config_mixin = FactoredConfigMixin
"""What factored configs are made with; the package sets a subclass that registers the models of a type in time."""

package_mixin: Callable[[], type] | None = None
"""Gives the class that factored models are made with where the package is installed; it sets this."""


def unguarded(content: dict[str, Any]) -> dict[str, Any]:
    """The content of a `config.json` with the values that `GUARD_TEXT` stands in for; a copy where that changes it.

    Raises:
        ValueError: a newer version of the package wrote it.
    """
    if not isinstance(compression := content.get("compression"), dict):
        return content
    version, guarded = compression.get("version", FORMAT_VERSION), compression.get("guarded", {})
    target = compression.get("target")
    if type(version) is not int or not isinstance(guarded, dict) or not isinstance(target, str | None):
        raise ValueError(
            f"compression in config.json was edited: its version is {version!r}, its target {target!r}, and guarded "
            f"a {type(guarded).__name__}. Restore the file."
        )
    if version > FORMAT_VERSION:
        raise ValueError(
            f"A newer hf_vitcompress wrote this checkpoint (its format is {version}, this version reads up to "
            f"{FORMAT_VERSION}). Run `pip install --upgrade hf-vitcompress`."
        )
    kept = {name: compression[name] for name in SHAPE_KEYS if name in compression}
    # Before there was a version, the guarded values stood beside `layers`.
    values = guarded or {path: compression[path] for path in compression.keys() - PLAIN_KEYS}
    restored: dict[str, Any] = {**content, "compression": kept}
    for path, value in values.items():
        *inner, field = path.split(".")
        place = restored
        for key in inner:
            place[key] = dict(place.get(key) or {})
            place = place[key]
        if place.get(field) in (GUARD_TEXT, _stand_ins(str(content.get("model_type"))).get(path)):
            place[field] = value
    return restored


def _format_of(compression: dict[str, Any]) -> int:
    """The lowest version that reads it rightly: the first knew no tokens, and would compute them all."""
    return 2 if compression.get("tokens") else 1


def _stand_ins(model_type: str) -> dict[str, str]:
    own = own_type(model_type)
    return own.stand_ins if own else {}


def inner_configs(config: PreTrainedConfig) -> dict[str, PreTrainedConfig]:
    """Those of the models inside a larger one, by the attribute that holds them."""
    return {name: value for name, value in vars(config).items() if isinstance(value, PreTrainedConfig)}


def guards_of(config: PreTrainedConfig) -> dict[str, tuple[PreTrainedConfig, str]]:
    """The configs that refuse `GUARD_TEXT`, and the field in which they do, by attribute: "" of the config itself.

    Empty where neither it nor a config in it declares a number; nothing then keeps a dense class from the checkpoint.
    """
    inner = inner_configs(config)
    inner.pop("text_config", None)  # the text model of a larger one is as it was
    fields = {name: (own, _guard_field(own)) for name, own in {"": config, **inner}.items()}
    return {name: (own, field) for name, (own, field) in fields.items() if field is not None}


_NUMBERS = {int, float, type(None)}


def _guard_field(config: PreTrainedConfig) -> str | None:
    """Name of the number in whose place `GUARD_TEXT` stands on disk; `None` of a config that declares none."""
    fields = {field.name: field.type for field in dataclasses.fields(config)}
    numbers = [name for name, declared in fields.items() if set(get_args(declared) or [declared]) <= _NUMBERS]
    return next((name for name in (*GUARD_FIELDS, *numbers) if name in numbers), None)


@dataclasses.dataclass(frozen=True)
class OwnType:
    """A model type whose dense classes are this package's.

    Attributes:
        config: its config class.
        heads: names of the classes that each Auto class builds; where there are several, the first is the default.
        files: beside `TRAVELLING_FILES`, what a checkpoint needs to be loaded without the package: the file of the
            config first, and that of the models last.
        stand_ins: what stands on disk in place of a field of the config, for another library that reads it.
    """

    config: type[PreTrainedConfig]
    heads: dict[str, tuple[str, ...]]
    files: tuple[str, ...]
    stand_ins: dict[str, str] = dataclasses.field(default_factory=dict)


OWN_TYPES: dict[str, OwnType] = {}
"""By model type; the package adds them in time, so that the models are imported when they are needed."""

OWN_MODELS: dict[str, Callable[[], ModuleType]] = {}
"""By model type, what gives the module of its dense classes. That module sets it, and the package, which imports it."""

FACTORED: dict[type, type] = {}
"""The factored class of each dense one."""

PUBLIC: dict[str, type] = {}
"""Dense class by the name that its factored one has in this module: `auto_map` and pickle know no other."""

_MAKING = threading.RLock()
"""Threads that ask for the same class at once get the same one."""


def made_class(dense: type, mixin: type, name: str, module: str, body: dict[str, Any]) -> type:
    """Make the factored class of `dense` and register it, so that `module` finds it by `name`.

    Raises:
        ValueError: the factored class of another dense one has that name.
    """
    for other in (PUBLIC.get(name), getattr(transformers, name.removeprefix("Factored"), None)):
        # A class that was defined once more, as in a notebook, takes the place of the former.
        if isinstance(other, type) and path_of(other) != path_of(dense):
            raise ValueError(
                f"{path_of(dense)} and {path_of(other)} would have factored classes of one name, {name}, by which "
                f"checkpoints find them. Rename the class {dense.__name__}."
            )
    with _MAKING:
        if dense not in FACTORED:
            PUBLIC[name] = dense
            FACTORED[dense] = type(name, (mixin, dense), {"__module__": module, **body})
    return FACTORED[dense]


def path_of(found: type) -> str:
    """Dotted path of a class."""
    return f"{found.__module__}.{found.__qualname__}"


def factored_name(path: str) -> str:
    """What the factored form of the module class at that path is called, everywhere the same.

    The class's own name is enough for those of transformers only; many others have the names of these.
    """
    module, _, name = path.rpartition(".")
    return f"Factored{name}" if module.startswith("transformers.") else f"Factored{name}_{module.replace('.', '_')}"


def dense_config_class(model_type: str) -> type[PreTrainedConfig]:
    """The config class of a model type, with `MODEL_TYPE_PREFIX` or without.

    Raises:
        KeyError: transformers does not know the type.
    """
    name = model_type.removeprefix(MODEL_TYPE_PREFIX)
    return OWN_TYPES[name].config if name in OWN_TYPES else CONFIG_MAPPING[name]


def travelling_files(model_type: str) -> tuple[str, ...]:
    """What loads a checkpoint of that type, dense or factored, where the package is not installed."""
    own = own_type(model_type)
    return (*TRAVELLING_FILES, *(own.files if own else ()))


def own_type(model_type: str) -> OwnType | None:
    """The entry of a model type, dense or factored, in `OWN_TYPES`; `None` for those of transformers."""
    return OWN_TYPES.get(model_type.removeprefix(MODEL_TYPE_PREFIX))


def head_names_of(model_type: str) -> dict[str, tuple[str, ...]]:
    """Names of the classes of `heads_of`; those of this package's own types are not imported for them."""
    if (ours := own_type(model_type)) is not None:
        return ours.heads
    return {auto: tuple(dense.__name__ for dense in classes) for auto, classes in heads_of(model_type).items()}


def heads_of(model_type: str) -> dict[str, "tuple[type[PreTrainedModel], ...]"]:
    """Dense classes that each Auto class knows for a model type; where there are several, the first is the default."""
    config_class = dense_config_class(model_type)
    if (ours := own_type(model_type)) is not None:
        module = OWN_MODELS[model_type.removeprefix(MODEL_TYPE_PREFIX)]()
        return {auto: tuple(getattr(module, name) for name in names) for auto, names in ours.heads.items()}
    found = {}
    for name, auto_class in vars(modeling_auto).items():
        if name.startswith("Auto") and (mapping := getattr(auto_class, "_model_mapping", None)) is not None:
            own = config_class in mapping
            classes = mapping[config_class] if own else _of_shared_config(name, config_class)  # type: ignore[arg-type]
            if classes and not name.endswith("Vision2Seq"):  # an old name of another one
                found[name] = tuple(classes) if isinstance(classes, list | tuple) else (classes,)
    return found


@functools.cache
def _of_shared_config(auto_name: str, config_class: type[PreTrainedConfig]) -> Any:
    """For a config class that several model types of transformers have; it goes through all names for the answer."""
    return getattr(modeling_auto, auto_name)._model_mapping.get(config_class, ())


def factored_config_class(model_type: str) -> type[PreTrainedConfig]:
    """The config class of the factored form of `model_type`, e.g. `FactoredViTConfig` for `"vit"`.

    Raises:
        ValueError: another config class has its name, such as one from outside and one of transformers.
    """
    dense = dense_config_class(model_type)
    if dense not in FACTORED:
        body = {
            "__doc__": f"`{dense.__name__}` with `compression`, the shapes of the factored layers.",
            "__annotations__": {"compression": dict[str, Any] | None},
            "compression": None,
            "model_type": MODEL_TYPE_PREFIX + model_type,
        }
        return made_class(dense, config_mixin, f"Factored{dense.__name__}", __name__, body)
    return FACTORED[dense]


def __getattr__(name: str) -> type:
    """The factored config classes by name, for `trust_remote_code`, for imports and for pickle."""
    if name in PUBLIC:
        return FACTORED[PUBLIC[name]]
    dense = getattr(transformers, name.removeprefix("Factored"), None) if name.startswith("Factored") else None
    if isinstance(dense, type) and issubclass(dense, PreTrainedConfig):
        return factored_config_class(dense.model_type)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
