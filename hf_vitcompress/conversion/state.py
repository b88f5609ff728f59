"""State dicts under the names that another library gives to the same tensors."""

import re
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ..errors import UnsupportedModelError

State = dict[str, Tensor]

Names = Mapping[str, str | tuple[str, ...]]
"""Of modules or parameters: timm's name, and that of transformers; several where one layer of timm is several there.

`{i}` and `{j}` stand for the same number on both sides, `{body}` for what comes before a name in a model with a head.
"""


def to_transformers(state: State, names: Names, body: str) -> State:
    """The tensors of a timm model under the names of transformers.

    Args:
        body: what `{body}` stands for, such as `vit.`.

    Raises:
        UnsupportedModelError: a tensor has no counterpart.
    """
    patterns = [(_pattern(name), targets) for name, targets in names.items()]
    found: State = {}
    for key, tensor in state.items():
        match, targets = _first_match(key, patterns)
        parts = tensor.chunk(len(targets))
        for target, part in zip(targets, parts, strict=True):
            found[target.format(body=body, **_numbers(match)) + match["leaf"]] = part.clone()
    return found


def to_timm(state: State, names: Names, body: str) -> State:
    """The tensors of a model of transformers under timm's names.

    Args:
        body: as of `to_transformers`.

    Raises:
        UnsupportedModelError: a tensor has no counterpart.
    """
    patterns = [
        (_pattern(target.replace("{body}", body)), (f"{index}:{name}",))
        for name, targets in names.items()
        for index, target in enumerate(_several(targets))
    ]
    parts: dict[str, dict[int, Tensor]] = {}
    for key, tensor in state.items():
        match, (place,) = _first_match(key, patterns)
        index, _, name = place.partition(":")
        parts.setdefault(name.format(**_numbers(match)) + match["leaf"], {})[int(index)] = tensor
    return {name: torch.cat([part for _, part in sorted(found.items())]) for name, found in parts.items()}


def _first_match(
    key: str, patterns: Sequence[tuple[re.Pattern[str], str | tuple[str, ...]]]
) -> tuple[re.Match[str], tuple[str, ...]]:
    for pattern, targets in patterns:
        if match := pattern.fullmatch(key):
            return match, _several(targets)
    raise UnsupportedModelError(
        f"The weight {key} has no counterpart in the other library. Take off what was added to the model, such as "
        "adapters or parametrizations."
    )


def _several(targets: str | tuple[str, ...]) -> tuple[str, ...]:
    return (targets,) if isinstance(targets, str) else targets


def _pattern(name: str) -> re.Pattern[str]:
    numbered = re.sub(r"\\\{([ij])\\\}", r"(?P<\1>\\d+)", re.escape(name))
    return re.compile(rf"{numbered}(?P<leaf>(?:\.(?:weight|bias))?)")


def _numbers(match: re.Match[str]) -> dict[str, str]:
    return {name: value for name, value in match.groupdict().items() if name != "leaf"}


# ---- what has to be done to the tensors of timm before that


def fold_layer_scales(state: State) -> None:
    """Multiply layer scales into the layers before them: the same function without the scales."""
    for name in [name for name in state if name.endswith((".ls1.gamma", ".ls2.gamma"))]:
        block, _, kind = name.removesuffix(".gamma").rpartition(".")
        layer = f"{block}.{'attn.proj' if kind == 'ls1' else 'mlp.fc2'}"
        scale = state.pop(name)
        state[f"{layer}.weight"] = state[f"{layer}.weight"] * scale[:, None]
        if f"{layer}.bias" in state:
            state[f"{layer}.bias"] = state[f"{layer}.bias"] * scale


def place_prefix(state: State, prefix: int, registers: int) -> None:
    """Give `pos_embed` a row for the class token, and none for registers, which take up theirs.

    Args:
        prefix: rows of `pos_embed` that are not of patches.
        registers: register tokens, after the class token.
    """
    positions = state["pos_embed"]
    if prefix == 0:
        state["pos_embed"] = torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
    elif registers:
        state["reg_token"] = state["reg_token"] + positions[:, 1:prefix]
        state["pos_embed"] = torch.cat([positions[:, :1], positions[:, prefix:]], dim=1)


def drop_key_biases(state: State) -> None:
    """Split biases of queries, keys and values and leave out those of the keys.

    They add the same number to all scores of a query, which the softmax takes away again.
    """
    for name in [name for name in state if name.endswith(".attn.qkv.bias")]:
        query, _, value = state.pop(name).chunk(3)
        layer = name.removesuffix("qkv.bias")
        state[f"{layer}q_bias"], state[f"{layer}v_bias"] = query, value


def blocks_of(state: State) -> Iterator[str]:
    """Names of the blocks, such as `blocks.0`."""
    return iter(dict.fromkeys(match[0] for name in state if (match := re.match(r"blocks\.\d+", name))))
