"""What is known about a compression, as data, text and figures."""

from .report import CompressionReport

__all__ = ["CompressionReport"]
