"""The settings that bound how large and how slow the compressed model may be."""

from dataclasses import dataclass
from typing import Annotated

from .fields import Doc, Range

BUDGETS = ("keep_ratio", "max_params", "max_macs", "speedup", "max_latency_ms", "max_accuracy_drop")
LATENCY_BUDGETS = ("speedup", "max_latency_ms")
BUDGET_SETTINGS = (*BUDGETS, "latency_batch_size")
"""What nothing depends on that is known before the budget."""
DEFAULT_KEEP_RATIO = 0.5


@dataclass(frozen=True)
class BudgetSettings:
    """How small and how fast the model becomes. Several budgets hold at once; without any, `keep_ratio` is 0.5."""

    keep_ratio: Annotated[
        float | None,
        Range(0, 1, low_open=True),
        Doc(
            "Parameters of the compressed model ÷ parameters of the original, the whole model counted, in (0, 1]; 0.5 "
            "if no budget is given."
        ),
    ] = None
    max_params: Annotated[int | None, Range(1), Doc("Largest number of parameters of the compressed model.")] = None
    max_macs: Annotated[
        int | None, Range(1), Doc("Largest number of multiply-accumulates per image of the compressed model.")
    ] = None
    speedup: Annotated[
        float | None,
        Range(1),
        Doc(
            "Latency of the original ÷ latency of the compressed model, at least 1, measured on this device with its "
            "present number of threads, in the model's own dtype."
        ),
    ] = None
    max_latency_ms: Annotated[
        float | None,
        Range(0, low_open=True),
        Doc("Largest latency of the compressed model in milliseconds for a batch, measured as `speedup` is."),
    ] = None
    latency_batch_size: Annotated[int, Range(1), Doc("Images in a batch for `speedup` and `max_latency_ms`.")] = 1
    max_accuracy_drop: Annotated[
        float | None,
        Range(0, 1),
        Doc(
            "Largest loss of top-1 accuracy on the validation images, as a fraction: 0.01 is one point. The smallest "
            "plan that stays within it is searched. Without labels, agreement with the dense model replaces accuracy. "
            "It stands alone."
        ),
    ] = None

    @property
    def budgets(self) -> dict[str, float]:
        """Those in force, by name."""
        return {name: getattr(self, name) for name in BUDGETS if getattr(self, name) is not None}

    @property
    def searches_accuracy(self) -> bool:
        """Whether the budget is an accuracy, which is measured plan by plan."""
        return self.max_accuracy_drop is not None

    @property
    def times(self) -> bool:
        """Whether a budget is one of time."""
        return any(name in self.budgets for name in LATENCY_BUDGETS)
