"""Hooks on a model's layers that add what flows through them to the statistics."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..architectures.layers import LayerInfo, linear_layer
from ..runtime.devices import fast_products
from .accumulators import Accumulator, Sampler, accumulator_for
from .statistics import Statistics

TOKENS_PER_FEATURE = 50
"""Tokens, as a multiple of the hidden features, that are enough for their covariance."""


@dataclass
class Observer:
    """Hooks that see every layer's input, output and gradients, and add them to the statistics.

    Wide moments, of the hidden features of an MLP, take a random part of the tokens where there are many.

    Attributes:
        sampler: chooses that part; whoever passes the batches says which one it is.
        token_weighting: as in the config.
        mask: (n, tokens) of the batch that is being observed, 0 where a token is padding; `None` without padding.
        finite: by layer name, whether all outputs were; of the last block, because no moment sees what those become.
    """

    statistics: Statistics
    layers: Sequence[LayerInfo]
    sampler: Sampler
    token_weighting: float
    mask: Tensor | None = None
    finite: dict[str, Tensor] = field(default_factory=dict)
    _seen: dict[str, Tensor] = field(default_factory=dict)
    _importance: dict[str, Tensor] = field(default_factory=dict)
    _buffers: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._input_of = {layer.name: layer.input_name for layer in self.layers}
        self._wide = {layer.input_name for layer in self.layers if layer.in_features > layer.out_features}
        self._last_block = max(layer.block for layer in self.layers)

    @contextlib.contextmanager
    def attached(self, model: PreTrainedModel) -> Iterator[None]:
        """Within the block, what flows through the layers of `model` is observed."""
        handles, readers = [], Counter(layer.input_name for layer in self.layers)
        begun: set[str] = set()
        for layer in self.layers:
            linear = linear_layer(model, layer.name)
            accumulator = None
            if (moment := self.statistics.gradients.get(layer.name)) is not None:
                alone = readers[layer.input_name] == 1
                accumulator = accumulator_for(layer, linear, moment, alone, self.sampler)
            first = layer.input_name not in begun
            begun.add(layer.input_name)
            handles.append(linear.register_forward_hook(self._forward_hook(layer, first, accumulator)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _forward_hook(self, layer: LayerInfo, first: bool, accumulator: Accumulator | None) -> Callable[..., None]:
        """What is called with a layer's input and output.

        Args:
            first: whether it is the first layer that reads its input, and so the one that tells of it.
        """

        def hook(module: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            x, computed_in = inputs[0], output.dtype
            # Kept until the backward passes have told which tokens matter, as the layer itself rounds them.
            if first:
                self._seen[layer.input_name] = x.detach().to(computed_in)
            if layer.name in self.statistics.outputs:
                self._seen[layer.name] = output.detach()
            if layer.block == self._last_block:
                finite = torch.isfinite(output.detach()).all()
                self.finite[layer.name] = self.finite.get(layer.name, finite) & finite
            if accumulator is None or not output.requires_grad:
                return
            # The hooks below must not hold a tensor of the graph they hang on: that cycle would keep every batch alive.
            if not accumulator.at_input:
                output.register_hook(lambda grad: accumulator.add(self._tokens(grad), grad.dtype, len(grad)))
            if x.requires_grad and (first or accumulator.at_input):
                x.register_hook(self._input_hook(layer, first, accumulator, computed_in))

        return hook

    def _input_hook(
        self, layer: LayerInfo, first: bool, accumulator: Accumulator, computed_in: torch.dtype
    ) -> Callable[[Tensor], None]:
        def hook(grad: Tensor) -> None:
            g = self._tokens(grad)
            if first and self.token_weighting:
                previous = self._importance.get(layer.input_name, 0)
                self._importance[layer.input_name] = previous + torch.linalg.vector_norm(g, dim=-1).square()
            if accumulator.at_input:
                accumulator.add(g, computed_in, len(grad))

        return hook

    def finish_batch(self, images: int = 0, probes: int = 0) -> None:
        """Add the batch's inputs and outputs; its gradients are those of `probes` backward passes over `images`."""
        for name, activations in self._seen.items():
            moment = self.statistics.inputs.get(name) or self.statistics.outputs[name]
            tokens = self._tokens(activations)
            # Padding has no gradient, but it has activations.
            real = slice(None) if self.mask is None or self.mask.numel() != len(tokens) else self.mask.flatten().bool()
            tokens, weights = tokens[real], self._token_weights(self._input_of.get(name, name), real)
            wide = name in self._wide and moment.second is not None
            count = len(tokens)
            if wide:
                chosen, _ = self.sampler.choose(count, TOKENS_PER_FEATURE * tokens.shape[1], len(activations))
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

    def _tokens(self, activations: Tensor) -> Tensor:
        """(…, d) → (tokens, d) float32, in a buffer that the next call with the same d overwrites.

        Fresh memory for every product would cost as much time as the product, and a buffer for every number of tokens,
        which images of many sizes have, as much memory as there are sizes.
        """
        flat = activations.detach().flatten(0, -2)
        tokens, features = flat.shape
        buffer = self._buffers.get(features)
        if buffer is None or len(buffer) < tokens:
            buffer = self._buffers[features] = torch.empty(flat.shape, dtype=torch.float32, device=flat.device)
        return buffer[:tokens].copy_(flat)

    def _token_weights(self, input_name: str, real: Tensor | slice) -> Tensor | None:
        """`(1 − a) + a · ‖g‖² / mean ‖g‖²`, so that the weights of the real tokens average 1 in every batch."""
        importance = self._importance.get(input_name)
        if importance is None:
            return None
        importance = importance[real]
        if not torch.isfinite(importance).all():
            return None
        relative = importance / importance.mean().clamp_min(torch.finfo(importance.dtype).tiny)
        return (1 - self.token_weighting) + self.token_weighting * relative
