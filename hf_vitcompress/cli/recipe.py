"""The flags of a recipe, made from the fields and the documentation of `CompressionConfig`; there is no second list."""

import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from ..config import BUDGETS, PRESETS, CompressionConfig, load_settings


def with_recipe(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command a flag for every field of `CompressionConfig`, and pass it the config they make.

    Flags win over `--config`, which wins over `--preset`.
    """
    hints = get_type_hints(CompressionConfig)
    documentation = _field_documentation()
    options: list[inspect.Parameter] = [
        _option("config_file", Path | None, "--config", "YAML or JSON file of settings; flags win over it.", "Recipe"),
        _option("preset", str | None, "--preset", f"Named recipe: {', '.join(PRESETS)}.", "Recipe"),
    ]
    for field in fields(CompressionConfig):
        name = "--" + field.name.replace("_", "-")
        names = f"{name}/--no-{name[2:]}" if hints[field.name] is bool else name
        help_text = documentation[field.name]
        if field.default not in (None, inspect.Parameter.empty) and isinstance(field.default, str | int | float):
            help_text += f" Default: {field.default}."
        options.append(_option(field.name, hints[field.name] | None, names, help_text, "Recipe"))

    @functools.wraps(command)
    def wrapper(**arguments: Any) -> None:
        flags = {field.name: arguments.pop(field.name) for field in fields(CompressionConfig)}
        file, preset = arguments.pop("config_file"), arguments.pop("preset")
        settings = {} if file is None else load_settings(file)
        if preset is not None:
            settings["preset"] = preset
        if any(flags[name] is not None for name in BUDGETS):
            settings = {name: value for name, value in settings.items() if name not in BUDGETS}
        given = {name: value for name, value in flags.items() if value is not None and value != []}
        command(config=CompressionConfig.from_dict({**settings, **given}), **arguments)

    own = [p for p in inspect.signature(command).parameters.values() if p.name != "config"]
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in [*own, *options]]
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapper


def _option(name: str, kind: Any, flag: str, help_text: str, panel: str) -> inspect.Parameter:
    annotation = Annotated[kind, typer.Option(flag, help=help_text, rich_help_panel=panel, show_default=False)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _field_documentation() -> dict[str, str]:
    """Field name → its paragraph in the docstring of `CompressionConfig`."""
    text = inspect.cleandoc(CompressionConfig.__doc__ or "").split("Attributes:\n")[1]
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", text, flags=re.MULTILINE)
    return {name: re.sub(r"\s+", " ", body).replace("`", "") for name, body in entries}
