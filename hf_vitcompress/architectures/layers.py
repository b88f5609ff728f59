"""The linear layers of a model that may be compressed, found by the table of `families`."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import transformers
from torch import nn
from transformers import PreTrainedModel

from ..config import CompressionConfig
from ..configuration_factored import MODEL_TYPE_PREFIX, guards_of, heads_of
from ..errors import ConfigError, UnsupportedModelError
from ..layers_factored import Attention, attention_names
from ..modeling_factored import factored_model_class
from .families import Family, Role, row_of, supported
from .feed_forwards import may_lose_features
from .nearest import no_attention, no_fewer_heads

WILDCARD = re.compile(r"[*?[]")
"""In a pattern of module names."""

# Roles that read the same tensor, and so share one input moment.
SHARED_INPUT: dict[Role, str] = {"q": "qkv", "k": "qkv", "v": "qkv", "qk": "qkv", "gate": "fc1"}


@dataclass(frozen=True)
class LayerInfo:
    """One linear layer that can be compressed.

    Attributes:
        name: in-memory module name.
        role: what the layer does in its block.
        block: index of its block, in the model's order.
        input_name: name of the tensor that it reads; layers of a block that read the same tensor share it.
        in_features: columns of its weight (out_features, in_features).
        out_features: rows of its weight.
        gated: whether the feed-forward of its block has a gate.
        prunable: whether the hidden features of that feed-forward may be removed.
    """

    name: str
    role: Role
    block: int
    input_name: str
    in_features: int
    out_features: int
    gated: bool = False
    prunable: bool = True

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


def feature_pairs(layers: Iterable[LayerInfo], config: CompressionConfig) -> list[tuple[LayerInfo, ...]]:
    """(fc1, fc2), or (gate, fc1, fc2), wherever `config` may prune the hidden features; the last reads them."""
    if config.mlp not in ("auto", "prune"):
        return []
    groups = []
    for roles in by_block(layers).values():
        gated = any(layer.gated for layer in roles.values())
        wanted: tuple[Role, ...] = ("gate", "fc1", "fc2") if gated else ("fc1", "fc2")
        if set(wanted) <= set(roles) and roles["fc2"].prunable:
            groups.append(tuple(roles[role] for role in wanted))
    return groups


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
    module = model.get_submodule(attention)
    names = attention_names(type(module)) or Attention()
    return int(getattr(module, names.head_dim))


def has_standard_attention(model: PreTrainedModel, attention: str) -> bool:
    """Whether in that module queries and keys may share a `down`."""
    return attention_names(type(model.get_submodule(attention))) is not None


def may_narrow_values(model: PreTrainedModel, value: LayerInfo, output: LayerInfo) -> bool:
    """Whether the values of a head may have fewer features than its queries: the output projection reads as many."""
    if not has_standard_attention(model, value.parent):
        return False
    # In timm's attention what is between them may not allow it; `split_layers` has wrapped the output where it does.
    shapes_itself = getattr(model.get_submodule(value.parent), "shapes_itself", False)
    return not shapes_itself or hasattr(model.get_submodule(output.parent), "heads")


def may_prune_heads(model: PreTrainedModel, attention: str) -> bool:
    """Whether whole heads of that module can be removed: not if each head has its own position bias."""
    module = model.get_submodule(attention)
    own_config = getattr(module, "config", model.config)
    biased = any(
        getattr(own_config, flag, False) for flag in ("use_relative_position_bias", "use_shared_relative_position_bias")
    )
    known = has_standard_attention(model, attention) and not getattr(module, "shapes_itself", False)
    return known and not biased and not hasattr(module, "relative_position_bias")


def attention_keys(model: PreTrainedModel, layer: LayerInfo, positions: int) -> int:
    """How many keys a query sees in the block of a layer: all `positions` of the image, or those of its window."""
    window = getattr(model.get_submodule(layer.block_name), "window_size", None)
    if window is None:
        return positions
    return min(positions, math.prod(window) if isinstance(window, tuple | list) else window**2)


def find_layers(
    model: PreTrainedModel,
    target_modules: Iterable[str] | None = None,
    skip_modules: Iterable[str] = (),
) -> list[LayerInfo]:
    """The layers that may be compressed, in the model's order.

    Args:
        target_modules: patterns of module names to consider (`*` and `?` as in file names, matched against the whole
            name or any dotted tail of it, so `fc1` and `layers.0.*` both work). The name of a module, such as
            `layers.0` or `mlp`, stands for all layers in it. `None`: every layer of the family.
        skip_modules: patterns of module names to leave dense.

    Raises:
        ConfigError: a pattern matches no layer, or nothing is left.
        UnsupportedModelError: the architecture is unknown, or the model is compressed already.
    """
    layers = _all_layers(model)
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
    return list(dict.fromkeys(layer.block_name for layer in _all_layers(model)))


def parts_of(model: PreTrainedModel) -> list[tuple[str, PreTrainedModel, Family]]:
    """The model itself, or else the outermost models in it, that have a table row: module name, model, row."""
    found: list[tuple[str, PreTrainedModel, Family]] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") or not outer for outer, _, _ in found)
        if inside or not isinstance(module, PreTrainedModel):
            continue
        family = row_of(module)
        if family is not None and any(True for _ in _layers_of(module, family)):
            found.append((name, module, family))
    return found


def _all_layers(model: PreTrainedModel) -> list[LayerInfo]:
    check_class(model)
    layers: list[LayerInfo] = []
    blocks: dict[str, int] = {}
    for prefix, part, family in parts_of(model):
        found = list(_layers_of(part, family))
        if family.attends and all(family.layers[path] in ("gate", "fc1", "fc2") for _, path, _ in found):
            continue
        gated = {block_name for block_name, path, _ in found if family.layers[path] == "gate"}
        for block_name, path, module in found:
            name = f"{prefix}.{block_name}".removeprefix(".")
            role, parent = family.layers[path], f"{name}.{path}".rpartition(".")[0]
            layers.append(
                LayerInfo(
                    name=f"{name}.{path}",
                    role=role,
                    block=blocks.setdefault(name, len(blocks)),
                    input_name=f"{name}.{_input_label(path, family)}",
                    in_features=module.in_features,
                    out_features=module.out_features,
                    gated=block_name in gated,
                    prunable=role != "fc2" or may_lose_features(model.get_submodule(parent)),
                )
            )
    if not layers and (row := row_of(model)) is not None and row.attends:
        raise UnsupportedModelError(no_attention(model))
    if not layers:
        raise UnsupportedModelError(
            f"{type(model).__name__} (model type {model.config.model_type!r}) is not supported, and contains nothing "
            f"that is. {supported(model.config)}"
        )
    return layers


def _input_label(path: str, family: Family) -> str:
    """What the input of that layer is called inside its block, as no layer there is: outputs have the layers' names."""
    role = family.layers[path]
    label = role if path in family.apart else SHARED_INPUT.get(role, role)
    while label in family.layers:
        label += "_input"
    return label


def _layers_of(model: PreTrainedModel, family: Family) -> Iterator[tuple[str, str, nn.Linear]]:
    """Block's name, name in the block, layer."""
    paths = "|".join(re.escape(path) for path in family.layers)
    expression = re.compile(rf"({family.block})\.({paths})")
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and (match := expression.fullmatch(name)) is not None:
            yield match[1], match[2], module


def check_class(model: PreTrainedModel) -> None:
    """Check that the model is dense, and that its class can be found when its compressed form is loaded.

    Raises:
        UnsupportedModelError: it is compressed already, or its class cannot be found.
    """
    model_type, class_name = model.config.model_type, type(model).__name__
    if model_type.startswith(MODEL_TYPE_PREFIX):
        raise UnsupportedModelError(
            f"{class_name} is compressed already (model type {model_type!r}). Compress the dense model it came from, "
            "at the budget you want now."
        )
    try:
        heads = heads_of(model_type)
    except KeyError:
        heads = {}
    known = {dense for classes in heads.values() for dense in classes}
    if type(model) not in known and getattr(transformers, class_name, None) is not type(model):
        of_type = (
            f" For {model_type!r} these classes are: {', '.join(sorted(c.__name__ for c in known))}." if known else ""
        )
        raise UnsupportedModelError(
            f"{class_name} (model type {model_type!r}) is not supported: it is not a transformers class and no Auto "
            f"class knows it.{of_type} {supported(model.config)}"
        )
    _check_storable(model)


def _check_storable(model: PreTrainedModel) -> None:
    """Check that there is a factored class, and a number in the config that keeps dense classes from its checkpoint."""
    try:
        factored_model_class(type(model))
    except ValueError as error:
        raise UnsupportedModelError(str(error)) from None
    if not guards_of(model.config):
        name = type(model.config).__name__
        raise UnsupportedModelError(
            f"{name} declares no number, and nor does a config in it, so that nothing would keep a dense class from "
            f"loading a compressed checkpoint as random weights. Declare one in the body of {name}, such as "
            "`initializer_range: float = 0.02`."
        )


def _matching(layers: list[LayerInfo], patterns: Iterable[str], setting: str) -> list[LayerInfo]:
    found = set()
    for pattern in patterns:
        matches = {layer.name for layer in layers if _fits(layer.name, pattern)}
        # What has a wildcard and matches layers means these alone: `*v` is not all of `qkv`.
        if not matches or not WILDCARD.search(pattern):
            matches |= {layer.name for layer in layers if any(_fits(above, pattern) for above in _above(layer.name))}
        if not matches:
            raise ConfigError(
                f"{setting}: {pattern!r} matches no layer. Names look like {layers[0].name!r}, {layers[-1].name!r}."
            )
        found |= matches
    return [layer for layer in layers if layer.name in found]


def _fits(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")


def _above(name: str) -> list[str]:
    """Names of the modules that hold the one of that name."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def prunable_heads(model: PreTrainedModel, members: Mapping[Role, LayerInfo]) -> list[LayerInfo]:
    """q, k, v and o of a block, which lose heads together; empty if none of them is to be compressed.

    Args:
        members: layers of the block, by role.

    Raises:
        ConfigError: some of the four layers are skipped, or this attention cannot lose heads.
    """
    projections: tuple[Role, ...] = ("qkv", "qk", "kv", "q", "k", "v")
    first = next((members[role] for role in projections if role in members), None)
    if first is None and "o" not in members:
        return []
    if (said := no_fewer_heads(model, (first or members["o"]).parent)) is not None:
        raise ConfigError(said)
    why = None
    if set(members) & {"qkv", "qk", "kv"}:
        why = "has one layer for queries, keys and values together"
    elif first is not None and not may_prune_heads(model, first.parent):
        why = "has a position bias for every head, or a forward pass that this package does not know"
    if first is not None and why is not None:
        raise ConfigError(
            f'attention="prune" removes whole heads, and those of {first.parent!r} cannot go: '
            f"{type(model.get_submodule(first.parent)).__name__} {why}. "
            'Use attention="low_rank", attention="joint" or attention="none".'
        )
    roles: tuple[Role, ...] = ("q", "k", "v", "o")
    if not set(roles) <= set(members):
        block = (first or members["o"]).block
        raise ConfigError(f'attention="prune" needs all of q, k, v and o, and block {block} has some of them skipped.')
    return [members[role] for role in roles]
