"""Blocks of code in Markdown pages, and how each is run in a folder where every name in it stands for something."""

import re
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from hf_vitcompress import CompressionConfig, cli
from support.models import REPOSITORY
from support.processes import environment

PAGES = sorted([REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *(REPOSITORY / "docs").rglob("*.md")])

BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?```(?P<language>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
"""A page says above a block why it is not run: `<!-- not run: needs a GPU -->`."""

PROCESSES = 2
"""How many start, whatever number stands behind `--num_processes` and `--nproc-per-node`."""
FEWER = ["--measuring-images", "0"]
"""What these processes are told besides, because the photos are few."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        page: the file.
        line: where its code begins, 1 for the first.
        reason: why the page says that it is not run; `None` if it is.
    """

    page: Path
    line: int
    language: str
    code: str
    reason: str | None

    def __str__(self) -> str:
        return f"{name_of(self.page)}:{self.line}"


def name_of(page: Path) -> str:
    return page.relative_to(REPOSITORY).as_posix()


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, found.start("code")) + 1, found["language"], found["code"], found["reason"])
        for found in BLOCK.finditer(text)
    ]


@dataclass
class Reader:
    """Somebody who types in all blocks of a page, in one folder and one interpreter.

    Attributes:
        folder: the working directory.
        names: what the Python blocks have defined.
        launched: whether several processes were started. That takes ten seconds, so it is done once; what further
            commands would start runs in this process.
    """

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    names: dict[str, Any] = field(default_factory=dict)
    launched: bool = False

    def run(self, block: Block) -> None:
        """Run a block as its language says.

        Raises:
            KeyError: the language, or the command in a terminal, is not one that this reader knows.
        """
        {"python": self._python, "bash": self._bash, "yaml": self._yaml, "text": self._text}[block.language](block)

    def _python(self, block: Block) -> None:
        code = "\n" * (block.line - 1) + block.code  # errors then show the line of the page
        exec(compile(code, str(block.page), "exec"), self.names)

    def _bash(self, block: Block) -> None:
        for words in commands(block.code):
            run = next((run for start, run in COMMANDS.items() if " ".join(words).startswith(start)), None)
            if run is None:
                raise KeyError(f"{block}: nothing runs {shlex.join(words)!r}")
            run(self, words)

    def _yaml(self, block: Block) -> None:
        """A recipe, whose first line names its file."""
        CompressionConfig.from_dict(yaml.safe_load(block.code))
        (self.folder / block.code.partition("\n")[0].removeprefix("# ")).write_text(block.code, encoding="utf-8")

    def _text(self, block: Block) -> None:
        """Formulas and the like: nothing to run."""

    def vitcompress(self, words: list[str]) -> None:
        self.monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code, shlex.join(words)

    def script(self, words: list[str]) -> None:
        """`tests/examples` runs the scripts; the script must know the flags."""
        text = (self.folder / words[1]).read_text(encoding="utf-8")
        for flag in (word for word in words if word.startswith("--")):
            assert f'"{flag}"' in text, flag

    def several_processes(self, words: list[str]) -> None:
        if self.launched:
            start = words.index("hf_vitcompress")
            self.vitcompress(["vitcompress", *words[start + 1 :]])
            return
        self.launched = True
        for flag in ("--num_processes", "--nproc-per-node"):
            if flag in words:
                words[words.index(flag) + 1] = str(PROCESSES)
        with self.monkeypatch.context() as patch:
            for name, value in environment(HF_HUB_OFFLINE=1).items():
                patch.setenv(name, value)
            LAUNCHERS[words[0]]([*words[1:], *FEWER])

    def target(self, words: list[str]) -> None:
        """`make …` is not run, because it makes an environment; the target must be there."""
        makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
        for target in (word for word in words[1:] if "=" not in word):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target

    def tests(self, words: list[str]) -> None:
        """Tests do not run tests; the folders must be there."""
        for folder in (word for word in words if word.startswith("tests/")):
            assert (REPOSITORY / folder).is_dir(), folder

    def nothing(self, words: list[str]) -> None:
        """What would download something, or go on until it is stopped, is not run."""


def accelerate(words: list[str]) -> None:
    """`accelerate launch …`, whose own start would take as long as that of a process that it launches."""
    from accelerate.commands.launch import launch_command, launch_command_parser

    launch_command(launch_command_parser().parse_args(words[1:]))


def torchrun(words: list[str]) -> None:
    from torch.distributed.run import main

    main(["--standalone", *words])


LAUNCHERS = {"accelerate": accelerate, "torchrun": torchrun}


def commands(code: str) -> Iterator[list[str]]:
    """The words of each command, without comments."""
    for line in code.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


COMMANDS: dict[str, Callable[[Reader, list[str]], None]] = {
    "vitcompress ": Reader.vitcompress,
    "accelerate launch ": Reader.several_processes,
    "torchrun ": Reader.several_processes,
    "python examples/": Reader.script,
    "make ": Reader.target,
    ".venv/bin/python -m pytest ": Reader.tests,
    "pip install ": Reader.nothing,
}
"""By the first words of a command; another one in a page is an error."""
