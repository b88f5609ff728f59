"""Print constraints: every dependency in pyproject.toml at the lower end of its range, and those of the extras named.

torch is left out: requirements/torch.txt pins it.
"""

import re
import sys
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
LOWER_END = re.compile(r"(?P<name>[\w.-]+)(\[.*\])?\s*>=\s*(?P<version>[\w.]+)")


def lower_ends(requirements: list[str]) -> dict[str, str]:
    """Version by name, of those that have a lower end."""
    found = [match for text in requirements if (match := LOWER_END.match(text))]
    return {match["name"]: match["version"] for match in found if match["name"] != "torch"}


def main(extras: list[str]) -> None:
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    # The extras come last: theirs are the higher ends.
    named = [text for extra in extras for text in project["optional-dependencies"][extra]]
    for name, version in lower_ends([*project["dependencies"], *named]).items():
        print(f"{name}=={version}")


if __name__ == "__main__":
    main(sys.argv[1:])
