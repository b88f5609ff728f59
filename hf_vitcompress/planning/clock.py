"""Predicted latency of plans: what a profile measured for the operations of each choice, and a rest."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from ..profiling.profile import LatencyProfile
from .allocation import NANOSECONDS, Budget
from .groups.base import Choice


@dataclass(frozen=True)
class Clock:
    """What the latency of a model is made of.

    The sum of a model's operations, each timed by itself, is not quite the time of the model. One measured plan tells
    how far they are apart: `corrected` draws the line through it and the dense model.

    Attributes:
        profile: seconds of operations, for a batch.
        groups: seconds of what all groups of the dense model run, as the profile has them.
        limit: share of the dense model's latency that a plan may have.
        factor: of the operations' seconds.
        pace: of all seconds, where the dense model has become slower or faster since it was profiled.
    """

    profile: LatencyProfile
    groups: float
    limit: float
    factor: float = 1.0
    pace: float = 1.0

    @classmethod
    def of(cls, profile: LatencyProfile, dense: Iterable[Choice], limit: float) -> "Clock":
        """Before any plan is measured.

        Args:
            dense: the choice of each group that changes nothing.
        """
        groups = sum(profile.seconds(operation) for choice in dense for operation in choice.operations)
        # Timed by themselves, operations can take longer than the model that is made of them.
        return cls(profile, groups, limit, min(1.0, profile.dense / max(groups, 1e-12)))

    @property
    def rest(self) -> float:
        """Seconds that no plan changes."""
        return self.profile.dense - self.factor * self.groups

    def cost(self, choice: Choice) -> int:
        """Nanoseconds for a batch."""
        return round(1e9 * self.pace * self.factor * self._seconds(choice))

    def _seconds(self, choice: Choice) -> float:
        return sum(self.profile.seconds(operation) for operation in choice.operations)

    def budget(self) -> Budget:
        """The limit as a bound on the whole model."""
        unit = 1e9 * self.pace
        return Budget(
            round(unit * self.limit * self.profile.dense),
            round(unit * self.profile.dense),
            round(unit * self.rest),
            NANOSECONDS,
            measured=self.cost,
        )

    def ratio(self, choices: Iterable[Choice]) -> float:
        """Predicted latency of a plan ÷ the dense model's."""
        groups = sum(map(self._seconds, choices))
        return (self.rest + self.factor * groups) / self.profile.dense

    def corrected(self, choices: Iterable[Choice], ratio: float) -> "Clock":
        """By the measured ratio of one plan; as it was where that plan is as good as dense."""
        saved = self.groups - sum(map(self._seconds, choices))
        if saved < 0.02 * self.groups or ratio >= 1:
            return self
        return replace(self, factor=(1 - ratio) * self.profile.dense / saved)
