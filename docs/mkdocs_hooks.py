"""What mkdocs adds to the pages: every flag and setting, and the results and cards that lie beside `docs/`."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from hf_vitcompress.cli import app
from hf_vitcompress.cli.recipe import PANELS
from hf_vitcompress.config import GROUPS, fields_of
from hf_vitcompress.report.tables import markdown_table

BESIDE = ("CONTRIBUTING.md", "benchmarks/results/*.md", "benchmarks/results/*.png", "model_cards/*/*.*")
"""Files outside `docs/` that pages link to, as `../benchmarks/…` from a page there."""

COMMANDS, SETTINGS = "<!-- commands -->", "<!-- settings -->"
RECIPE_COMMAND = "compress"
"""Its flags of the recipe are those of the other commands that take a recipe."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Take the files of `BESIDE` into the site, at the same place as in the repository."""
    root = Path(config.config_file_path).parent
    for path in sorted(path for pattern in BESIDE for path in root.glob(pattern)):
        files.append(File.generated(config, path.relative_to(root).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links to files beside `docs/` lead to their place in the site, and write out flags and settings."""
    if page.file.generated_by is None:
        markdown = re.sub(r"\]\(\.\./((?:\.\./)*(?:benchmarks|model_cards|CONTRIBUTING\.md))", r"](\1", markdown)
    else:  # these files lie where `docs/` does
        markdown = markdown.replace("](docs/", "](")
    for mark, text in {COMMANDS: commands, SETTINGS: settings}.items():
        if mark in markdown:
            markdown = markdown.replace(mark, text())
    return markdown


def settings() -> str:
    """Markdown: every setting with its default and its meaning, in its group."""
    sections = []
    for title, group in GROUPS.items():
        rows = [(f"`{field.name}`", f"`{field.default!r}`", _escaped(field.doc)) for field in fields_of(group)]
        sections += [f"### {title}", group.__doc__ or "", markdown_table(("setting", "default", "meaning"), rows)]
    return "\n\n".join(sections)


def commands() -> str:
    """Markdown: every command with its arguments and flags; those of a recipe once, at the end."""
    found = typer.main.get_command(app).commands
    sections = [section for name, command in found.items() for section in _command(name, command)]
    recipe = _recipe()
    sections += [
        "## Flags of the recipe",
        "Each flag is also a line of a YAML file (`--config`) and a field of `CompressionConfig`; see "
        "[Recipes](recipes.md).",
    ]
    for panel in dict.fromkeys(map(_panel, recipe)):
        sections += [f"### {panel}", _table([parameter for parameter in recipe if _panel(parameter) == panel])]
    return "\n\n".join(sections)


def recipe_flags() -> list[str]:
    """The first name of each flag that stands for a setting."""
    return [parameter.opts[0] for parameter in _recipe()]


def _recipe() -> list[Any]:
    """Its flags stand in panels of their own."""
    return [p for p in typer.main.get_command(app).commands[RECIPE_COMMAND].params if _panel(p) in PANELS]


def _command(name: str, command: Any) -> Iterator[str]:
    own = [parameter for parameter in command.params if _panel(parameter) not in PANELS]
    arguments = " ".join(p.metavar for p in own if p.param_type_name == "argument")
    yield f"## vitcompress {name}"
    yield f"```text\nvitcompress {name} {arguments} [FLAGS]\n```"
    yield command.help.replace("Example: ", "Example: `") + "`"
    yield _table(own)
    if len(own) < len(command.params):
        yield "Further flags: [those of the recipe](#flags-of-the-recipe)."


def _panel(parameter: Any) -> str | None:
    return getattr(parameter, "rich_help_panel", None)


def _table(parameters: list[Any]) -> str:
    rows = [(_names(p), _escaped(p.help or "").replace("*", "\\*")) for p in parameters]
    return markdown_table(("flag", "meaning"), rows)


def _names(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.metavar}`"
    return ", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
