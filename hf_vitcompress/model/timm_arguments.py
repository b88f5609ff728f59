"""The arguments of `timm.create_model` that a module was made with: noted by timm (since 1.0.31), or read off it."""

import itertools
import json
from collections.abc import Callable
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel

from ..architectures.constructors import constructor_arguments
from ..errors import UnsupportedModelError
from .as_built import differing, structure
from .making import on_meta

Reader = Callable[[Any], Any]

ARGUMENTS: dict[str, Reader] = {
    "img_size": lambda module: _plain(module.patch_embed.img_size),
    "patch_size": lambda module: _plain(module.patch_embed.patch_size),
    "in_chans": lambda module: next(m.in_channels for m in module.modules() if isinstance(m, nn.Conv2d)),
    "global_pool": lambda module: pooling_of(module),
    "dynamic_img_size": lambda module: module.dynamic_img_size,
    "dynamic_img_pad": lambda module: module.patch_embed.dynamic_img_pad,
    "strict_img_size": lambda module: module.patch_embed.strict_img_size,
    "window_size": lambda module: _plain(_stages(module)[0][0].window_size),
    "depth": lambda module: len(module.blocks),
    "depth_token_only": lambda module: len(module.blocks_token_only),
    "cls_attn_layers": lambda module: len(module.cls_attn_blocks),
    "depths": lambda module: [len(blocks) for blocks in _stages(module)],
    "stages": lambda module: [len(blocks) for blocks in _stages(module)],
    "embed_dim": lambda module: _width(module),
    "embed_dims": lambda module: [blocks[0].norm1.weight.shape[-1] for blocks in _stages(module)],
    "num_heads": lambda module: _heads(module),
    "head_dim": lambda module: _head_dim(module),
    "mlp_ratio": lambda module: _linear(_first(module).mlp).out_features / _width(module),
    "class_token": lambda module: module.has_class_token,
    "reg_tokens": lambda module: module.num_reg_tokens,
    "no_embed_class": lambda module: module.no_embed_class,
    "final_norm": lambda module: not (isinstance(module.norm, nn.Identity) and isinstance(module.fc_norm, nn.Identity)),
    "fc_norm": lambda module: not isinstance(module.fc_norm, nn.Identity),
    "norm_layer": lambda module: type(_first(module).norm1).__name__.lower(),
    "act_layer": lambda module: type(_first(module).mlp.act).__name__.lower(),
    "proj_bias": lambda module: _first(module).attn.proj.bias is not None,
    "pre_norm": lambda module: not isinstance(module.norm_pre, nn.Identity),
    "qkv_bias": lambda module: _has_bias(_first(module).attn),
    "qk_norm": lambda module: not isinstance(_first(module).attn.q_norm, nn.Identity),
    "init_values": lambda module: _scale(_first(module)),
    "drop_path_rate": lambda module: max((m.drop_prob for m in _named(module, "DropPath")), default=0.0),
    "patch_drop_rate": lambda module: max((m.prob for m in _named(module, "PatchDropout")), default=0.0),
    "pos_drop_rate": lambda module: module.pos_drop.p,
    "drop_rate": lambda module: module.head_drop.p,
    "proj_drop_rate": lambda module: _first(module).attn.proj_drop.p,
    "attn_drop_rate": lambda module: _first(module).attn.attn_drop.p,
}
"""How each argument is read off a module; `AttributeError` where it has no such thing.

Others, such as the classes of norms, change what is built, so that `as_built` finds and names the difference.
"""


OF_THE_KIND = ("num_classes", "features_only", "out_indices", "feature_cls")
"""Arguments that say how much of a model is made, and not how."""


def arguments_of(module: nn.Module, architecture: str) -> dict[str, Any] | None:
    """What makes a module of its architecture, as far as it can be known: what timm has noted, else what is read off.

    What timm has noted tells of more than can be read, but not of every change since, and is believed only where it
    builds the module.
    """
    accepted = constructor_arguments(type(_inner(module)))  # type: ignore[arg-type]  # its classes can be hashed
    readings = {name: _reading(module, name) for name in ARGUMENTS if name in accepted}
    found: dict[str, Any] = {}
    for start in (_noted(module), {}):
        found, built = _corrected(module, architecture, start, readings)
        if built is not None and not differing(structure(_inner(module)), structure(_inner(built))):
            break
    return found or None


def _noted(module: nn.Module) -> dict[str, Any]:
    """What timm has noted and a file can hold; nothing by releases that do not."""
    import timm

    noting = getattr(timm.models, "get_model_args", None)
    noted = {} if noting is None else noting(module)
    return {name: _as_in_json(v) for name, v in noted.items() if name not in OF_THE_KIND and _is_storable(v)}


def extracts(module: Any) -> bool:
    """Whether it is a feature extractor of timm that holds a module as it is, but for the layers after the last map."""
    return type(module).__name__ == "FeatureGetterNet"


def _inner(module: Any) -> nn.Module:
    """What makes the features in a feature extractor; any other module itself."""
    return cast(nn.Module, module.model if extracts(module) else module)


def _made_alike(module: Any, architecture: str, arguments: dict[str, Any]) -> nn.Module:
    """What timm makes with these arguments, of the same kind as the module."""
    import timm

    if not extracts(module):
        return timm.create_model(architecture, num_classes=classes_of(module), **arguments)
    return type(module)(timm.create_model(architecture, num_classes=0, **arguments), module.out_indices)


def _corrected(
    module: nn.Module, architecture: str, start: dict[str, Any], readings: dict[str, Any]
) -> tuple[dict[str, Any], nn.Module | None]:
    """The arguments, with those put right of which the module they build has another reading; and what they build.

    Where they build nothing, the last of them that did.
    """
    found, built = dict(start), None
    last: dict[str, Any] = {}
    for _ in range(3):  # one argument may change what another is without it, as a pooling moves the last norm
        try:
            with on_meta():
                built = _made_alike(module, architecture, found)
        except Exception:  # of any constructor, on values that do not go together: `as_built` says what differs
            return last, None
        last = dict(found)
        others = {name: _reading(built, name) for name in readings}
        if others == readings:
            break
        for name, now in readings.items():
            if now != others[name]:
                # Of a gated feed-forward, the ratio that is read is twice the one that is given, or not.
                again = name == "mlp_ratio" and name in found and None not in (now, others[name])
                found[name] = now * found[name] / others[name] if again else now
    return found, built


def classes_of(module: Any) -> int:
    """How many classes the classifier of a module gives, whoever put it there; 0 without one."""
    head = module.get_classifier() if hasattr(module, "get_classifier") else None
    if isinstance(head, tuple | list | nn.ModuleList):
        head = next(iter(head), None)
    if isinstance(head, nn.Identity):
        return 0
    count = getattr(head, "out_features", getattr(head, "out_channels", None))
    return int(getattr(module, "num_classes", 0) if count is None else count)


def pooling_of(module: Any) -> str | None:
    """What timm calls `global_pool`."""
    pooling = getattr(module, "global_pool", None)
    pooling = module.head.global_pool if pooling is None else pooling
    return pooling if isinstance(pooling, str) else pooling.pool_type


def check_pooled(model: PreTrainedModel) -> None:
    """That a classifier of timm gives logits of the image.

    Raises:
        UnsupportedModelError: it gives those of every token.
    """
    module: Any = getattr(model, "timm_model", None)
    if classes_of(module) and _reading(module, "global_pool") == "":
        raise UnsupportedModelError(
            f"This {type(module).__name__} of timm pools nothing (global_pool=''), so that it classifies every token "
            "and not the image. Choose a pooling, or take the classifier off by reset_classifier(0, '')."
        )


def check_storable_arguments(config: Any) -> None:
    """That `model_args` can be written into a `config.json`.

    Raises:
        UnsupportedModelError: naming the argument that cannot.
    """
    for name, value in (config.model_args or {}).items():
        if not _is_storable(value):
            raise UnsupportedModelError(
                f"config.model_args holds {name}={value!r}, which no config.json holds. Give a name or a number that "
                "timm.create_model takes instead (norm_layer='layernorm'), or leave it out."
            )


def creation(config: Any) -> str:
    """The call of timm that a config of a wrapper stands for, as people write it."""
    of_features = {"features_only": True, "out_indices": config.out_indices} if hasattr(config, "out_indices") else None
    settings = {**(config.model_args or {}), **(of_features or {"num_classes": config.num_labels})}
    return f"timm.create_model({config.architecture!r}, {', '.join(f'{k}={v!r}' for k, v in settings.items())})"


def _is_storable(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True


def _as_in_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _reading(module: nn.Module, name: str) -> Any:
    if name == "depth" and extracts(module):  # of which some blocks may be left out
        return len(cast(Any, module).feature_info.info)
    try:
        return ARGUMENTS[name](_inner(module))
    except (AttributeError, StopIteration, IndexError, TypeError):  # the class has no such thing
        return None


def _named(module: nn.Module, name: str) -> list[Any]:
    return [inner for inner in module.modules() if type(inner).__name__ == name]


def _stages(module: Any) -> list[Any]:
    """The blocks of each stage, of a module that has stages."""
    if hasattr(module, "stage_ends"):
        starts = [0, *(end + 1 for end in module.stage_ends)]
        return [module.blocks[start:end] for start, end in itertools.pairwise(starts)]
    return [stage.blocks for stage in (module.layers if hasattr(module, "layers") else module.stages)]


def _first(module: Any) -> Any:
    """Its first block."""
    return module.blocks[0] if hasattr(module, "blocks") else _stages(module)[0][0]


def _width(module: Any) -> Any:
    """Features of a token, at first where they become more from stage to stage."""
    own = getattr(module, "embed_dim", None)
    return _first(module).dim if own is None else own


def _heads(module: Any) -> Any:
    """How many, of each stage where the stages are given by themselves."""
    if hasattr(module, "blocks"):
        attention = _first(module).attn
        return getattr(attention, "num_heads", None) or attention.heads
    return [blocks[0].attn.num_heads for blocks in _stages(module)]


def _head_dim(module: Any) -> int | None:
    """Where it is not what the width gives to each head."""
    attention = _first(module).attn
    width = attention.proj.in_features
    return None if width == attention.proj.out_features else width // attention.num_heads


def _linear(feed_forward: nn.Module) -> nn.Linear:
    return next(inner for inner in feed_forward.modules() if isinstance(inner, nn.Linear))


def _has_bias(attention: Any) -> bool:
    """Of the queries; some have it beside the layer."""
    layer = attention.q_proj if attention.qkv is None else attention.qkv
    return layer.bias is not None or getattr(attention, "q_bias", None) is not None


def _scale(block: Any) -> float | None:
    """Of a block with layer scales, any value that they may begin with."""
    has = getattr(block, "gamma_1", None) is not None or hasattr(getattr(block, "ls1", None), "gamma")
    return 1e-5 if has else None


def _plain(size: Any) -> Any:
    """Lists and numbers, as they are in JSON."""
    return list(size) if isinstance(size, tuple) else size
