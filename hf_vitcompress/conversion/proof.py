"""Whether two models compute the same: both are run on the same random images."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..architectures.running import evaluating
from ..errors import UnsupportedModelError, is_out_of_memory, one_line

IMAGES = 2
"""So many are run."""

TOLERANCE = 1e-5
"""Largest difference that is rounding in float32, in units of the largest output."""

DOUBTFUL, EXACT = 1e-2, 1e-6
"""A difference in float32 up to the first is rounding if in float64 there is none above the second."""


@dataclass(frozen=True)
class Pair:
    """A model of transformers and one of timm that are to compute the same; of one type, on one device.

    Attributes:
        model: of transformers.
        module: of timm.
        headed: whether they have a head, and that of transformers another model in it.
        tokens: whether the hidden states after the last norm are to be the same.
        pooled: whether what they return is: scores, embeddings or the pooled output.
        shape: channels, height and width of the images.
    """

    model: Any
    module: Any
    headed: bool
    tokens: bool
    pooled: bool
    shape: tuple[int, int, int]


@dataclass(frozen=True)
class Difference:
    """How far the outputs are apart.

    Attributes:
        largest: the largest absolute difference, in float32.
        is_rounding: whether it is no more than that.
    """

    largest: float
    is_rounding: bool


def compare(pair: Pair, name: str, in_double: Callable[[], Pair]) -> Difference:
    """Run both models.

    Args:
        name: of the one that is converted.
        in_double: makes the same models in float64, where float32 leaves a doubt.

    Raises:
        UnsupportedModelError: the outputs are not finite.
    """
    largest, relative = _difference(pair, name)
    if TOLERANCE < relative <= DOUBTFUL:
        return Difference(largest, _difference(in_double(), name)[1] <= EXACT)
    return Difference(largest, relative <= TOLERANCE)


def _difference(pair: Pair, name: str) -> tuple[float, float]:
    """The largest one, and that in units of the largest output; infinite where a shape differs."""
    parameter = next(pair.module.parameters())
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(IMAGES, *pair.shape, dtype=torch.float32, generator=generator).to(parameter)
    absolute = relative = 0.0
    for ours, theirs in _outputs(pair, images, name):
        if theirs.dim() == 4:  # tokens in a grid
            theirs = theirs.flatten(1, 2)
        if not theirs.isfinite().all():
            raise UnsupportedModelError(f"What {name} gives for random images is infinite or no number.")
        if ours.shape != theirs.shape or not ours.isfinite().all():
            return float("inf"), float("inf")
        difference, size = float((ours - theirs).abs().max()), float(theirs.abs().max())
        absolute = max(absolute, difference)
        relative = max(relative, difference / size if size else difference)
    return absolute, relative


def _outputs(pair: Pair, images: Tensor, name: str) -> list[tuple[Tensor, Tensor]]:
    """What is to be the same: of the model of transformers, and of that of timm."""
    found: list[tuple[Tensor, Tensor]] = []
    try:
        with evaluating(pair.model), evaluating(pair.module), torch.no_grad():
            if pair.pooled:
                found.append((_answer(pair.model(images)), pair.module(images)))
            # A head of zeros, as untrained ones are, says nothing about what it reads.
            if pair.tokens and (not pair.pooled or torch.equal(found[0][1][0], found[0][1][1])):
                body = pair.model.base_model if pair.headed else pair.model
                found.append((body(images).last_hidden_state, pair.module.forward_features(images)))
    except (RuntimeError, AssertionError, ValueError) as error:  # shapes that do not fit are any of these
        if is_out_of_memory(error):
            raise
        size = " × ".join(map(str, pair.shape))
        raise UnsupportedModelError(f"{name} cannot be run on images of {size}: {one_line(error)}.") from error
    return found


def _answer(outputs: Any) -> Tensor:
    for name in ("logits", "image_embeds", "pooler_output"):
        if (found := getattr(outputs, name, None)) is not None:
            return found
    return outputs.last_hidden_state
