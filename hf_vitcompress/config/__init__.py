"""What a user asks for: `CompressionConfig`, its presets, and its settings in five groups."""

from .budgets import BUDGET_SETTINGS, BUDGETS, DEFAULT_KEEP_RATIO, LATENCY_BUDGETS, BudgetSettings
from .config import SETTINGS, CompressionConfig, load_settings, save_settings
from .fields import Doc, Range, SettingField, fields_of
from .former import renamed
from .groups import (
    GROUPS,
    Allocation,
    CalibrationSettings,
    CompensationSettings,
    MethodSettings,
    OnBadImage,
    Precision,
    RunSettings,
)
from .presets import BASELINES, OWN_PRESETS, PRESETS

__all__ = [
    "BASELINES",
    "BUDGETS",
    "BUDGET_SETTINGS",
    "DEFAULT_KEEP_RATIO",
    "GROUPS",
    "LATENCY_BUDGETS",
    "OWN_PRESETS",
    "PRESETS",
    "SETTINGS",
    "Allocation",
    "BudgetSettings",
    "CalibrationSettings",
    "CompensationSettings",
    "CompressionConfig",
    "Doc",
    "MethodSettings",
    "OnBadImage",
    "Precision",
    "Range",
    "RunSettings",
    "SettingField",
    "fields_of",
    "load_settings",
    "renamed",
    "save_settings",
]
