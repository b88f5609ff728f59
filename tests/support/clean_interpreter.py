"""Scripts in a process of their own that cannot see the tests, to show what works where the package is not imported."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


def run_script(script: str, folder: Path, variables: Mapping[str, str]) -> None:
    """Run it in `folder`, with these environment variables and one thread, and none that point Python to modules."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env={**environment, "OMP_NUM_THREADS": "1", **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
