"""Predicted losses over latencies, without building or timing any of the plans."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..config import CompressionConfig
from ..errors import BudgetError
from ..profiling.profile import LatencyProfile
from .clock import Clock
from .plan import CompressionPlan
from .planner import Planner

SPEEDUPS = (1.1, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 5.0)


@dataclass(frozen=True)
class TimedPoint:
    """A plan on the curve.

    Attributes:
        milliseconds: predicted latency for a batch.
        speedup: predicted latency of the dense model ÷ of the plan.
        loss: predicted (KL from the dense model, nats per image).
    """

    milliseconds: float
    speedup: float
    loss: float


def latency_curve(
    planner: Planner, config: CompressionConfig, profile: LatencyProfile, measured: CompressionPlan | None = None
) -> list[TimedPoint]:
    """Points by rising speed-up, as far as this model gets.

    Args:
        measured: a plan that was timed; it corrects what the profile predicts.
    """
    curve: list[TimedPoint] = []
    if planner.correction.loss(1.0) is None:
        return curve
    clock = Clock.of(profile, planner.dense_choices, 1.0)
    if measured is not None and measured.latency is not None:
        clock = clock.corrected(planner.taken(measured), measured.latency.measured.ratio)
    for speedup in SPEEDUPS:
        try:
            asked = replace(clock, limit=1 / speedup)
            plan = planner.plan(config.with_budget(speedup=speedup), exact=False, clock=asked)
        except BudgetError:
            break  # and the faster ones
        if plan.predicted_loss is not None:
            ratio = clock.ratio(planner.taken(plan))
            curve.append(TimedPoint(1000 * profile.dense * ratio, 1 / ratio, plan.predicted_loss))
    return curve


def point_of(plan: CompressionPlan, curve: Sequence[TimedPoint]) -> tuple[float, float] | None:
    """(milliseconds, predicted loss) of a plan that was timed, to be marked on a curve."""
    if not curve or plan.latency is None or plan.predicted_loss is None:
        return None
    dense = curve[0].milliseconds * curve[0].speedup
    return dense * plan.latency.measured.ratio, plan.predicted_loss
