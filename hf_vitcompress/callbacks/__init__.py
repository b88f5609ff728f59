"""Compression inside an unmodified `transformers.Trainer`: `Trainer(…, callbacks=[CompressionCallback(…)])`."""

from .compression import CompressionCallback
from .metrics import CompressionMetricsCallback
from .progressive import ProgressiveCompressionCallback, Stage, cubic_stages

__all__ = [
    "CompressionCallback",
    "CompressionMetricsCallback",
    "ProgressiveCompressionCallback",
    "Stage",
    "cubic_stages",
]
