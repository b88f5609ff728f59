"""`vitcompress …` in the tests' own process."""

import re
import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest

from hf_vitcompress import cli


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture(name="run")
def running_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`vitcompress …` through its entry point."""

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["vitcompress", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return Outcome(code, *capsys.readouterr())

    return call


def one_line(text: str) -> str:
    """The error, which must be a single line on stderr and no traceback."""
    lines = [line for line in text.splitlines() if line.strip()]
    assert len(lines) == 1, text
    assert lines[0].startswith("error: ")
    return lines[0]


def without_bars(text: str) -> str:
    """Without the loading bars of transformers, which have no switch."""
    return "\n".join(line for line in re.split(r"[\r\n]", text) if "Loading weights" not in line)
