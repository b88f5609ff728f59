"""What calibration measures, and how."""

from .moments import GradientMoment, Moment
from .statistics import Statistics

__all__ = ["GradientMoment", "Moment", "Statistics"]
