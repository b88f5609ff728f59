"""`CompressionConfig`: the settings of all groups in one flat recipe, checked, saved and loaded."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError, OutputError, did_you_mean, shown
from .budgets import BUDGETS, DEFAULT_KEEP_RATIO, BudgetSettings
from .fields import documented, fields_of
from .former import updated
from .groups import CalibrationSettings, CompensationSettings, MethodSettings, RunSettings
from .presets import PRESETS
from .reading import read_json, read_yaml


# A dataclass takes the fields of its last base first.
@documented
@dataclass(frozen=True)
class CompressionConfig(RunSettings, CompensationSettings, CalibrationSettings, MethodSettings, BudgetSettings):
    """Everything that decides how a model is compressed. Checked on construction; immutable.

    Several budgets hold at once; without any, `keep_ratio` is 0.5.

    Raises:
        ConfigError: a value is of the wrong type or out of range, or a budget is given beside `max_accuracy_drop`.

    Examples:
        >>> config = CompressionConfig(keep_ratio=0.4, compensation="distill", compensation_duration="2 epochs")
    """

    def __post_init__(self) -> None:
        for field in SETTINGS:
            object.__setattr__(self, field.name, field.checked(getattr(self, field.name)))
        given = list(self.budgets)
        if len(given) > 1 and self.searches_accuracy:
            raise ConfigError(
                f"{' and '.join(given)} are given together, and max_accuracy_drop stands alone: it is searched by keep "
                "ratio. Leave one out."
            )
        if not given:
            object.__setattr__(self, "keep_ratio", DEFAULT_KEEP_RATIO)

    def with_budget(self, **budget: float | int) -> "CompressionConfig":
        """The same recipe under another budget, e.g. `config.with_budget(keep_ratio=0.3)`."""
        return self.from_dict({**self.to_dict(), **dict.fromkeys(BUDGETS), **budget})

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "CompressionConfig":
        """A named recipe; `overrides` are further settings.

        This package's own methods: `"default"`, all settings as they are; `"low_rank"`, the same metric, but every
        layer is factored by itself and nothing is pruned or shared.

        Baselines (other people's methods): `"svd"`, truncated SVD of the weights, the same share for all layers;
        `"fwsvd"`, Hsu et al., arXiv 2207.00112; `"svd_llm"`, Wang et al., arXiv 2403.07378 (truncation-aware
        whitening); `"azizi2024"`, Azizi et al., arXiv 2402.06004 (activation-aware, mixed ranks by energy, residual
        tensors); `"vtp"`, Zhu et al., arXiv 2104.08500 (neurons and heads pruned by learned scores, then fine-tuned);
        `"kumar2022"`, Kumar, arXiv 2203.13444 (the same for neurons, truncated SVD of attention, then fine-tuned).

        Raises:
            ConfigError: there is no preset of that name, or an override is wrong.
        """
        _preset(name)  # which None is not the name of
        return cls.from_dict({**overrides, "preset": name})

    @property
    def uses_labels(self) -> bool:
        """Whether labels of the images are put to use."""
        learns = self.compensation != "none" or self.criterion == "gates"
        own_loss = self.calibration_loss == "task" and self.needs_gradients
        return self.max_accuracy_drop is not None or own_loss or bool(learns and self.label_weight)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without the settings that are `None` by default and still are."""
        values = asdict(self)
        defaults = {field.name: field.default for field in SETTINGS}
        return {name: value for name, value in values.items() if value is not None or defaults[name] is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "CompressionConfig":
        """The reverse of `to_dict`; `preset` may name a recipe to start from.

        Settings of earlier versions are taken up as far as they still exist under another name, with a
        `ConfigWarning`.

        Raises:
            ConfigError: a name is unknown, or a value is wrong.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"The settings must be a mapping of names to values, not {shown(values)}.")
        values = updated(values)
        if (preset := values.pop("preset", None)) is not None:
            values = {**_preset(preset), **values}
        known = [field.name for field in SETTINGS]
        for name in values:
            if name not in known:
                raise ConfigError(f"Unknown setting {shown(name)}.{did_you_mean(name, known)}")
        return cls(**values)

    def save(self, path: str | Path) -> None:
        """Write as YAML, or as JSON if the name ends in `.json`.

        Raises:
            OutputError: the file cannot be written.
        """
        save_settings(self.to_dict(), path)

    @classmethod
    def load(cls, path: str | Path) -> "CompressionConfig":
        """Read YAML or JSON; see `from_dict`."""
        return cls.from_dict(load_settings(path))


SETTINGS = fields_of(CompressionConfig)
"""Every setting, in the order of the groups."""


def load_settings(path: str | Path) -> dict[str, Any]:
    """The settings of a YAML or JSON file under today's names, otherwise unchecked.

    Raises:
        ConfigError: the file cannot be read, or it holds something else.
    """
    is_json = isinstance(path, str | Path) and Path(path).suffix == ".json"
    values = read_json(path, "config file") if is_json else read_yaml(path, "config file")
    if values is None:
        raise ConfigError(f"The config file {shown(str(path))} is empty; it must hold `name: value` lines.")
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ConfigError(f"The config file {shown(str(path))} must hold `name: value` lines.")
    return updated(values)


def save_settings(settings: Mapping[str, Any], path: str | Path) -> None:
    """Write what `load_settings` reads; see `CompressionConfig.save`."""
    text = json.dumps(settings, indent=2) if Path(path).suffix == ".json" else yaml.safe_dump(dict(settings))
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"The recipe cannot be written to {shown(str(path))}: {error.strerror}.") from error


def _preset(name: Any) -> dict[str, Any]:
    if not isinstance(name, str) or name not in PRESETS:
        raise ConfigError(f"Unknown preset {shown(name)}.{did_you_mean(name, PRESETS)} Presets: {', '.join(PRESETS)}.")
    return PRESETS[name]
