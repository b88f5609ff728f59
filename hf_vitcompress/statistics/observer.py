"""Hooks on a model's layers that add what flows through them to the statistics."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..architectures.layers import LayerInfo, linear_layer
from ..config import CompressionConfig
from ..runtime.devices import fast_products
from .statistics import Statistics

TOKENS_PER_FEATURE = 50
"""Tokens, as a multiple of the hidden features, that are enough for their covariance."""
GRADIENTS_PER_FEATURE = 10
"""The same for each probe's gradients, whose moment is never inverted."""


@dataclass
class Observer:
    """Hooks that see every layer's input, output and gradients, and add them to the statistics.

    Wide moments, of the hidden features of an MLP, take a random part of the tokens where there are many.

    Attributes:
        images: that all of the calibration will see.
        batch: index of the batch that is being observed.
        mask: (n, tokens) of that batch, 0 where a token is padding; `None` without padding.
        finite: by layer name, whether all outputs were; of the last block, because no moment sees what those become.
    """

    statistics: Statistics
    layers: Sequence[LayerInfo]
    config: CompressionConfig
    images: int
    batch: int = 0
    mask: Tensor | None = None
    finite: dict[str, Tensor] = field(default_factory=dict)
    _seen: dict[str, Tensor] = field(default_factory=dict)
    _importance: dict[str, Tensor] = field(default_factory=dict)
    _buffers: dict[tuple[int, ...], Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._input_of = {layer.name: layer.input_name for layer in self.layers}
        self._wide = {layer.input_name for layer in self.layers if layer.in_features > layer.out_features}
        self._last_block = max(layer.block for layer in self.layers)

    @contextlib.contextmanager
    def attached(self, model: PreTrainedModel) -> Iterator[None]:
        handles = []
        shared = {layer.input_name for layer in self.layers}
        for layer in self.layers:
            first = layer.input_name in shared
            shared.discard(layer.input_name)
            handles.append(linear_layer(model, layer.name).register_forward_hook(self._forward_hook(layer, first)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _forward_hook(self, layer: LayerInfo, first: bool) -> Callable[..., None]:
        statistics = self.statistics
        alone = sum(other.input_name == layer.input_name for other in self.layers) == 1

        def hook(module: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            x, computed_in = inputs[0], output.dtype
            # Kept until the backward passes have told which tokens matter, as the layer itself rounds them.
            if first:
                self._seen[layer.input_name] = x.detach().to(computed_in)
            if layer.name in statistics.outputs:
                self._seen[layer.name] = output.detach()
            if layer.block == self._last_block:
                finite = torch.isfinite(output.detach()).all()
                self.finite[layer.name] = self.finite.get(layer.name, finite) & finite
            if not output.requires_grad:
                return
            total = statistics.gradients[layer.name].second
            at_input = total.dim() == 2 and len(total) < layer.out_features

            def output_hook(grad: Tensor) -> None:
                if at_input and alone:
                    return  # the gradient at the input is this layer's own
                g = self._tokens(grad)
                if at_input:
                    carried = g @ module.weight.detach().float()
                    add_product(total, carried, carried, torch.float32)
                elif total.dim() == 2 and layer.out_features > layer.in_features:
                    chosen, share = self._sample(len(g), GRADIENTS_PER_FEATURE * len(total), len(grad))
                    g = g[chosen].mul_(share**-0.5)
                    add_product(total, g, g, grad.dtype)
                elif total.dim() == 2:
                    add_product(total, g, g, grad.dtype)
                else:
                    total.add_(torch.linalg.vector_norm(g, dim=0).square())

            # The hooks below must not hold a tensor of the graph they hang on: that cycle would keep every batch alive.
            def input_hook(grad: Tensor) -> None:
                g = self._tokens(grad)
                if first and self.config.token_weighting:
                    previous = self._importance.get(layer.input_name, 0)
                    self._importance[layer.input_name] = previous + torch.linalg.vector_norm(g, dim=-1).square()
                if at_input and alone:
                    add_product(total, g, g, computed_in)

            output.register_hook(output_hook)
            if x.requires_grad and (first or (at_input and alone)):
                x.register_hook(input_hook)

        return hook

    def finish_batch(self, images: int = 0, probes: int = 0) -> None:
        """Add the batch's inputs and outputs; its gradients are those of `probes` backward passes over `images`."""
        for name, activations in self._seen.items():
            moment = self.statistics.inputs.get(name) or self.statistics.outputs[name]
            tokens = self._tokens(activations)
            # Padding has no gradient, but it has activations.
            real = slice(None) if self.mask is None or self.mask.numel() != len(tokens) else self.mask.flatten().bool()
            tokens, weights = tokens[real], self._token_weights(self._input_of.get(name, name), real)
            wide = name in self._wide and moment.second is not None and moment.second.dim() == 2
            count = len(tokens)
            if wide:
                chosen, _ = self._sample(count, TOKENS_PER_FEATURE * tokens.shape[1], len(activations))
                tokens, weights = tokens[chosen], None if weights is None else weights[chosen]
            # They are most of the arithmetic, and need no more digits than the activations have.
            with fast_products(tokens.device, wanted=wide and activations.dtype == torch.bfloat16):
                moment.update(tokens, weights)
            if name in self.statistics.inputs:
                self.statistics.tokens[name] = self.statistics.tokens.get(name, 0) + count
        for gradient in self.statistics.gradients.values():
            gradient.count += images * probes
        self._seen.clear()
        self._importance.clear()

    def _sample(self, tokens: int, wanted: int, images: int) -> tuple[Tensor | slice, float]:
        """Which of a batch's tokens to take so that the whole calibration sees about `wanted`, and their share."""
        share = wanted / (tokens / images * self.images)
        if share >= 1:
            return slice(None), 1.0
        # By the batch and not by what was seen, so that the number of processes does not matter.
        generator = torch.Generator().manual_seed((self.config.seed * 1_000_003 + 2**40 + self.batch) % 2**63)
        chosen = torch.randperm(tokens, generator=generator)[: math.ceil(share * tokens)]
        return chosen, len(chosen) / tokens

    def _tokens(self, activations: Tensor) -> Tensor:
        """(…, d) → (tokens, d) float32, in a buffer that the next call with the same shape overwrites.

        Fresh memory for every product would cost as much time as the product.
        """
        flat = activations.detach().flatten(0, -2)
        if flat.shape not in self._buffers:
            self._buffers[flat.shape] = torch.empty(flat.shape, dtype=torch.float32, device=flat.device)
        return self._buffers[flat.shape].copy_(flat)

    def _token_weights(self, input_name: str, real: Tensor | slice) -> Tensor | None:
        """`(1 − a) + a · ‖g‖² / mean ‖g‖²`, so that the weights of the real tokens average 1 in every batch."""
        importance = self._importance.get(input_name)
        if importance is None:
            return None
        importance = importance[real]
        if not torch.isfinite(importance).all():
            return None
        share = self.config.token_weighting
        relative = importance / importance.mean().clamp_min(torch.finfo(importance.dtype).tiny)
        return (1 - share) + share * relative


def add_product(total: Tensor, left: Tensor, right: Tensor, computed_in: torch.dtype) -> None:
    """`total += leftᵀ right`, by the fast path of the processor where the numbers are no finer than that anyway.

    Values that are bfloat16 already lose nothing when a float32 product takes them as bfloat16 and adds in float32,
    and on a CPU with bfloat16 instructions that is three times as fast.
    """
    with fast_products(left.device, wanted=computed_in == torch.bfloat16):
        total.addmm_(left.T, right)
