"""Metrics of the `evaluate` library, computed from the classes that a model predicts and the images' labels."""

import inspect
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import ConfigError
from ..runtime.packages import require_package

if TYPE_CHECKING:
    from evaluate import EvaluationModule


@dataclass(frozen=True)
class Metrics:
    """Metrics that were loaded and tried.

    Attributes:
        modules: of the `evaluate` library.
        classes: number of the model's classes.
    """

    modules: tuple["EvaluationModule", ...]
    classes: int

    @classmethod
    def load(cls, metrics: Sequence["str | EvaluationModule"], classes: int) -> "Metrics":
        """Load what `evaluate.load` has to load, and compute everything once, of predictions that are all right.

        Args:
            metrics: names on the Hub such as `"f1"`, folders with a script of their name, or loaded modules.
            classes: number of the model's classes.

        Raises:
            ConfigError: a metric cannot be loaded, is given twice, or cannot be computed from classes alone.
            MissingPackageError: the `evaluate` library is missing.
        """
        loaded = cls(tuple(map(_module, metrics)), classes)
        for name, count in Counter(module.name for module in loaded.modules).items():
            if count > 1:
                raise ConfigError(f"The metric {name!r} is given {count} times. Name each once.")
        every_class = torch.arange(classes)
        loaded.values(every_class, every_class)
        return loaded

    def values(self, predictions: Tensor, references: Tensor) -> dict[str, float]:
        """Value by name, of classes (n,). Where two metrics give the same name, each puts its own before it.

        Raises:
            ConfigError: a metric fails, or gives something other than single numbers.
        """
        found = [(module.name, self._values(module, predictions, references)) for module in self.modules]
        counts = Counter(key for _, values in found for key in values)
        return {
            key if counts[key] == 1 else f"{name}_{key}": value
            for name, values in found
            for key, value in values.items()
        }

    def _values(self, module: "EvaluationModule", predictions: Tensor, references: Tensor) -> dict[str, float]:
        # Metrics of two classes (F1, precision, recall) refuse more unless they are told how to average them.
        averages = self.classes > 2 and _default_average(module) == "binary"
        settings = {"average": "macro"} if averages else {}
        try:
            values = module.compute(predictions=predictions.tolist(), references=references.tolist(), **settings)
            return {str(key): float(value) for key, value in values.items()}
        except Exception as error:  # a metric is anybody's code, and raises anything
            raise ConfigError(
                f"The metric {module.name!r} gives no single numbers for predicted classes and labels: {error} Choose "
                "another, or give a module of `evaluate` that does."
            ) from error


def _module(metric: "str | EvaluationModule") -> "EvaluationModule":
    evaluate = require_package("evaluate", "A metric")
    if isinstance(metric, evaluate.EvaluationModule):
        return metric
    if not isinstance(metric, str):
        raise ConfigError(f"A metric is a name or a module of `evaluate`, not a {type(metric).__name__}.")
    try:
        return evaluate.load(metric, keep_in_memory=True)
    except Exception as error:  # loading runs a script, which raises anything
        raise ConfigError(
            f"The metric {metric!r} cannot be loaded: {str(error).rstrip('.')}. Give the name of a metric on the Hub, "
            "which has to be reached the first time; or a folder with a script of the folder's name."
        ) from error


def _default_average(module: "EvaluationModule") -> Any:
    parameter = inspect.signature(module._compute).parameters.get("average")
    return None if parameter is None else parameter.default
