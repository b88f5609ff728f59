"""What differs by architecture: which modules of a model are compressed, and which role each of them plays.

Nothing else in the package names an architecture, except the table of classes in `modeling_factored`.
"""

import inspect
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import nn
from transformers import PreTrainedModel

from .config import CompressionConfig
from .errors import ConfigError, UnsupportedModelError
from .modeling_factored import FACTORED_ARCHITECTURES, MODEL_TYPE_PREFIX

Role = Literal["q", "k", "v", "o", "fc1", "fc2"]


@dataclass(frozen=True)
class Family:
    """Where a transformer keeps its linear layers.

    Attributes:
        block: regular expression of a block's module name; its one group is the block's index.
        layers: module name inside the block, for each role.
    """

    block: str
    layers: dict[Role, str]


_VIT = Family(
    block=r"(?:\w+\.)?layers\.(\d+)",
    layers={
        "q": "attention.q_proj",
        "k": "attention.k_proj",
        "v": "attention.v_proj",
        "o": "attention.o_proj",
        "fc1": "mlp.fc1",
        "fc2": "mlp.fc2",
    },
)

FAMILIES: dict[str, Family] = {"vit": _VIT, "deit": _VIT}

# Roles that read the same tensor, and so share one input moment.
SHARED_INPUT: dict[Role, str] = {"q": "qkv", "k": "qkv", "v": "qkv"}


@dataclass(frozen=True)
class LayerInfo:
    """One linear layer that can be compressed.

    Attributes:
        name: in-memory module name.
        role: what the layer does in its block.
        block: index of its block.
        input_name: the same for layers of a block that read the same tensor.
        in_features, out_features: its shape; `weight` is (out_features, in_features).
    """

    name: str
    role: Role
    block: int
    input_name: str
    in_features: int
    out_features: int

    @property
    def parameters(self) -> int:
        """Weight entries when dense."""
        return self.in_features * self.out_features

    @property
    def parameters_per_rank(self) -> int:
        """Weight entries that each further rank costs."""
        return self.in_features + self.out_features

    @property
    def break_even_rank(self) -> int:
        """The smallest rank at which the factors are no smaller than the dense weight."""
        return -(-self.parameters // self.parameters_per_rank)

    @property
    def full_rank(self) -> int:
        return min(self.in_features, self.out_features)

    @property
    def block_name(self) -> str:
        """Module name of its block."""
        return self.input_name.rpartition(".")[0]

    @property
    def parent(self) -> str:
        """Name of the module it is a child of, for instance the attention."""
        return self.name.rpartition(".")[0]


def feature_pairs(layers: Iterable[LayerInfo], config: CompressionConfig) -> list[tuple[LayerInfo, LayerInfo]]:
    """The (fc1, fc2) pairs whose hidden features `config` may prune."""
    if config.mlp not in ("auto", "prune"):
        return []
    return [(roles["fc1"], roles["fc2"]) for roles in by_block(layers).values() if {"fc1", "fc2"} <= set(roles)]


def by_block(layers: Iterable[LayerInfo]) -> dict[int, dict[Role, LayerInfo]]:
    """Block → role → layer."""
    blocks: dict[int, dict[Role, LayerInfo]] = {}
    for layer in layers:
        blocks.setdefault(layer.block, {})[layer.role] = layer
    return blocks


def linear_layer(model: PreTrainedModel, name: str) -> nn.Linear:
    """The linear layer of that module name."""
    module = model.get_submodule(name)
    if not isinstance(module, nn.Linear):
        raise ConfigError(f"{name!r} is a {type(module).__name__}, not a linear layer.")
    return module


def head_dim(model: PreTrainedModel, attention: str) -> int:
    """Query, key and value features of one head of the attention module of that name."""
    return int(model.get_submodule(attention).head_dim)  # type: ignore[arg-type]


def has_standard_attention(model: PreTrainedModel, attention: str) -> bool:
    """Whether in that module queries and keys may share a `down`, and values have a head dimension of their own."""
    known = FACTORED_ARCHITECTURES[model.config.model_type].attention
    return type(model.get_submodule(attention)).__name__ == known


def constructor_options(model: PreTrainedModel) -> dict[str, Any]:
    """Arguments of the constructor that the config does not know."""
    # A factored class passes on whatever its dense one accepts.
    constructors = [vars(base)["__init__"] for base in type(model).__mro__ if "__init__" in vars(base)]
    accepted = {name for constructor in constructors for name in inspect.signature(constructor).parameters}
    options: dict[str, Any] = {}
    if "add_pooling_layer" in accepted:
        options["add_pooling_layer"] = getattr(model, "pooler", None) is not None
    if "use_mask_token" in accepted:
        options["use_mask_token"] = model.get_submodule("embeddings").mask_token is not None
    return options


def supported_model_types() -> list[str]:
    return sorted(set(FAMILIES) & set(FACTORED_ARCHITECTURES))


def family_of(model: PreTrainedModel) -> Family:
    """The table row of a model's architecture.

    Raises:
        UnsupportedModelError: there is none, or the model is compressed already.
    """
    model_type = model.config.model_type
    class_name = type(model).__name__
    if model_type.startswith(MODEL_TYPE_PREFIX):
        raise UnsupportedModelError(
            f"{class_name} is compressed already (model type {model_type!r}). Compress the dense model it came from, "
            "at the budget you want now."
        )
    heads = FACTORED_ARCHITECTURES[model_type].heads if model_type in FACTORED_ARCHITECTURES else {}
    classes = sorted({name for names in heads.values() for name in names})
    if model_type not in FAMILIES or class_name not in classes:
        known = ", ".join(supported_model_types())
        of_type = f" For {model_type!r} these classes are: {', '.join(classes)}." if classes else ""
        raise UnsupportedModelError(
            f"{class_name} (model type {model_type!r}) is not supported. Supported model types: {known}.{of_type}"
        )
    return FAMILIES[model_type]


def find_layers(
    model: PreTrainedModel,
    target_modules: Iterable[str] | None = None,
    skip_modules: Iterable[str] = (),
) -> list[LayerInfo]:
    """The layers that may be compressed, in the model's order.

    Args:
        target_modules: patterns of module names to consider (`*` and `?` as in file names, matched against the whole
            name or any dotted tail of it, so `fc1` and `layers.0.*` both work). `None`: every layer of the family.
        skip_modules: patterns of module names to leave dense.

    Raises:
        ConfigError: a pattern matches no layer, or nothing is left.
        UnsupportedModelError: see `family_of`.
    """
    family = family_of(model)
    roles = {path: role for role, path in family.layers.items()}
    expression = re.compile(rf"({family.block})\.({'|'.join(re.escape(path) for path in roles)})$")
    layers = []
    for name, module in model.named_modules():
        match = expression.fullmatch(name)
        if match is None or not isinstance(module, nn.Linear):
            continue
        block_name, block, path = match.groups()
        role = roles[path]
        layers.append(
            LayerInfo(
                name=name,
                role=role,
                block=int(block),
                input_name=f"{block_name}.{SHARED_INPUT.get(role, role)}",
                in_features=module.in_features,
                out_features=module.out_features,
            )
        )
    chosen = layers if target_modules is None else _matching(layers, target_modules, "target_modules")
    skipped = _matching(layers, skip_modules, "skip_modules")
    chosen = [layer for layer in chosen if layer not in skipped]
    if not chosen:
        raise ConfigError(
            f"target_modules and skip_modules together leave none of the {len(layers)} layers of "
            f"{type(model).__name__} to compress. Names look like {layers[0].name!r}."
        )
    return chosen


def block_names(model: PreTrainedModel) -> list[str]:
    """Module names of a dense model's blocks, in the model's order; its compressed form has the same."""
    expression = re.compile(family_of(model).block)
    return [name for name, _ in model.named_modules() if expression.fullmatch(name)]


def _matching(layers: list[LayerInfo], patterns: Iterable[str], setting: str) -> list[LayerInfo]:
    found = set()
    for pattern in patterns:
        matches = {
            layer.name
            for layer in layers
            if fnmatchcase(layer.name, pattern) or fnmatchcase(layer.name, f"*.{pattern}")
        }
        if not matches:
            raise ConfigError(
                f"{setting}: {pattern!r} matches no layer. Names look like {layers[0].name!r}, {layers[-1].name!r}."
            )
        found |= matches
    return [layer for layer in layers if layer.name in found]
