"""The inner products that the error of an approximation is measured in."""

from dataclasses import dataclass
from typing import Literal

MetricName = Literal["weight", "activation", "row_fisher", "fisher"]


@dataclass(frozen=True)
class Metric:
    """Which moment stands on each side of the error `½ tr(M_out (W − Ŵ) M_in (W − Ŵ)ᵀ)`.

    Attributes:
        name: as the config has it.
        input: of `M_in` (in, in): the identity, or the second moment of the layer's inputs.
        output: of `M_out` (out, out): the identity, the diagonal of the second moment of the loss gradients at the
            layer's output, or all of it.
        is_loss: whether the error is the predicted increase of the loss, in nats per image. Errors of other metrics do
            not compare across layers.
    """

    name: MetricName
    input: Literal["identity", "full"]
    output: Literal["identity", "diagonal", "full"]
    is_loss: bool = False

    @property
    def needs_gradients(self) -> bool:
        """Whether calibration has to run backward passes for it."""
        return self.output != "identity"


METRICS: dict[MetricName, Metric] = {
    metric.name: metric
    for metric in (
        Metric("weight", "identity", "identity"),
        Metric("activation", "full", "identity"),
        Metric("row_fisher", "identity", "diagonal"),
        Metric("fisher", "full", "full", is_loss=True),
    )
}
"""Truncated SVD; activation-aware SVD (Azizi et al., arXiv 2402.06004); FWSVD (Hsu et al., arXiv 2207.00112); the
Kronecker-factored Fisher (Martens & Grosse, arXiv 1503.05671)."""
