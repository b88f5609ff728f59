"""Whether two models compute the same: both are run on the same random images."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

IMAGES = 2
"""So many are run."""

TOLERANCE = 1e-5
"""Largest difference that is rounding, in units of the largest output."""


def random_images(shape: tuple[int, int, int], device: torch.device) -> Tensor:
    """`IMAGES` images of channels, height and width, the same each time."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(IMAGES, *shape, dtype=torch.float32, generator=generator).to(device)


def timm_outputs(module: Any, images: Tensor, tokens: bool, pooled: bool) -> list[Tensor]:
    """Of a timm model in float32: the tokens after the last norm, and what it returns.

    Args:
        tokens: whether the tokens are wanted.
        pooled: whether the other is wanted.
    """
    with _evaluating(module), torch.no_grad():
        features = [module.forward_features(images)] if tokens else []
        return [*features, *([module(images)] if pooled else [])]


def transformers_outputs(
    model: PreTrainedModel, images: Tensor, headed: bool, tokens: bool, pooled: bool
) -> list[Tensor]:
    """The same of a model of transformers: hidden states, and scores, embeddings or the pooled output.

    Args:
        headed: whether the model has a head, and so another model in it.
        tokens: as of `timm_outputs`.
        pooled: as of `timm_outputs`.
    """
    body: Any = model.base_model if headed else model
    with _evaluating(model), torch.no_grad():
        features = [body(images).last_hidden_state] if tokens else []
        return [*features, *([_answer(model(images))] if pooled else [])]


def largest_difference(ours: list[Tensor], theirs: list[Tensor]) -> tuple[float, float]:
    """Over all outputs: the absolute difference, and that in units of the largest number of the second output.

    Both are infinite where a shape differs.
    """
    absolute = relative = 0.0
    for one, other in zip(ours, theirs, strict=True):
        if one.dim() == 3 and other.dim() == 4:  # tokens in a grid
            other = other.flatten(1, 2)
        if one.shape != other.shape:
            return float("inf"), float("inf")
        difference, size = float((one - other).abs().max()), float(other.abs().max())
        absolute = max(absolute, difference)
        relative = max(relative, difference / size if size else difference)
    return absolute, relative


def _answer(outputs: Any) -> Tensor:
    for name in ("logits", "image_embeds", "pooler_output"):
        if (found := getattr(outputs, name, None)) is not None:
            return found
    return outputs.last_hidden_state


@contextlib.contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every module is in the mode that it was in."""
    training = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in training.items():
            part.training = mode
