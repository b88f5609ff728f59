"""The example of fine-tuning and compression, as a user runs it."""

import subprocess
import sys
from pathlib import Path

from transformers import AutoImageProcessor, AutoModelForImageClassification

from support.models import DIGITS, REPOSITORY
from support.processes import environment


def test_the_example_prints_a_table_and_saves_the_model(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", str(REPOSITORY / "examples" / "finetune_and_compress.py")]
    command += ["--train", str(DIGITS / "calibration.parquet"), "--test", str(DIGITS / "test.parquet")]
    command += ["--keep-ratio", "0.3", "--rank-multiple", "2", "--dense-epochs", "0.5", "--recovery-epochs", "0.5"]
    result = subprocess.run(
        [*command, "--output", str(tmp_path / "small")],
        env=environment(HF_HUB_OFFLINE=1, HF_HOME=tmp_path),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    row = next(line for line in result.stdout.splitlines() if "accuracy" in line and "│" in line)
    values = [float(cell.strip(" %")) for cell in row.split("│")[2:5]]
    assert all(value > 90 for value in values)
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "small")
    assert model.num_parameters() / 205_002 < 0.3
    assert AutoImageProcessor.from_pretrained(tmp_path / "small") is not None
