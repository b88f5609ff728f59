"""What is wrong with the words of a command line, whatever the command."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from ..config import CompressionConfig
from ..errors import ConfigError, shown
from ..runtime.files import LONGEST_NAME

PATH_BYTES = 4095
"""What systems take of a path."""

PATHS = ("model", "data", "against", "test", "validation", "folder", "plan", "config_file", "metric")
"""Arguments that name what is read."""


def check_words(words: Sequence[str]) -> None:
    """Refuse empty words, whatever the flag: they are variables of the shell that were never set.

    Raises:
        typer.BadParameter: naming the flag.
    """
    for before, word in zip(["", *words], words, strict=False):
        if not word.strip() or (word.startswith("--") and word.endswith("=")):
            flag = word.strip().removesuffix("=") or before
            hint = flag if flag.startswith("-") else "an argument"
            raise typer.BadParameter("it is empty. If it comes from a variable, that is not set.", param_hint=hint)


def check_paths(arguments: Mapping[str, Any]) -> None:
    """Refuse names of inputs that no file can have.

    Raises:
        ConfigError: naming the argument.
    """
    for argument, value in arguments.items():
        for name in value if isinstance(value, list) else [value]:
            if argument in PATHS and isinstance(name, str | Path):
                _check_name(argument, str(name))


def check_use_of(validation: str | None, config: CompressionConfig) -> None:
    """Refuse validation images that no search would look at.

    Raises:
        ConfigError: the budget is not `max_accuracy_drop`.
    """
    if validation is not None and config.budget != "max_accuracy_drop":
        raise ConfigError(
            f"--validation holds the images to search --max-accuracy-drop on, and the budget is {config.budget}. Leave "
            "it out; --test judges the result."
        )


def _check_name(argument: str, name: str) -> None:
    longest = max(len(os.fsencode(part)) for part in name.split("/"))
    if longest > LONGEST_NAME or len(os.fsencode(name)) > PATH_BYTES:
        called = argument.replace("_", " ")
        raise ConfigError(f"The {called} {shown(name)} has a name of {longest} bytes; {LONGEST_NAME} are taken.")
