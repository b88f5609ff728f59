"""Winning accuracy back after the closed form."""

from .compensator import Compensator

__all__ = ["Compensator"]
