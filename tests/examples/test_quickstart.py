"""The example a newcomer runs first."""

import runpy
import sys
from pathlib import Path

import pytest

from support.models import REPOSITORY


def test_the_quickstart_prints_its_table_and_saves_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = str(REPOSITORY / "examples" / "quickstart.py")
    monkeypatch.setattr(sys, "argv", [script, "--output", str(tmp_path / "small")])
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)
    runpy.run_path(script, run_name="__main__")
    printed = capsys.readouterr().out
    for row in (
        "parameters",
        "MACs per image",
        "top-1, n=500",
        "agreement",
        "KL measured",
        "KL predicted",
        "% kept",
    ):
        assert row in printed
    assert "pipeline() on the saved folder: a 4 (truth: 4)" in printed
    assert (tmp_path / "small" / "model.safetensors").is_file()
