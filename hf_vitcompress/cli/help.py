"""`--help` with a heading for each group of flags, and every flag whole: typer's own tables cut off long names."""

from typing import Any

from typer.core import TyperCommand

from .checks import check_paths, check_words


class GroupedCommand(TyperCommand):
    """A command whose flags are listed under the titles that they name as `rich_help_panel`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the words of the command line; empty ones are refused."""
        check_words(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command, unless a path cannot be one."""
        check_paths(ctx.params)
        return super().invoke(ctx)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the sections of arguments and flags."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                sections.setdefault(_title(parameter), []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


def _title(parameter: Any) -> str:
    default = "Arguments" if parameter.param_type_name == "argument" else "Options"
    return getattr(parameter, "rich_help_panel", None) or default


GROUPED: dict[str, Any] = {"cls": GroupedCommand, "context_settings": {"max_content_width": 120}}
"""What `app.command` takes: headings, and lines as wide as the terminal up to 120 columns."""
