"""What is wrong with the words of a command line, whatever the command."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config import CompressionConfig
from ..errors import ConfigError, OutputError, shown
from ..runtime.files import LONGEST_NAME, check_file

MODEL = "the model"
"""What errors call the first argument."""

LONGEST_PATH = 4095
"""Bytes that file systems take."""

PATHS = ("model", "data", "against", "test", "validation", "folder", "plan", "profile", "config_file", "metric")
"""Arguments that name what is read."""

OUTPUTS = ("output", "statistics", "figure", "json_file")
"""Arguments that name what is written."""


def check_words(words: Sequence[str]) -> None:
    """Refuse blank words: they are variables of the shell that were never set.

    Raises:
        ConfigError: naming the flag.
    """
    for before, word in zip(["", *words], words, strict=False):
        flag = before if not word.strip() else word.strip().removesuffix("=")
        if not word.strip() or (word.startswith("--") and word.strip().endswith("=")):
            name = flag if flag.startswith("-") else "An argument"
            raise ConfigError(f"{name} is empty; give a value, or leave it out. Was a variable of the shell not set?")


def check_paths(arguments: Mapping[str, Any]) -> None:
    """Refuse names that no file can have.

    Raises:
        ConfigError, OutputError: naming the argument.
    """
    for argument, value in arguments.items():
        for text in value if isinstance(value, list) else [value]:
            if argument in PATHS + OUTPUTS and isinstance(text, str | Path):
                _check_name(argument, str(text))


def check_use_of(validation: str | None, config: CompressionConfig) -> None:
    """Refuse validation images that no search would look at.

    Raises:
        ConfigError: the budget is not `max_accuracy_drop`.
    """
    if validation is not None and not config.searches_accuracy:
        raise ConfigError(
            "--validation holds the images to search --max-accuracy-drop on, and the budget is "
            f"{' and '.join(config.budgets)}. Leave it out; --test judges the result."
        )


def check_plan_alone(budgets: Sequence[str]) -> None:
    """Refuse flags of budgets beside `--plan`.

    Raises:
        ConfigError: naming them.
    """
    if budgets:
        flags = " and ".join(f"--{name.replace('_', '-')}" for name in budgets)
        raise ConfigError(f"--plan takes the place of a budget: leave out {flags}, or the plan.")


def check_inspection(config: CompressionConfig) -> None:
    """Refuse a budget that is not one of costs.

    Raises:
        ConfigError: it is `max_accuracy_drop`.
    """
    if config.searches_accuracy:
        raise ConfigError(
            "inspect shows the loss to expect over all budgets, and --max-accuracy-drop is searched on answers. Leave "
            "it out here; `vitcompress compress` and `vitcompress plan` search it."
        )


def check_renewal(
    output: Path, inputs: Mapping[str, Any], overwrite: bool, what: str, is_one: Callable[[Path], bool]
) -> None:
    """Refuse a file that cannot be written, or would replace more than `--overwrite` allows.

    Args:
        inputs: as of `runtime.files.check_file`; the output may lie inside the model's folder.
        what: `--overwrite` replaces, such as `"plan"`.
        is_one: whether a file is that.

    Raises:
        OutputError: saying which of them it is.
    """
    check_file(output, inputs, beside=(MODEL,), renews=lambda _: True)
    if not output.exists():
        return
    if not is_one(output):
        raise OutputError(
            f"{shown(str(output))} exists and would be replaced, and is no {what} that can be read; --overwrite "
            "replaces nothing else. Choose another name, or remove it first."
        )
    if not overwrite:
        raise OutputError(
            f"{shown(str(output))} exists and would be replaced. Choose another name, or give --overwrite, which "
            f"replaces an earlier {what}."
        )


def _check_name(argument: str, text: str) -> None:
    writes = argument in OUTPUTS
    longest = max(len(os.fsencode(part)) for part in text.split("/"))
    if longest > LONGEST_NAME or len(os.fsencode(text)) > LONGEST_PATH:
        kind = OutputError if writes else ConfigError
        raise kind(f"The {argument} {shown(text)} is too long a name: {longest} bytes, where {LONGEST_NAME} are taken.")
