"""Arguments of Python calls: of another kind than a function takes, they are refused by name before they do harm."""

from typing import Any

from ..errors import ConfigError, shown


def require(name: str, value: Any, kind: type | tuple[type, ...], remedy: str) -> None:
    """Refuse a value of another kind.

    Args:
        name: of the argument.
        kind: as `isinstance` takes it.
        remedy: a sentence that says how to make one.

    Raises:
        ConfigError: the value is of another kind.
    """
    if not isinstance(value, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        names = " or ".join("None" if one is type(None) else one.__name__ for one in kinds)
        raise ConfigError(f"{name} must be {names}, not {shown(value)}. {remedy}")


def require_count(name: str, value: Any) -> None:
    """Refuse what is no whole number above 0.

    Raises:
        ConfigError: it is not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name} must be a whole number above 0, not {shown(value)}.")
