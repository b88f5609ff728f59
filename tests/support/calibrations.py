"""Calibrations of tiny models, and moments by hand."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_vitcompress.architectures.layers import LayerInfo, find_layers
from hf_vitcompress.architectures.subject import Subject
from hf_vitcompress.config import CompressionConfig
from hf_vitcompress.images.images import ImageSource
from hf_vitcompress.images.sources import open_images
from hf_vitcompress.statistics.calibration import calibrate
from hf_vitcompress.statistics.statistics import Statistics
from support.stages import quiet

PRECISIONS = ("float32", "bfloat16")


def config(**changes: Any) -> CompressionConfig:
    return CompressionConfig(**{"precision": "float32", "batch_size": 16, **changes})


def run(
    model: PreTrainedModel,
    pixels: Tensor | ImageSource,
    settings: CompressionConfig,
    checkpoint: Path | None = None,
    processor: Any = None,
) -> Statistics:
    subject = Subject.alone(model, processor)
    return calibrate(subject, find_layers(model), open_images(pixels), quiet(settings), checkpoint)


def summed(rows: list[Tensor]) -> Tensor:
    """Σ rowsᵀ rows in float64."""
    return sum(r.T @ r for r in rows)


class Recorder:
    """Everything that passes one linear layer, as float64 tokens by batch."""

    def __init__(self, module: nn.Linear) -> None:
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self.input_gradients: list[list[Tensor]] = []
        self.output_gradients: list[Tensor] = []
        self.handle = module.register_forward_hook(self._hook)

    def _hook(self, module: nn.Linear, args: tuple[Tensor, ...], output: Tensor) -> None:
        def tokens(x: Tensor) -> Tensor:
            return x.detach().to(output.dtype).flatten(0, -2).double()

        self.inputs.append(tokens(args[0]))
        self.outputs.append(tokens(output))
        if output.requires_grad:
            at_input: list[Tensor] = []
            self.input_gradients.append(at_input)
            output.register_hook(lambda g: self.output_gradients.append(tokens(g)))
            # Three layers may add up here, in float32.
            args[0].register_hook(lambda g: at_input.append(g.detach().flatten(0, -2).double()))

    def weights(self, share: float) -> Tensor:
        """`(1 − a) + a ‖g‖² / mean ‖g‖²` by batch, `‖g‖²` summed over the probes."""
        parts = []
        for gradients in self.input_gradients:
            importance = sum(g.square().sum(-1) for g in gradients)
            parts.append((1 - share) + share * importance / importance.mean())
        return torch.cat(parts)

    def moments(self, vectors: list[Tensor], weights: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted mean and covariance."""
        x = torch.cat(vectors)
        mean = weights @ x / weights.sum()
        return mean, (x - mean).T @ (weights[:, None] * (x - mean)) / weights.sum()


@contextlib.contextmanager
def recorded(model: PreTrainedModel) -> Iterator[dict[str, Recorder]]:
    recorders = {layer.name: Recorder(model.get_submodule(layer.name)) for layer in find_layers(model)}
    try:
        yield recorders
    finally:
        for recorder in recorders.values():
            recorder.handle.remove()


def by_role(model: PreTrainedModel) -> dict[str, LayerInfo]:
    """The layers of block 0."""
    return {layer.role: layer for layer in find_layers(model) if layer.block == 0}


every_mlp = pytest.mark.parametrize("mlp", ["auto", "low_rank"])


class Poisoned(Sequence):
    """Images of which number `at` ends the program's patience when it is wanted again, after a look at its content."""

    def __init__(self, images: Sequence | Tensor, at: int) -> None:
        self.images, self.at, self.looked = images, at, False

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        if index == self.at and self.looked:
            raise KeyboardInterrupt
        self.looked = self.looked or index == self.at
        return self.images[index]


def interrupted(
    model: PreTrainedModel,
    pixels: Tensor,
    at: int,
    settings: CompressionConfig,
    checkpoint: Path,
    targets: list[str] | None = None,
) -> None:
    source = ImageSource(Poisoned(pixels, at), None, "the tensor")
    with pytest.raises(KeyboardInterrupt):
        calibrate(Subject.alone(model), find_layers(model, targets), source, quiet(settings), checkpoint)
