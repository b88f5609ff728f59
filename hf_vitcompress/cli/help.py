"""`--help`: headings for groups of flags, and every flag whole: typer's own tables cut off long names.

Of a recipe's dozens of flags `--help` shows those that people need first, and `--help-all` all.
"""

import textwrap
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from .checks import check_paths, check_words

IMAGES_PANEL = "Images"
"""Title of the flags that say which images are read."""

FIRST = (
    *("output", "data", "validation", "test", "statistics", "figure", "preset"),
    *("keep_ratio", "speedup", "max_accuracy_drop", "compensation", "compensation_duration"),
)
"""Names of the options that `--help` shows where there is a `--help-all`."""

EXAMPLE = "vitcompress compress facebook/deit-base-patch16-224 --data photos/ --keep-ratio 0.4 --output deit-40"

_ALL = f"{__name__}.all"


def _show_all(context: typer.Context, asked: bool) -> None:
    if asked:
        context.meta[_ALL] = True
        print(context.get_help())
        raise typer.Exit


HelpAll = Annotated[
    bool,
    typer.Option("--help-all", callback=_show_all, is_eager=True, help="Show every flag of this command and exit."),
]


class GroupedCommand(TyperCommand):
    """A command whose flags are listed under the titles that they name as `rich_help_panel`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the words of the command line; empty ones are refused."""
        check_words(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command, unless a path cannot be one; `--help` never comes here, and imports nothing."""
        check_paths(ctx.params)
        from ..auto_classes import introduce

        introduce()
        return super().invoke(ctx)

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        """Write what the command does, and an example that can be copied."""
        for paragraph in (self.help or "").split("\n\n"):
            formatter.write_paragraph()
            with formatter.indentation():
                _write_words(formatter, paragraph)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the sections of arguments and flags."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and (self._shows_all(ctx) or _comes_first(parameter)):
                sections.setdefault(_title(parameter), []).append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Say how many flags are left, and what shows them."""
        left = 0 if self._shows_all(ctx) else sum(not _comes_first(parameter) for parameter in self.get_params(ctx))
        if left:
            formatter.write_paragraph()
            formatter.write_text(f"{left} further flags: {ctx.command_path} --help-all")

    def _shows_all(self, ctx: Any) -> bool:
        return _ALL in ctx.meta or not any(parameter.name == "help_all" for parameter in self.params)


class Commands(TyperGroup):
    """All commands, each with its whole first sentence, and an example."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a line for each command."""
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, (command.help or "").partition("\n")[0]) for name, command in self.commands.items()]
            )

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the example, and where there are more."""
        with formatter.section("Example"):
            _write_words(formatter, EXAMPLE)
        formatter.write_paragraph()
        formatter.write_text("`vitcompress COMMAND --help` shows the flags of a command and another example.")


def _write_words(formatter: Any, text: str) -> None:
    """Write a paragraph that breaks between words, and never inside a flag or a name of a model."""
    margin = " " * formatter.current_indent
    lines = textwrap.wrap(
        " ".join(text.split()),
        formatter.width,
        initial_indent=margin,
        subsequent_indent=margin,
        break_on_hyphens=False,
        break_long_words=False,
    )
    formatter.write("\n".join(lines) + "\n")


def _comes_first(parameter: Any) -> bool:
    return parameter.param_type_name == "argument" or parameter.name in ("help", "help_all", *FIRST)


def _title(parameter: Any) -> str:
    default = "Arguments" if parameter.param_type_name == "argument" else "Options"
    return getattr(parameter, "rich_help_panel", None) or default


GROUPED: dict[str, Any] = {"cls": GroupedCommand, "context_settings": {"max_content_width": 120}}
"""What `app.command` takes: headings, and lines as wide as the terminal up to 120 columns."""
