"""Judging a compressed model: what it says, what it costs, how long it takes."""

from .evaluation import Evaluation, Interval, evaluate_model

__all__ = ["Evaluation", "Interval", "evaluate_model"]
