"""The example of fine-tuning and compression, as a user runs it."""

import runpy
import sys
from pathlib import Path

import pytest
from transformers import AutoImageProcessor, AutoModelForImageClassification

from support.models import DIGITS, REPOSITORY


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # what Trainer and evaluate say of a CPU
def test_the_example_prints_a_table_and_saves_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = str(REPOSITORY / "examples" / "finetune_and_compress.py")
    command = [script, "--train", str(DIGITS / "calibration.parquet"), "--test", str(DIGITS / "test.parquet")]
    command += ["--keep-ratio", "0.3", "--rank-multiple", "2", "--dense-epochs", "0.5", "--recovery-epochs", "0.5"]
    monkeypatch.setattr(sys, "argv", [*command, "--output", str(tmp_path / "small")])
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)
    runpy.run_path(script, run_name="__main__")
    row = next(line for line in capsys.readouterr().out.splitlines() if "accuracy" in line and "│" in line)
    values = [float(cell.strip(" %")) for cell in row.split("│")[2:5]]
    assert all(value > 90 for value in values)
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "small")
    assert model.num_parameters() / 205_002 < 0.3
    assert AutoImageProcessor.from_pretrained(tmp_path / "small") is not None
