"""Compress Vision Transformers of `transformers`, and get `transformers` models back.

Importing the package registers the `Factored…` classes with the Auto classes; everything else is loaded on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .modeling_factored import MODEL_TYPES, Attention, FactoredLinear, register
from .version import __version__

if TYPE_CHECKING:
    from .callbacks import (
        CompressionCallback,
        CompressionMetricsCallback,
        ImportanceGateCallback,
        ProgressiveCompressionCallback,
    )
    from .compressor import ViTCompressor
    from .config import CompressionConfig
    from .densification import to_dense
    from .evaluation import Evaluation, evaluate_model
    from .exporting import export_model
    from .families import Family, register_family
    from .planning import CompressionPlan
    from .publishing import push_folder
    from .quantization import quantize
    from .report import CompressionReport
    from .statistics import Statistics

_HOME = {
    "CompressionCallback": "callbacks",
    "CompressionConfig": "config",
    "CompressionMetricsCallback": "callbacks",
    "CompressionPlan": "planning",
    "CompressionReport": "report",
    "Evaluation": "evaluation",
    "Family": "families",
    "ImportanceGateCallback": "callbacks",
    "ProgressiveCompressionCallback": "callbacks",
    "Statistics": "statistics",
    "ViTCompressor": "compressor",
    "evaluate_model": "evaluation",
    "export_model": "exporting",
    "push_folder": "publishing",
    "register_family": "families",
    "quantize": "quantization",
    "to_dense": "densification",
}

__all__ = [
    "Attention",
    "CompressionCallback",
    "CompressionConfig",
    "CompressionMetricsCallback",
    "CompressionPlan",
    "CompressionReport",
    "Evaluation",
    "FactoredLinear",
    "Family",
    "ImportanceGateCallback",
    "ProgressiveCompressionCallback",
    "Statistics",
    "ViTCompressor",
    "__version__",
    "evaluate_model",
    "export_model",
    "push_folder",
    "quantize",
    "register",
    "register_family",
    "to_dense",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


register(*MODEL_TYPES)
