"""From statistics and a budget to a plan, and from a plan to a model."""

from .allocation import Budget, Table, make_plan
from .plan import CompressionPlan

__all__ = ["Budget", "CompressionPlan", "Table", "make_plan"]
