"""How the loss gradients of a layer become its moment: chosen for each layer before the first batch.

A moment is collected where the layer is narrow and where nothing can be pruned; see `statistics` for which that is.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..architectures.layers import LayerInfo
from ..runtime.devices import fast_products
from .moments import GradientMoment

GRADIENTS_PER_FEATURE = 10
"""Tokens, as a multiple of the features, that are enough for each probe's gradients: their moment is never inverted."""


@dataclass
class Sampler:
    """A random part of the tokens, where there are more than a wide moment needs.

    Attributes:
        images: that all of the calibration will see.
        seed: of the choice.
        batch: index of the batch that is being observed; the choice depends on it and not on what was seen, so that the
            number of processes does not matter.
    """

    images: int
    seed: int
    batch: int = 0

    def choose(self, tokens: int, wanted: int, images: int) -> tuple[Tensor | slice, float]:
        """Which of a batch's tokens to take so that the whole calibration sees about `wanted`, and their share.

        Args:
            tokens: in the batch.
            images: in the batch.
        """
        share = wanted / (tokens / images * self.images)
        if share >= 1:
            return slice(None), 1.0
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + 2**40 + self.batch) % 2**63)
        chosen = torch.randperm(tokens, generator=generator)[: math.ceil(share * tokens)]
        return chosen, len(chosen) / tokens


class Accumulator(ABC):
    """Adds the gradients of one layer to its moment.

    Attributes:
        at_input: whether it takes the gradient at the layer's input; otherwise that at its output.
    """

    at_input = False

    def __init__(self, moment: GradientMoment) -> None:
        self.moment = moment

    @abstractmethod
    def add(self, gradients: Tensor, computed_in: torch.dtype, images: int) -> None:
        """Add one batch.

        Args:
            gradients: (tokens, features) float32; may be overwritten.
            computed_in: type that the layer computes in.
            images: that the tokens are of.
        """


class Diagonal(Accumulator):
    """Mean squares by output feature."""

    def add(self, gradients: Tensor, computed_in: torch.dtype, images: int) -> None:
        self.moment.second.add_(torch.linalg.vector_norm(gradients, dim=0).square())


class FullMoment(Accumulator):
    """All products of the gradients at the output."""

    def add(self, gradients: Tensor, computed_in: torch.dtype, images: int) -> None:
        add_product(self.moment.second, gradients, gradients, computed_in)


class SampledMoment(Accumulator):
    """The same from a part of the tokens, of an output that is wider than the input."""

    def __init__(self, moment: GradientMoment, sampler: Sampler) -> None:
        super().__init__(moment)
        self.sampler = sampler

    def add(self, gradients: Tensor, computed_in: torch.dtype, images: int) -> None:
        total = self.moment.second
        chosen, share = self.sampler.choose(len(gradients), GRADIENTS_PER_FEATURE * len(total), images)
        sample = gradients[chosen].mul_(share**-0.5)
        add_product(total, sample, sample, computed_in)


class CarriedThroughWeight(Accumulator):
    """The moment of the gradients carried to the input, `Wᵀ G W`, of a layer whose input others read as well."""

    def __init__(self, moment: GradientMoment, linear: nn.Linear) -> None:
        super().__init__(moment)
        self.linear = linear

    def add(self, gradients: Tensor, computed_in: torch.dtype, images: int) -> None:
        carried = gradients @ self.linear.weight.detach().float()
        add_product(self.moment.second, carried, carried, torch.float32)


class TakenAtInput(FullMoment):
    """The same of a layer that alone reads its input: the gradient that arrives there is its own."""

    at_input = True


def accumulator_for(
    layer: LayerInfo, linear: nn.Linear, moment: GradientMoment, alone: bool, sampler: Sampler
) -> Accumulator:
    """What fits the moment that is wanted of the layer.

    Args:
        alone: whether no other layer reads its input.
    """
    if moment.second.dim() == 1:
        return Diagonal(moment)
    if len(moment.second) < layer.out_features:
        return TakenAtInput(moment) if alone else CarriedThroughWeight(moment, linear)
    return SampledMoment(moment, sampler) if layer.out_features > layer.in_features else FullMoment(moment)


def add_product(total: Tensor, left: Tensor, right: Tensor, computed_in: torch.dtype) -> None:
    """`total += leftᵀ right`, by the fast path of the processor where the numbers are no finer than that anyway.

    Values that are bfloat16 already lose nothing when a float32 product takes them as bfloat16 and adds in float32,
    and on a CPU with bfloat16 instructions that is three times as fast.
    """
    with fast_products(left.device, wanted=computed_in == torch.bfloat16):
        total.addmm_(left.T, right)
