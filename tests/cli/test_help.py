"""`--help`, as a terminal shows it."""

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from hf_vitcompress import CompressionConfig
from hf_vitcompress.config import GROUPS, fields_of
from support.processes import environment
from support.terminal import Run, running_commands  # noqa: F401  (the fixture "run")

RECIPE_FLAGS = [
    *("--" + field.name.replace("_", "-") for field in fields(CompressionConfig)),
    *("--config", "--preset", "--no-correct-bias", "--no-repair"),
]
COMMANDS = {
    "compress": [*RECIPE_FLAGS, "--output", "--plan", "--profile", "--test", "--latency"],
    "inspect": [*RECIPE_FLAGS, "--figure", "--profile"],
    "profile": ["OUTPUT", "--latency-batch-size", "--target", "--skip-modules", "--config", "--overwrite"],
    "plan": [*RECIPE_FLAGS, "--output", "--profile"],
    "evaluate": [
        "--data",
        "--against",
        "--latency",
        "--metric",
        "--json",
        "--precision",
        "--batch-size",
        "--update-card",
    ],
    "quantize": ["--output", "--scheme", "--overwrite"],
    "export": ["--to", "--output", "--against", "--max-batch", "--json"],
    "convert": ["OUTPUT", "--to", "--overwrite"],
    "push": ["--private", "--revision", "--create-pr", "--token", "--commit-message", "--max-shard-size", "--tag"],
}


WITH_RECIPE = ("compress", "inspect", "plan")


def help_of(run: Run, monkeypatch: pytest.MonkeyPatch, command: str, columns: int = 80, flag: str | None = None) -> str:
    """What a terminal of that width shows of all flags, or after `flag`, without colours."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERMINAL_WIDTH", str(columns))
    done = run(*filter(None, [command]), flag or ("--help-all" if command in WITH_RECIPE else "--help"))
    assert done.code == 0
    return re.sub(r"\x1b\[[0-9;]*m", "", done.out)


@pytest.mark.parametrize("command", ["", *COMMANDS])
@pytest.mark.parametrize("columns", [80, 120])
def test_help_names_every_setting(command: str, columns: int, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is cut off would be of no use."""
    text = help_of(run, monkeypatch, command, columns)
    assert not [name for name in COMMANDS.get(command, COMMANDS) if name not in text]
    assert max(map(len, text.splitlines())) <= columns


@pytest.mark.parametrize("command", WITH_RECIPE)
def test_help_shows_the_recipe_in_groups(command: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    text = help_of(run, monkeypatch, command)
    titles = re.findall(r"^(\w+):$", text, flags=re.MULTILINE)
    assert titles == ["Arguments", "Options", "Images", "Recipe", *GROUPS]
    for title, group in GROUPS.items():
        section = text.partition(f"\n{title}:\n")[2].partition("\n\n")[0]
        flags = re.findall(r"^  --([\w-]+)", section, flags=re.MULTILINE)
        assert [flag.replace("-", "_") for flag in flags] == [setting.name for setting in fields_of(group)]


def test_help_tells_meanings_defaults_and_baselines(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(help_of(run, monkeypatch, "plan").split())
    assert "Images in a calibration batch. Default: 16." in text
    assert "Move the mean of each layer's error into its bias. Default: on." in text
    assert "Not given: 5 minutes." in text
    assert "Patterns of the layers to leave dense. May be repeated." in text
    own, _, baselines = text.partition("Baselines (other people's methods):")
    assert "default, low_rank." in own
    assert baselines.startswith(" svd, fwsvd, svd_llm, azizi2024, vtp, kumar2022.")


def test_help_shows_the_flags_that_people_need_first(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    text = help_of(run, monkeypatch, "compress", flag="--help")
    flags = re.findall(r"^  (?:-\w, )?(--[\w-]+)", text, flags=re.MULTILINE)
    assert {"--output", "--data", "--keep-ratio", "--max-accuracy-drop", "--compensation", "--test"} <= set(flags)
    assert len({*flags} - {"--help", "--help-all"}) == 11
    further = re.search(r"^(\d+) further flags: vitcompress compress --help-all$", text, flags=re.MULTILINE)
    assert further is not None
    every = re.findall(r"^  (?:-\w, )?(--[\w-]+)", help_of(run, monkeypatch, "compress"), flags=re.MULTILINE)
    assert int(further[1]) == len(every) - len(flags)
    assert len(text.splitlines()) < 60


def test_an_example_can_be_copied_from_a_narrow_terminal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    text = help_of(run, monkeypatch, "inspect", columns=60, flag="--help")
    example = text.partition("Example: ")[2].partition("\n\n")[0]
    assert " ".join(example.split()) == "vitcompress inspect my-vit --data photos/ --statistics my-vit.safetensors"


def test_without_a_command_all_are_shown_whole_and_with_an_example(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = " ".join(run().out.split())
    assert not [name for name in COMMANDS if name not in out]
    assert "recipe, plan, figures and model card, in one commit." in out
    assert "Example: vitcompress compress facebook/" in out


@pytest.mark.parametrize("words", [["compress", "--help"], ["--version"], ["evaluate", "--hlep"]])
def test_help_imports_neither_torch_nor_transformers(words: list[str], tmp_path: Path) -> None:
    for name in ("torch", "transformers"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported')\n")
    variables = environment()
    variables["PYTHONPATH"] = f"{tmp_path}:{variables['PYTHONPATH']}"
    command = [sys.executable, "-m", "hf_vitcompress", *words]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60)
    assert "imported" not in done.stderr
    assert done.returncode == (2 if "--hlep" in words else 0)
