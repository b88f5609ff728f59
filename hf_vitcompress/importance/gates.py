"""Learned importance scores of neurons and heads: gates on a dense model's features, and what becomes of them.

A score multiplies each feature that flows into fc2 (one for each neuron), and each head's part of what flows into o.
Training with an L1 penalty pushes to 0 the scores of what the loss does not need (Zhu et al., arXiv 2104.08500, eq. 2;
Kumar, arXiv 2203.13444, for feed-forward layers). Scores begin at 1, so that a model with new gates computes what it
did without.

A score is a parameter `importance` of the layer that reads the features: optimizers, checkpoints and data parallelism
see it as they see a weight. It is no norm and no bias, so a Trainer would let it decay; but the L1 penalty is to be the
only pull, so whoever makes the optimizer puts scores into a group without weight decay.
"""

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..architectures.families import Role
from ..architectures.layers import by_block, feature_pairs, find_layers, head_dim, prunable_heads
from ..config import CompressionConfig
from ..errors import ConfigError
from ..model.assembly import empty_model, is_factored
from ..model.shapes import take_current_names

GATE = "importance"
"""Name of the parameter."""
GATE_LEARNING_RATE = 0.05
"""Step of Adam for scores, which begin at 1; it follows the schedule of the training, or a cosine to 0."""

_PRODUCERS: dict[Role, tuple[Role, ...]] = {"fc2": ("gate", "fc1"), "o": ("q", "k", "v")}
"""Layers whose rows go with the columns of the one that reads them."""


def gated_layers(model: PreTrainedModel, config: CompressionConfig) -> dict[str, int]:
    """Layers that read features which `config` may prune by score, and the number of features (neurons or heads).

    Raises:
        ConfigError: see `layers.prunable_heads`.
    """
    layers = find_layers(model, config.target_modules, config.skip_modules)
    counts = {pair[-1].name: pair[-1].in_features for pair in feature_pairs(layers, config)}
    for members in by_block(layers).values():
        if config.attention == "prune" and (heads := prunable_heads(model, members)):
            counts[heads[-1].name] = heads[-1].in_features // head_dim(model, heads[0].parent)
    return {layer.name: counts[layer.name] for layer in layers if layer.name in counts}


def attach_gates(model: PreTrainedModel, config: CompressionConfig) -> dict[str, nn.Parameter]:
    """Give every feature that `config` may prune a score of 1, or leave it the one it has.

    Returns:
        the scores, (neurons,) or (heads,) each, by the name of the layer that reads the features; float32, or as fine
        as the layer's weight.

    Raises:
        ConfigError: `config` prunes neither neurons nor heads, or heads that cannot go.
    """
    counts = gated_layers(model, config)
    if not counts:
        raise ConfigError(
            f"attention={config.attention!r} and mlp={config.mlp!r} prune neither heads nor neurons, so that there is "
            'nothing to learn scores of: use mlp="prune", mlp="auto" or attention="prune".'
        )
    for name, count in counts.items():
        _attach(model.get_submodule(name), count)
    return gates_of(model)


def gates_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """The scores a model has, by layer."""
    return {name: gate for name, module in model.named_modules() if (gate := _gate_of(module)) is not None}


def scores(model: nn.Module) -> dict[str, Tensor]:
    """Copies of them: what `ViTCompressor(config, importance=…)` takes with `criterion="gates"`."""
    return {name: gate.detach().clone() for name, gate in gates_of(model).items()}


def detach_gates(model: nn.Module) -> None:
    """Remove all gates from the model."""
    for module in model.modules():
        _detach(module)


@torch.no_grad()
def fold_gates(model: nn.Module) -> dict[str, Tensor]:
    """Multiply each column of fc2 (o) by the score of the feature it reads, and remove the gates.

    The model then computes what it computed with them, to rounding.

    Returns:
        the scores.
    """
    learned = scores(model)
    for name, own in learned.items():
        layer: Any = model.get_submodule(name)
        layer.weight.copy_(layer.weight.double() * _by_feature(own.double(), layer.in_features))
    detach_gates(model)
    return learned


@contextlib.contextmanager
def gates_off(model: nn.Module) -> Iterator[None]:
    """Within the block, the model computes what it does without its gates."""
    modules: list[Any] = [module for module in model.modules() if _gate_of(module) is not None]
    try:
        for module in modules:
            module.ungated = True
        yield
    finally:
        for module in modules:
            module.ungated = False


@torch.no_grad()
def add_penalty_gradient(model: PreTrainedModel, l1: float) -> None:
    """Add the subgradient of `l1 ·` `penalty(model)` to the gradients of the scores; it is 0 at 0."""
    costs = _costs(model)
    for name, gate in gates_of(model).items():
        pull = l1 * costs[name] * gate.sign()
        gate.grad = pull if gate.grad is None else gate.grad + pull


def penalty(model: PreTrainedModel) -> float:
    """`Σ cost · |score| / Σ cost`, 1 for new gates: an L1 norm whose weight suits models of every size.

    The cost of a neuron or a head is how many rows and columns of weights go with it: of fc1 and fc2, and of the gate
    where there is one; of q, k, v and o.
    """
    costs = _costs(model)
    return sum(costs[name] * float(gate.detach().abs().double().sum()) for name, gate in gates_of(model).items())


def _costs(model: PreTrainedModel) -> dict[str, float]:
    """By layer, the cost of each of its scores as a share of that of all."""
    gates = gates_of(model)
    if not gates:
        return {}
    costs = {}
    for roles in by_block(find_layers(model)).values():
        for consumer, producers in _PRODUCERS.items():
            if consumer in roles and (name := roles[consumer].name) in gates:
                features = roles[consumer].in_features // len(gates[name])
                costs[name] = features * (1 + sum(role in roles for role in producers))
    total = sum(costs[name] * len(gate) for name, gate in gates.items())
    return {name: cost / total for name, cost in costs.items()}


# ---- one layer


def _gate_of(module: nn.Module) -> nn.Parameter | None:
    gate = getattr(module, GATE, None)
    return gate if isinstance(gate, nn.Parameter) else None


def _attach(module: Any, count: int) -> None:
    if _gate_of(module) is None:
        weight = module.weight
        # Steps of a thousandth would be lost in bfloat16.
        dtype = torch.promote_types(weight.dtype, torch.float32)
        module.register_parameter(GATE, nn.Parameter(torch.ones(count, dtype=dtype, device=weight.device)))
        module.ungated = False
        module.register_forward_pre_hook(_multiply)


def _detach(module: Any) -> None:
    if _gate_of(module) is not None:
        delattr(module, GATE)
        delattr(module, "ungated")
        # By identity, because a copied model has the hook and not its handle.
        for key in [key for key, hook in module._forward_pre_hooks.items() if hook is _multiply]:
            del module._forward_pre_hooks[key]


def _multiply(module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    if module.ungated:
        return None
    features, *rest = inputs
    return (features * _by_feature(module.importance, features.shape[-1]).to(features.dtype), *rest)


def _by_feature(gate: Tensor, features: int) -> Tensor:
    """(neurons,) or (heads,) → (features,), each head's score once for each of its dimensions."""
    return gate.repeat_interleave(features // len(gate))


# ---- loading

_following: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()


def follow_gates(model: PreTrainedModel) -> None:
    """From now on, `model.load_state_dict` first takes over the gates that the state dict has, or has not.

    To be called after `restructure.follow_layout`, whose hook must be the first. Layers that a state dict does not
    mention stay as they are. Calling this again changes nothing.
    """
    if model not in _following:
        _following.add(model)
        model.register_load_state_dict_pre_hook(_take_gates)


def _take_gates(model: PreTrainedModel, state: dict[str, Any], prefix: str, *_: Any) -> None:
    if any(name.endswith(f".{GATE}") for name in state):
        # `save_pretrained` writes a dense model's scores, too, under the names of older architectures.
        take_current_names(state, prefix, empty_model(model, {}) if is_factored(model) else model, GATE)
    for name, module in model.named_modules():
        own = f"{prefix}{name}"
        if (saved := state.get(f"{own}.{GATE}")) is not None:
            _attach(module, len(saved))
        elif f"{own}.weight" in state:
            _detach(module)
