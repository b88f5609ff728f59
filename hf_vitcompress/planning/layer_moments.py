"""What the statistics say about one layer, in a metric: the two sides of its error.

With an output side `M_out` (out, out) and an input side `M_in` (in, in), the error of an approximation `Ŵ` of the
weight `W` (out, in) is `E(Ŵ) = ½ tr(M_out (W − Ŵ) M_in (W − Ŵ)ᵀ)`. A closed form needs one side as it is, and the other
carried through the weight.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..architectures.layers import LayerInfo
from ..config import CompressionConfig
from ..errors import CalibrationError
from ..metrics import METRICS, Metric
from ..statistics.moments import GradientMoment
from ..statistics.statistics import Statistics


@dataclass(frozen=True)
class LayerMoments:
    """The sides of one layer's error; float64.

    Attributes:
        layer: which one it is.
        linear: its module in the dense model.
        statistics: of the dense model.
        metric: which moment stands on each side.
        centered: whether the bias takes up the mean of the error, so that the input side is a covariance.
    """

    layer: LayerInfo
    linear: nn.Linear
    statistics: Statistics
    metric: Metric
    centered: bool

    @classmethod
    def of(
        cls, layer: LayerInfo, linear: nn.Linear, statistics: Statistics, config: CompressionConfig
    ) -> "LayerMoments":
        """In the metric of `config`, centred where it corrects biases and the layer has one."""
        centered = config.correct_bias and linear.bias is not None
        return cls(layer, linear, statistics, METRICS[config.metric], centered)

    @property
    def weight(self) -> Tensor:
        """`W` (out, in)."""
        return self.linear.weight.detach().double()

    @property
    def bias(self) -> Tensor | None:
        """Of the dense layer, (out,); `None` where it has none."""
        return None if self.linear.bias is None else self.linear.bias.detach().double()

    @property
    def mean(self) -> Tensor:
        """Of the input, (in,)."""
        return self.statistics.inputs[self.layer.input_name].mean

    @property
    def on_output(self) -> bool:
        """Whether the output is the narrow side, on which the closed form is solved."""
        return self.layer.out_features <= self.layer.in_features

    @property
    def gradient(self) -> GradientMoment | None:
        """`None` where the metric needs none.

        Raises:
            CalibrationError: the metric needs one, and the statistics hold none.
        """
        gradient = self.statistics.gradients.get(self.layer.name)
        if gradient is None and self.metric.needs_gradients:
            raise CalibrationError(
                f"The statistics hold no gradients of {self.layer.name!r}, which metric={self.metric.name!r} needs. "
                "Calibrate with that metric."
            )
        return gradient if self.metric.needs_gradients else None

    @property
    def output_side(self) -> Tensor:
        """`M_out` (out, out), or its diagonal (out,)."""
        if (gradient := self.gradient) is None:
            return self.weight.new_ones(self.layer.out_features)
        return gradient.moment if self.metric.output == "full" else gradient.mean_square

    @property
    def input_side(self) -> Tensor:
        """`M_in` (in, in), or its diagonal (in,)."""
        if self.metric.input == "identity":
            return self.weight.new_ones(self.layer.in_features)
        moment = self.statistics.inputs[self.layer.input_name]
        return moment.covariance if self.centered else moment.moment

    @property
    def carried_input(self) -> Tensor:
        """`W M_in Wᵀ` (out, out); of a wide input the covariance of the output may have been measured instead."""
        output = self.statistics.outputs.get(self.layer.name)
        if output is None or self.metric.input == "identity":
            weight, side = self.weight, self.input_side
            return weight @ side @ weight.T if side.dim() == 2 else (weight * side) @ weight.T
        if self.centered:
            return output.covariance
        product_mean = output.mean if self.bias is None else output.mean - self.bias
        return output.covariance + torch.outer(product_mean, product_mean)

    @property
    def carried_output(self) -> Tensor:
        """`Wᵀ M_out W` (in, in); of a wide output the gradient at the input may have been measured instead."""
        weight, gradient = self.weight, self.gradient
        if gradient is None:
            return weight.T @ weight
        if self.metric.output == "diagonal":
            return weight.T @ (gradient.mean_square[:, None] * weight)
        return gradient.moment if len(gradient.second) < len(weight) else weight.T @ gradient.moment @ weight

    @property
    def sides(self) -> tuple[Tensor, Tensor]:
        """The narrow side (n, n), or its diagonal (n,), and the other one carried to it (n, n); n = min(in, out)."""
        return (self.output_side, self.carried_input) if self.on_output else (self.input_side, self.carried_output)


def as_matrix(side: Tensor) -> Tensor:
    """A side's matrix from it or its diagonal."""
    return torch.diag(side) if side.dim() == 1 else side
