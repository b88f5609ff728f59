"""What stands beside a setting: its documentation and its range; and how a value is held against them.

    damping: Annotated[float, Range(0, 1, low_open=True), Doc("Added to the eigenvalues …")] = 1e-6

The checks, `--help` and the documentation read this and nothing else.
"""

import dataclasses
import inspect
import math
import textwrap
from dataclasses import MISSING, dataclass
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from ..durations import Duration
from ..errors import ConfigError, shown

Class = TypeVar("Class", bound=type)


@dataclass(frozen=True)
class Doc:
    """What a setting means: sentences in Markdown."""

    text: str


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; without `low` itself if it is `low_open`, and always finite."""

    low: float
    high: float = math.inf
    low_open: bool = False

    def check(self, name: str, value: float) -> None:
        """Refuse a number that lies outside.

        Raises:
            ConfigError: it does, or it is not a number.
        """
        above = self.low < value if self.low_open else self.low <= value
        if above and value <= self.high and value < math.inf:
            return
        if self.high == math.inf:
            bound = f"be {'above' if self.low_open else 'at least'} {self.low}"
        else:
            bound = f"lie in {'(' if self.low_open else '['}{self.low}, {self.high}]"
        raise ConfigError(f"{name} must {bound}, not {shown(value)}.")


@dataclass(frozen=True)
class DurationText:
    """Text that `Duration.parse` reads, such as `"5 minutes"` or `"2 epochs"`."""

    def check(self, name: str, value: str) -> None:
        """Refuse text that is no duration.

        Raises:
            ConfigError: it is none.
        """
        try:
            Duration.parse(value)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from None


@dataclass(frozen=True)
class SettingField:
    """A setting as its class declares it.

    Attributes:
        name: of the field.
        type: without `Range` and `Doc`.
        default: its value if none is given.
        doc: what it means.
        rules: what its value must keep.
    """

    name: str
    type: Any
    default: Any
    doc: str
    rules: tuple[Range | DurationText, ...]

    @property
    def kind(self) -> Any:
        """The type without `None`."""
        return get_args(self.type)[0] if isinstance(self.type, UnionType) else self.type

    def checked(self, value: Any) -> Any:
        """The value as the setting takes it: text that is a number becomes one where a number is wanted.

        Raises:
            ConfigError: the value is of another type or outside its range.
        """
        if value is None and self.type is not self.kind:
            return None
        if self.kind is float:
            value = _number(value)
        _check_type(self.name, value, self.kind)
        for rule in self.rules:
            rule.check(self.name, value)
        return value


def fields_of(settings: type) -> tuple[SettingField, ...]:
    """The settings of a dataclass, in their order."""
    hints = get_type_hints(settings, include_extras=True)
    return tuple(_field(field, *get_args(hints[field.name])) for field in dataclasses.fields(settings))


def documented(settings: Class) -> Class:
    """Give a dataclass a docstring that ends with its settings, and a signature of plain types, for `help()`."""
    found = fields_of(settings)
    entries = [
        textwrap.fill(f"{field.name}: {field.doc}", 100, initial_indent=" " * 4, subsequent_indent=" " * 8)
        for field in found
    ]
    settings.__doc__ = "\n".join([inspect.cleandoc(settings.__doc__ or ""), "", "Attributes:", *entries])
    settings.__init__.__annotations__ = {**{field.name: field.type for field in found}, "return": None}  # type: ignore[misc]
    return settings


def _field(field: dataclasses.Field, kind: Any, *beside: Any) -> SettingField:
    default = field.default if field.default_factory is MISSING else field.default_factory()
    (doc,) = (entry.text for entry in beside if isinstance(entry, Doc))
    rules = tuple(entry for entry in beside if isinstance(entry, Range | DurationText))
    return SettingField(field.name, kind, default, doc, rules)


def _number(value: Any) -> Any:
    """YAML 1.1 takes `1e-6` for text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _check_type(name: str, value: Any, kind: Any) -> None:
    """Refuse a value of another type; an int is a float, but a bool is neither."""
    if get_origin(kind) is Literal:
        if not isinstance(value, str) or value not in get_args(kind):
            raise ConfigError(f"{name} is one of {', '.join(get_args(kind))}, not {shown(value)}.")
    elif get_origin(kind) is list:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ConfigError(f"{name} must be a list of patterns, not {shown(value)}.")
    elif not isinstance(value, int | float if kind is float else kind) or (
        isinstance(value, bool) and kind is not bool
    ):
        wanted = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[kind]
        raise ConfigError(f"{name} must be {wanted}, not {shown(value)}.")
