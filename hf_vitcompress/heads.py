"""Whole attention heads, pruned; and the scores by which heads and neurons may be chosen."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .config import CompressionConfig
from .errors import ConfigError
from .factorization import is_centered
from .families import Role
from .features import read_by
from .layers import LayerInfo, head_dim, may_prune_heads
from .parts import Choice, Part, Shapes, Target, refuse, shifted
from .pruning import cut_errors, group_order, repaired, repaired_errors


class HeadsPart(Part):
    """Whole heads, pruned: rows of q, k and v with columns of o, and o repaired."""

    role = "heads"

    @property
    def name(self) -> str:
        return self.layers[0].parent

    @property
    def size(self) -> int:
        """Features of one head."""
        return head_dim(self.model, self.name)

    @property
    def heads(self) -> int:
        return self.layers[0].out_features // self.size

    @property
    def dense_parameters(self) -> int:
        biases = [linear.bias for linear in self.linears[:-1]]
        return super().dense_parameters + sum(bias.numel() for bias in biases if bias is not None)

    def _output_problem(self) -> tuple[Tensor, Tensor, Tensor]:
        """o's weight, the metric of its output, the moment of its input."""
        return read_by(self.layers[-1], self.linears[-1], self.statistics, self.config)

    def _features(self, head: int) -> Tensor:
        return torch.arange(head * self.size, (head + 1) * self.size, device=self.model.device)

    def solve(self) -> tuple[list[int], Tensor]:
        """Heads, the one to keep longest first, and errors (heads + 1,)."""
        problem = self._output_problem()
        groups = [self._features(head) for head in range(self.heads)]
        if self.config.selector == "fisher":
            order = group_order(*problem, groups)
        else:
            order = self._scores().argsort(descending=True, stable=True).tolist()
        features = torch.cat([groups[head] for head in order])
        curve = repaired_errors if self.config.repair else cut_errors
        return order, self.energy_scale(curve(*problem, features)[:: self.size])

    def _scores(self) -> Tensor:
        """Importance of each head (heads,)."""
        if self.config.selector == "gates":
            return learned_scores(self.importance, self.layers[-1].name, self.heads)
        norms = [linear.weight.detach().reshape(self.heads, -1).norm(dim=1) for linear in self.linears[:-1]]
        last = self.linears[-1].weight.detach().T.reshape(self.heads, -1).norm(dim=1)
        return torch.stack([*norms, last]).prod(0)

    def choice(self, shapes: Shapes) -> Choice:
        width = shapes.get(self.layers[-1].name, {}).get("in_features", self.layers[-1].in_features)
        kept = width // self.size
        parameters = self.dense_parameters * kept // self.heads
        weights = sum(layer.parameters for layer in self.layers) * kept // self.heads
        macs = weights * self.positions + 2 * self.products * width  # with scores and their use
        return Choice(parameters, macs, float(self.solution[1][kept]), shapes)

    def choices(self, multiple: int) -> list[Choice]:
        return [self.choice(self._shapes(kept)) for kept in range(1, self.heads)] + [self.choice({})]

    def _shapes(self, kept: int) -> Shapes:
        width = kept * self.size
        return {
            **{layer.name: {"out_features": width} for layer in self.layers[:-1]},
            self.layers[-1].name: {"in_features": width},
        }

    def check(self, shapes: Shapes) -> None:
        widths = set()
        for layer in self.layers:
            shape = shapes.get(layer.name, {})
            key = "in_features" if layer is self.layers[-1] else "out_features"
            refuse(layer.name, shape, {key: self.heads * self.size})
            widths.add(shape.get(key, self.heads * self.size))
        if len(widths) > 1 or widths.pop() % self.size:
            raise ConfigError(
                f"The plan prunes {self.name!r} unevenly: out_features of q, k and v and in_features of o must be the "
                f"same multiple of the head dimension {self.size}."
            )

    def tensors(self, shapes: Shapes) -> dict[str, Tensor]:
        if not shapes:
            return {}
        kept = shapes[self.layers[-1].name]["in_features"] // self.size
        features = torch.cat([self._features(head) for head in sorted(self.solution[0][:kept])])
        tensors = {}
        for layer, linear in zip(self.layers[:-1], self.linears[:-1], strict=True):
            tensors[f"{layer.name}.weight"] = linear.weight.detach()[features]
            if linear.bias is not None:
                tensors[f"{layer.name}.bias"] = linear.bias.detach()[features]
        weight, _, input_side = self._output_problem()
        layer, linear = self.layers[-1], self.linears[-1]
        solved = repaired(weight, input_side, features) if self.config.repair else weight[:, features]
        tensors[f"{layer.name}.weight"] = solved
        if linear.bias is not None:
            mean = self.statistics.inputs[layer.input_name].mean
            lost = weight @ mean - solved @ mean[features] if is_centered(linear, self.config) else weight.new_zeros(())
            tensors[f"{layer.name}.bias"] = shifted(linear.bias, lost)
        return tensors

    def targets(self, shapes: Shapes) -> list[Target]:
        if not shapes:
            return []
        targets = []
        tensors = self.tensors(shapes)
        for layer, linear in zip(self.layers, self.linears, strict=True):
            start = tensors[f"{layer.name}.weight"].double()
            last = layer is self.layers[-1]
            weight = linear.weight.detach().double() if last else start
            bias = linear.bias.detach().double() if last and linear.bias is not None else None
            bias = tensors[f"{layer.name}.bias"].double() if not last and linear.bias is not None else bias
            metric = weight.new_ones(len(start))  # no rank, so the metric does not matter
            targets.append(Target((layer,), weight, start, metric, True, bias, is_centered(linear, self.config), None))
        return targets

    def describe(self, shapes: Shapes) -> str:
        if not shapes:
            return "dense"
        return f"{shapes[self.layers[-1].name]['in_features'] // self.size} of {self.heads} heads"


def prunable_heads(model: PreTrainedModel, members: Mapping[Role, LayerInfo]) -> list[LayerInfo]:
    """q, k, v and o of a block, which lose heads together; nothing where none of them is to be compressed.

    Args:
        members: layers of the block, by role.

    Raises:
        ConfigError: some of them are skipped, or this attention cannot lose heads.
    """
    projections: tuple[Role, ...] = ("qkv", "q", "k", "v")
    first = next((members[role] for role in projections if role in members), None)
    if first is None and "o" not in members:
        return []
    why = None
    if "qkv" in members:
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


def learned_scores(importance: Mapping[str, Tensor], name: str, count: int) -> Tensor:
    """Learned scores of what flows into the layer of that name, (count,).

    Raises:
        ConfigError: there are none, or not as many.
    """
    if name not in importance:
        raise ConfigError(
            f'selector="gates" needs learned scores of what flows into {name!r}: let ImportanceGateCallback learn '
            'them, pass importance=…, or use selector="fisher".'
        )
    scores = importance[name].detach().abs().double().cpu()
    if scores.shape != (count,):
        raise ConfigError(f"There are {tuple(scores.shape)} scores of what flows into {name!r}; it has {count}.")
    return scores


def selection_method(config: CompressionConfig, importance: Mapping[str, Tensor] | None) -> str:
    """`config.method`, and where learned scores select also which ones: with others, the same shapes keep others."""
    if config.selector != "gates" or not importance:
        return config.method
    digest = hashlib.sha256()
    for name, scores in sorted(importance.items()):
        digest.update(name.encode() + scores.detach().float().cpu().contiguous().numpy().tobytes())
    return f"{config.method}/{digest.hexdigest()[:12]}"
