"""How long the operations of a model take on a device: measured once, saved, and looked up by the planner."""

from .operations import Activation, Attention, Merge, Operation, Product
from .profile import LatencyProfile

__all__ = ["Activation", "Attention", "LatencyProfile", "Merge", "Operation", "Product"]
