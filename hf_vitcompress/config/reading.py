"""Recipes and plans, which people write, read within bounds: none hangs, fills memory or says two things at once."""

import json
import os
import stat
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError, one_line, shown

LARGEST = {".json": 2**24, ".yaml": 2**16}
"""Bytes of a file, by its format; YAML is read a hundred times slower, and nothing but recipes is written in it."""


def read_json(path: str | Path, what: str, remedy: str = "") -> Any:
    """The content of a JSON file.

    Args:
        what: the file is to be, for messages, such as `"plan"`.
        remedy: sentence that says how to get one that is JSON.

    Raises:
        ConfigError: the file cannot be read or is not JSON, is larger than 16 MiB, or gives a value twice.
    """
    text = _text_of(path, what, LARGEST[".json"])
    try:
        return json.loads(text, object_pairs_hook=_without_repetition)
    except (ValueError, RecursionError) as error:
        reason = f"The {what} {shown(str(path))} is not JSON that can be read: {one_line(error)}."
        raise ConfigError(f"{reason} {remedy}".rstrip()) from error


def read_yaml(path: str | Path, what: str) -> Any:
    """The content of a YAML file of plain data, without aliases, which could make gigabytes of a few lines.

    Args:
        what: the file is to be, for messages.

    Raises:
        ConfigError: the file cannot be read or is not YAML, is larger than 64 KiB, uses aliases or gives a value twice.
    """
    text = _text_of(path, what, LARGEST[".yaml"])
    try:
        return yaml.load(text, _PlainLoader)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"The {what} {shown(str(path))} is not YAML that can be read: {_reason(error)}.") from error


def _text_of(path: str | Path, what: str, largest: int) -> str:
    name = shown(str(path))
    if not isinstance(path, str | os.PathLike) or not str(path):
        raise ConfigError(f"Give the path of a {what}, not {shown(path)}.")
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
            raise ConfigError(f"The {what} {name} is {kind}; give a file.")
        with open(path, "rb") as file:
            content = file.read(largest + 1)
    except FileNotFoundError:
        raise ConfigError(f"There is no {what} {name}.") from None
    except (OSError, ValueError) as error:  # the latter is how Python refuses a NUL in a name
        raise ConfigError(f"The {what} {name} cannot be read: {_system_reason(error)}.") from None
    if len(content) > largest:
        raise ConfigError(f"The {what} {name} is larger than {largest // 1024} KiB, which none is. Give another file.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(
            f"The {what} {name} is not a text in UTF-8. Give another file, or save it as UTF-8."
        ) from None


def _system_reason(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)


def _reason(error: Exception) -> str:
    """The problem and its line, without the excerpt that PyYAML draws below them."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return one_line(error)
    said = [part for part in (getattr(error, "context", None), getattr(error, "problem", None)) if part]
    return f"{', '.join(said)} (line {mark.line + 1})"


def _without_repetition(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{shown(name)} is given twice")
        found[name] = value
    return found


class _PlainLoader(yaml.SafeLoader):
    """Of YAML what JSON can say, and comments."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(
                None, None, "aliases (*name) are not allowed; write the value out", self.peek_event().start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        found = super().construct_mapping(node, deep)
        if len(found) != len(node.value):
            names = Counter(self.construct_object(key, deep=True) for key, _ in node.value)
            twice = names.most_common(1)[0][0]
            raise yaml.constructor.ConstructorError(None, None, f"{shown(twice)} is given twice", node.start_mark)
        return found
