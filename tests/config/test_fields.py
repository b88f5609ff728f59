"""Each setting says beside itself what it means and what it accepts; checks, `help()` and signature follow."""

import inspect
import pydoc
from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest

from hf_vitcompress import CompressionConfig
from hf_vitcompress.config import GROUPS, SETTINGS, Doc, Range, fields_of
from hf_vitcompress.config.fields import DurationText, documented
from hf_vitcompress.errors import ConfigError


@documented
@dataclass(frozen=True)
class Oven:
    """How to bake."""

    heat: Annotated[float, Range(0, 300, low_open=True), Doc("Degrees, in `C`.")] = 180.0
    loaves: Annotated[int | None, Range(1), Doc("Loaves at a time.")] = None
    time: Annotated[str, DurationText(), Doc("How long.")] = "40 minutes"
    seeds: Annotated[list[str], Doc("What is strewn on top.")] = field(default_factory=list)


HEAT, LOAVES, TIME, SEEDS = fields_of(Oven)


def test_a_field_is_read_from_its_annotation() -> None:
    assert (HEAT.name, HEAT.type, HEAT.kind, HEAT.default) == ("heat", float, float, 180.0)
    assert (HEAT.doc, HEAT.rules) == ("Degrees, in `C`.", (Range(0, 300, low_open=True),))
    assert (LOAVES.type, LOAVES.kind, LOAVES.default) == (int | None, int, None)
    assert SEEDS.default == []


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        (HEAT, 0, r"heat must lie in \(0, 300\], not 0"),
        (HEAT, 300.5, r"heat must lie in \(0, 300\], not 300\.5"),
        (HEAT, float("nan"), "heat must lie"),
        (HEAT, "hot", "heat must be a number, not 'hot'"),
        (HEAT, True, "heat must be a number, not True"),
        (HEAT, None, "heat must be a number, not None"),
        (LOAVES, 0, "loaves must be at least 1, not 0"),
        (LOAVES, float("inf"), "loaves must be a whole number"),
        (LOAVES, "2", "loaves must be a whole number"),
        (TIME, "a while", "time: 'a while' is no duration"),
        (TIME, 40, "time must be text, not 40"),
        (SEEDS, "poppy", "seeds must be a list"),
    ],
)
def test_a_value_outside_is_refused(setting: Any, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        setting.checked(value)


@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    [
        (HEAT, 300, 300),
        (HEAT, "1e2", 100.0),
        (LOAVES, None, None),
        (LOAVES, 10**400, 10**400),
        (TIME, "1 epoch", "1 epoch"),
        (SEEDS, ["poppy"], ["poppy"]),
    ],
)
def test_a_value_inside_is_taken(setting: Any, value: Any, expected: Any) -> None:
    assert setting.checked(value) == expected


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Range(0), "at least 0"),
        (Range(0, low_open=True), "above 0"),
        (Range(0, 1), r"\[0, 1\]"),
        (Range(0, 1, low_open=True), r"\(0, 1\]"),
    ],
)
def test_a_range_says_what_it_is(limits: Range, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        limits.check("x", float("nan"))
    with pytest.raises(ConfigError, match=message):
        limits.check("x", -0.1)
    with pytest.raises(ConfigError, match=message):
        limits.check("x", float("inf"))


def test_the_docstring_ends_with_the_settings() -> None:
    assert inspect.getdoc(Oven) == (
        "How to bake.\n\nAttributes:\n    heat: Degrees, in `C`.\n    loaves: Loaves at a time.\n    time: How long.\n"
        "    seeds: What is strewn on top."
    )
    parameter = inspect.signature(Oven).parameters["heat"]
    assert (parameter.annotation, parameter.default) == (float, 180.0)


# ---- CompressionConfig


def test_every_setting_is_in_one_group_and_documented() -> None:
    names = [setting.name for group in GROUPS.values() for setting in fields_of(group)]
    assert names == [setting.name for setting in SETTINGS]
    assert len(names) == len(set(names)) == 44
    for setting in SETTINGS:
        assert setting.doc[0].isupper() or setting.doc[0] == "`", setting.name
        assert setting.doc.endswith("."), setting.name


def test_numbers_have_a_range_and_defaults_are_in_it() -> None:
    for setting in SETTINGS:
        assert setting.kind not in (int, float) or setting.rules, setting.name
        assert setting.checked(setting.default) == setting.default


def test_help_shows_every_setting() -> None:
    shown = pydoc.plain(pydoc.render_doc(CompressionConfig))
    words = " ".join(shown.replace("|", " ").split())
    assert not [setting.name for setting in SETTINGS if f" {setting.name}: {setting.doc}" not in words]
