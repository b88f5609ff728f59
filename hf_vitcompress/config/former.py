"""Settings of earlier versions: saved recipes name them, and still load."""

import warnings
from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError, ConfigWarning, shown

RENAMED = {"selector": "criterion"}
"""Former name → today's."""

FIXED: dict[str, float] = {"crop": 0.0, "cache_megabytes": 1024, "gate_learning_rate": 0.05}
"""Settings that became constants, with their values."""

DURATIONS = {
    "compensation_duration": ("compensation_epochs", "compensation_minutes"),
    "gate_duration": ("gate_epochs", "gate_minutes"),
}
"""Today's duration → the two settings that it was; the first one wins where both have a value."""


def renamed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with today's names for those that only have another one now."""
    return {RENAMED.get(name, name): value for name, value in settings.items()}


def updated(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings under today's names; warns of what became of those that have gone.

    Raises:
        ConfigError: a setting that is a constant now had another value, or both the former and today's name of one
            setting are given.
    """
    found = dict(settings)
    notes = [*_rename(found), *_merge_durations(found), *_replace_curves(found), *_drop_fixed(found)]
    if notes:
        warnings.warn(f"Settings of an earlier version: {'; '.join(notes)}.", ConfigWarning, stacklevel=3)
    return found


def _rename(found: dict[str, Any]) -> list[str]:
    names = [name for name in RENAMED if name in found]
    for name in names:
        _set(found, RENAMED[name], found.pop(name), name)
    return [f"{name} is called {RENAMED[name]} now" for name in names]


def _merge_durations(found: dict[str, Any]) -> list[str]:
    notes = []
    for duration, former in DURATIONS.items():
        given = {name: found.pop(name) for name in former if name in found}
        used = {name: value for name, value in given.items() if value is not None}
        if used:
            name, value = next(iter(used.items()))
            if not isinstance(value, int | float | str):
                raise ConfigError(f"{name} must be a number, not {shown(value)}; it is called {duration} now.")
            text = f"{value} {name.rpartition('_')[2]}".replace(".0 ", " ")
            _set(found, duration, text, name)
            notes.append(f"{' and '.join(given)} became {duration}, here {shown(text)}")
    return notes


def _replace_curves(found: dict[str, Any]) -> list[str]:
    if "correct_curves" not in found:
        return []
    if not found.pop("correct_curves"):
        found["measuring_images"] = 0
    return ["correct_curves became measuring_images, of which 0 corrects nothing"]


def _drop_fixed(found: dict[str, Any]) -> list[str]:
    names = [name for name in FIXED if name in found]
    for name in names:
        if (value := found.pop(name)) != FIXED[name]:
            raise ConfigError(
                f"{name} is no setting any more: it is always {FIXED[name]:g}, not {shown(value)}. Leave it out, or "
                "use the version of this package that wrote the recipe."
            )
    return [f"{name} is always {FIXED[name]:g} now" for name in names]


def _set(found: dict[str, Any], name: str, value: Any, former: str) -> None:
    if found.get(name) is not None:
        raise ConfigError(f"{former} and {name} are both given; they are one setting. Leave {former} out.")
    found[name] = value
