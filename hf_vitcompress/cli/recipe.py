"""The flags of a recipe, made from the settings of `CompressionConfig`; there is no second list."""

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, get_origin

import typer

from ..config import (
    BASELINES,
    BUDGETS,
    GROUPS,
    OWN_PRESETS,
    SETTINGS,
    CompressionConfig,
    SettingField,
    fields_of,
    load_settings,
)
from .checks import check_plan_alone
from .help import HelpAll

RECIPE_PANEL = "Recipe"
PANELS = (RECIPE_PANEL, *GROUPS)
"""Titles of the flags of a recipe."""

CONFIG_HELP = "YAML or JSON file of settings; flags win over it, and a flag of a budget over all its budgets."

PRESET_HELP = (
    f"Named recipe. This package's own: {', '.join(OWN_PRESETS)}. Baselines (other people's methods): "
    f"{', '.join(BASELINES)}."
)


def with_recipe(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command a flag for every setting of `CompressionConfig`, and pass it the config they make.

    Flags win over `--config`, which wins over `--preset`. Budgets that are given as flags are all that hold: those of
    the file are left out, because they would bound the new ones. So they are beside `--plan`, which takes their place.
    """
    return _with_flags(command, [field.name for field in SETTINGS], help_all=True)


def with_settings(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """`with_recipe` with flags for these settings alone; the others are those of `--config` and `--preset`."""
    return functools.partial(_with_flags, names=names, help_all=False)


def _with_flags(command: Callable[..., None], names: Sequence[str], help_all: bool) -> Callable[..., None]:
    """Args: help_all: whether the command has so many flags that `--help` shows a few."""

    @functools.wraps(command)
    def wrapper(**arguments: Any) -> None:
        flags = {name: arguments.pop(name) for name in names}
        file, preset = arguments.pop("config_file"), arguments.pop("preset")
        arguments.pop("help_all", None)  # which has been answered
        settings = {} if file is None else load_settings(file)
        if preset is not None:
            settings["preset"] = preset
        budgets = [name for name in BUDGETS if flags.get(name) is not None]
        if has_plan := arguments.get("plan") is not None:
            check_plan_alone(budgets)
        if budgets or has_plan:
            settings = {name: value for name, value in settings.items() if name not in BUDGETS}
        given = {name: value for name, value in flags.items() if value is not None and value != []}
        command(config=CompressionConfig.from_dict({**settings, **given}), **arguments)

    own = [p for p in inspect.signature(command).parameters.values() if p.name != "config"]
    all_flags = inspect.Parameter("help_all", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=HelpAll)
    shown = [*own, *([all_flags] if help_all else []), *_recipe_options(names)]
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in shown]
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapper


def _recipe_options(names: Sequence[str]) -> Iterator[inspect.Parameter]:
    yield _option("config_file", Path, "--config", CONFIG_HELP, RECIPE_PANEL)
    yield _option("preset", str, "--preset", PRESET_HELP, RECIPE_PANEL)
    for title, group in GROUPS.items():
        for field in fields_of(group):
            if field.name in names:
                yield _option(field.name, field.type, _flags(field), _help(field), title)


def _flags(field: SettingField) -> str:
    name = field.name.replace("_", "-")
    return f"--{name}/--no-{name}" if field.type is bool else f"--{name}"


def _help(field: SettingField) -> str:
    """The documentation without Markdown, and the default."""
    text = field.doc.replace("`None`", "Not given") if field.default is None else field.doc
    text = text.replace("`", "")
    if get_origin(field.kind) is list:
        return f"{text} May be repeated."
    if isinstance(field.default, bool):
        return f"{text} Default: {'on' if field.default else 'off'}."
    return text if field.default is None else f"{text} Default: {field.default}."


def _option(name: str, kind: Any, flag: str, help_text: str, panel: str) -> inspect.Parameter:
    """An option that is `None` where it is not given."""
    annotation = Annotated[kind | None, typer.Option(flag, help=help_text, rich_help_panel=panel, show_default=False)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
