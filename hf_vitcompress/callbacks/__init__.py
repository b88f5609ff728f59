"""Compression inside an unmodified `transformers.Trainer`.

`callback = CompressionCallback(config).attach(trainer)`, or as for any callback `Trainer(…, callbacks=[callback])`.
"""

from .compression import CompressionCallback
from .gates import ImportanceGateCallback
from .metrics import CompressionMetricsCallback
from .progressive import ProgressiveCompressionCallback, Stage, cubic_stages

__all__ = [
    "CompressionCallback",
    "CompressionMetricsCallback",
    "ImportanceGateCallback",
    "ProgressiveCompressionCallback",
    "Stage",
    "cubic_stages",
]
