"""The example a newcomer runs first."""

import os
import subprocess
import sys
from pathlib import Path

from support.models import REPOSITORY


def test_the_quickstart_prints_its_table_and_saves_the_model(tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "examples" / "quickstart.py"), "--output", str(tmp_path / "small")]
    environment = {**os.environ, "COLUMNS": "120", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for row in (
        "parameters",
        "MACs per image",
        "top-1, n=500",
        "agreement",
        "KL measured",
        "KL predicted",
        "% kept",
    ):
        assert row in done.stdout
    assert "pipeline() on the saved folder: a 4 (truth: 4)" in done.stdout
    assert (tmp_path / "small" / "model.safetensors").is_file()
