"""`vitcompress …` in the tests' own process, or in one of its own."""

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

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


def run_in(folder: Path, arguments: list[str], printed: str) -> None:
    """In that folder, in which a file of that name gets what is printed; see `support.processes.alone`."""
    torch.set_num_threads(1)
    os.chdir(folder)
    with open(printed, "w", encoding="utf-8") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
    sys.argv = ["vitcompress", *arguments]
    cli.main()


def one_line(text: str) -> str:
    """The error, which must be a single line on stderr and no traceback."""
    lines = [line for line in text.splitlines() if line.strip()]
    assert len(lines) == 1, text
    assert lines[0].startswith("error: ")
    return lines[0]


def without_bars(text: str) -> str:
    """Without the loading bars of transformers, which have no switch."""
    return "\n".join(line for line in re.split(r"[\r\n]", text) if "Loading weights" not in line)
