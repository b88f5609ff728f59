"""The course of a compensation, as plain data."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CompensationPoint:
    """Divergence `loss` from the dense model on held-out images, after `seconds` and `images` of a stage."""

    stage: str
    seconds: float
    images: int
    loss: float


@dataclass
class CompensationReport:
    """What compensation did.

    Attributes:
        method: the config's `compensation`.
        images: different images it learnt from.
        held_out_images: images that judged it.
        points: its course, the state before it first.
        seconds: it took, including the time before an interruption.
    """

    method: str
    images: int
    held_out_images: int
    points: list[CompensationPoint]
    seconds: float

    @property
    def loss_before(self) -> float:
        return self.points[0].loss

    @property
    def loss_after(self) -> float:
        """Of the state that was kept, the best."""
        return min(point.loss for point in self.points)
