"""What else may help somebody whose flags were refused.

typer says what is wrong and names the nearest flag; this says where a flag belongs, and what shows the others.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

EVERYWHERE = ("--help", "--version")
"""Flags that are in their place before a command, too."""


def hints(commands: Mapping[str, Any], arguments: Sequence[str]) -> Iterator[str]:
    """Sentences about flags in the wrong place and numbers in another notation.

    Args:
        commands: typer's, by name.
        arguments: of the command line.
    """
    place = next((i for i, word in enumerate(arguments) if word in commands), len(arguments))
    command = arguments[place] if place < len(arguments) else None
    known = {name: _flags(found) for name, found in commands.items()}
    own = known.get(command or "", set())
    for i, word in enumerate(arguments):
        flag = word.partition("=")[0]
        owners = [name for name, flags in known.items() if flag in flags]
        if not flag.startswith("--") or flag in EVERYWHERE:
            continue
        if not owners:
            if "--help-all" in own:
                yield f"vitcompress {command} --help-all shows every flag."
            continue
        if i < place:
            yield f"{flag} belongs after the command: vitcompress {command or owners[0]} … {flag}"
        elif command is not None and command not in owners:
            yield f"{flag} is a flag of {' and '.join(owners)}, not of {command}."
    for word in arguments:
        if (number := _as_share(word.rpartition("=")[2])) is not None:
            yield f"Write {word.rpartition('=')[2]} as {number}."


def _flags(command: Any) -> set[str]:
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}


def _as_share(text: str) -> str | None:
    """`50%` and `0,5` as this program reads numbers; `None` for everything else."""
    plain = text.removesuffix("%").strip().replace(",", ".")
    try:
        value = float(plain)
    except ValueError:
        return None
    if text.endswith("%"):
        return f"{value / 100:g}"
    return f"{value:g}" if "," in text else None
