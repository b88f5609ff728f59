"""Layers with features between them, as matrices: those that make the features, and the one that reads them.

fc1 makes the hidden features of a feed-forward network and fc2 reads them; of a gated one,
`fc2(act(gate(x)) · fc1(x))`, gate and fc1 make them together, each a factor. v makes those that o reads. A feature that
goes is a row of every producer and a column of the consumer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import CalibrationError
from .layer_moments import LayerMoments, as_matrix
from .pruning import repaired


@dataclass
class Producer:
    """A layer that makes features, or a factor of each; float64.

    Attributes:
        weight: (m, in).
        bias: (m,), or `None`.
        gradient: the metric of its output (m, m), or `None` for the identity.
    """

    weight: Tensor
    bias: Tensor | None
    gradient: Tensor | None

    @property
    def metric(self) -> Tensor:
        """Of its output, (m, m)."""
        eye = torch.eye(len(self.weight), dtype=self.weight.dtype, device=self.weight.device)
        return eye if self.gradient is None else self.gradient

    @property
    def carried(self) -> Tensor:
        """`Wᵀ M W` (in, in), the metric carried to the input."""
        return self.weight.T @ (self.weight if self.gradient is None else self.gradient @ self.weight)


@dataclass
class Features:
    """`m` features between layers, float64.

    Attributes:
        producers: one, or two whose outputs are multiplied.
        consumer: weight of the layer that reads the features, (out, m).
        output_side: the metric of what it makes of them, (out, out).
        covariance: their second moment (m, m), centred where the consumer's bias takes up the mean.
        mean: (m,).
    """

    producers: tuple[Producer, ...]
    consumer: Tensor
    output_side: Tensor
    covariance: Tensor
    mean: Tensor

    @property
    def carried(self) -> list[Tensor]:
        """Of every layer, the consumer last, the metric (or the moment) on the features carried to its other side."""
        return [*(producer.carried for producer in self.producers), self.consumer @ self.covariance @ self.consumer.T]

    def rotated(self, rotation: Tensor) -> "Features":
        """The same function, with the features `T a` in the place of `a`; for features that are linear in the input."""
        inverse = torch.linalg.inv(rotation)
        producers = tuple(
            Producer(
                rotation @ producer.weight,
                None if producer.bias is None else rotation @ producer.bias,
                None if producer.gradient is None else inverse.T @ producer.gradient @ inverse,
            )
            for producer in self.producers
        )
        covariance = rotation @ self.covariance @ rotation.T
        return Features(producers, self.consumer @ inverse, self.output_side, covariance, rotation @ self.mean)

    def kept(self, features: Tensor, repair: bool) -> "Features":
        """Those features alone; with `repair` the consumer is solved again for them."""
        plain = not repair or len(features) == len(self.mean)
        producers = tuple(
            Producer(
                producer.weight[features],
                None if producer.bias is None else producer.bias[features],
                None if producer.gradient is None else producer.gradient[features][:, features],
            )
            for producer in self.producers
        )
        return Features(
            producers,
            self.consumer[:, features] if plain else repaired(self.consumer, self.covariance, features),
            self.output_side,
            self.covariance[features][:, features],
            self.mean[features],
        )


def features_between(moments: Sequence[LayerMoments]) -> Features:
    """What the statistics say about layers, of which the last reads what the others make.

    Raises:
        CalibrationError: they were collected without the features in view.
    """
    consumer = moments[-1]
    producers = []
    for own in moments[:-1]:
        gradient = as_matrix(own.output_side) if own.metric.needs_gradients else None
        if gradient is not None and len(gradient) != own.layer.out_features:
            raise CalibrationError(
                f"The statistics hold too little about {own.layer.name!r} to prune its outputs; calibrate again with "
                "the mlp and attention settings you plan with."
            )
        producers.append(Producer(own.weight, own.bias, gradient))
    covariance = as_matrix(consumer.input_side)
    return Features(tuple(producers), consumer.weight, as_matrix(consumer.output_side), covariance, consumer.mean)
