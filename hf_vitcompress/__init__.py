"""Compress Vision Transformers of `transformers`, and get `transformers` models back.

Importing the package lets the Auto classes know the `Factored…` classes; everything else is loaded on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .starting import is_command_line, naming_unfit_libraries, start_command_line
from .version import __version__

if TYPE_CHECKING:
    from .architectures.families import Family, register_family
    from .architectures.outputs import register_reader
    from .architectures.registration import register
    from .callbacks import (
        CompressionCallback,
        CompressionMetricsCallback,
        ImportanceGateCallback,
        ProgressiveCompressionCallback,
    )
    from .compressor import ViTCompressor
    from .config import CompressionConfig
    from .conversion.from_timm import convert_from_timm
    from .conversion.to_timm import convert_to_timm
    from .deploy.export import export_model
    from .deploy.quantization import quantize
    from .evaluation.evaluation import Evaluation, evaluate_model
    from .layers_factored import Attention, FactoredLinear
    from .model.dense import to_dense
    from .planning.plan import CompressionPlan
    from .profiling.profile import LatencyProfile
    from .publish.push import push_folder
    from .report.report import CompressionReport
    from .statistics.statistics import Statistics

_HOME = {
    "Attention": "layers_factored",
    "CompressionCallback": "callbacks",
    "CompressionConfig": "config",
    "CompressionMetricsCallback": "callbacks",
    "CompressionPlan": "planning.plan",
    "CompressionReport": "report.report",
    "Evaluation": "evaluation.evaluation",
    "FactoredLinear": "layers_factored",
    "Family": "architectures.families",
    "ImportanceGateCallback": "callbacks",
    "LatencyProfile": "profiling.profile",
    "ProgressiveCompressionCallback": "callbacks",
    "Statistics": "statistics.statistics",
    "ViTCompressor": "compressor",
    "convert_from_timm": "conversion.from_timm",
    "convert_to_timm": "conversion.to_timm",
    "evaluate_model": "evaluation.evaluation",
    "export_model": "deploy.export",
    "push_folder": "publish.push",
    "register": "architectures.registration",
    "register_family": "architectures.families",
    "register_reader": "architectures.outputs",
    "quantize": "deploy.quantization",
    "to_dense": "model.dense",
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
    "LatencyProfile",
    "ProgressiveCompressionCallback",
    "Statistics",
    "ViTCompressor",
    "__version__",
    "convert_from_timm",
    "convert_to_timm",
    "evaluate_model",
    "export_model",
    "push_folder",
    "quantize",
    "register",
    "register_family",
    "register_reader",
    "to_dense",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        with naming_unfit_libraries():
            return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """With the names that are not loaded yet, for completion in a shell or notebook."""
    return sorted({*globals(), *__all__})


if is_command_line():
    start_command_line()  # before the imports that take seconds; `--help` needs none of them
else:
    with naming_unfit_libraries():
        from .auto_classes import introduce

        introduce()
