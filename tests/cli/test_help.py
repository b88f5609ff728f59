"""`--help`, as a terminal shows it."""

import re
from dataclasses import fields

import pytest

from hf_vitcompress import CompressionConfig
from hf_vitcompress.config import GROUPS, fields_of
from support.terminal import Run, running_commands  # noqa: F401  (the fixture "run")

RECIPE_FLAGS = [
    *("--" + field.name.replace("_", "-") for field in fields(CompressionConfig)),
    *("--config", "--preset", "--no-correct-bias", "--no-repair"),
]
COMMANDS = {
    "compress": [*RECIPE_FLAGS, "--output", "--plan", "--test", "--latency"],
    "inspect": [*RECIPE_FLAGS, "--figure"],
    "plan": [*RECIPE_FLAGS, "--output"],
    "evaluate": ["--data", "--against", "--latency", "--json", "--precision", "--batch-size", "--update-card"],
    "quantize": ["--output", "--scheme", "--overwrite"],
    "export": ["--to", "--output", "--against", "--max-batch", "--json"],
    "push": ["--private", "--revision", "--create-pr", "--token", "--commit-message", "--max-shard-size", "--tag"],
}


def help_of(run: Run, monkeypatch: pytest.MonkeyPatch, command: str, columns: int) -> str:
    """What a terminal of that width shows, without colours."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERMINAL_WIDTH", str(columns))
    done = run(*filter(None, [command]), "--help")
    assert done.code == 0
    return re.sub(r"\x1b\[[0-9;]*m", "", done.out)


@pytest.mark.parametrize("command", ["", *COMMANDS])
@pytest.mark.parametrize("columns", [80, 120])
def test_help_names_every_setting(command: str, columns: int, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is cut off would be of no use."""
    text = help_of(run, monkeypatch, command, columns)
    assert not [name for name in COMMANDS.get(command, COMMANDS) if name not in text]
    assert max(map(len, text.splitlines())) <= columns


@pytest.mark.parametrize("command", ["compress", "inspect", "plan"])
def test_help_shows_the_recipe_in_groups(command: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    text = help_of(run, monkeypatch, command, 80)
    titles = re.findall(r"^(\w+):$", text, flags=re.MULTILINE)
    assert titles == ["Arguments", "Options", "Recipe", *GROUPS]
    for title, group in GROUPS.items():
        section = text.partition(f"\n{title}:\n")[2].partition("\n\n")[0]
        flags = re.findall(r"^  --([\w-]+)", section, flags=re.MULTILINE)
        assert [flag.replace("-", "_") for flag in flags] == [setting.name for setting in fields_of(group)]


def test_help_tells_meanings_defaults_and_baselines(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(help_of(run, monkeypatch, "plan", 80).split())
    assert "Images in a calibration batch. Default: 16." in text
    assert "Move the mean of each layer's error into its bias. Default: on." in text
    assert "Not given: 5 minutes." in text
    assert "Patterns of the layers to leave dense. May be repeated." in text
    own, _, baselines = text.partition("Baselines (other people's methods):")
    assert "default, low_rank." in own
    assert baselines.startswith(" svd, fwsvd, svd_llm, azizi2024, vtp, kumar2022.")
