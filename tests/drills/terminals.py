"""Terminals, signals and machines as they are: python tests/drills/terminals.py [SEED]

Each drill is a process of its own. A finding is a traceback, another exit code than is promised, a file that is left
half-written, or a result that is lost. Ends with exit code 1 if there is one.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
DIGITS = REPOSITORY / "examples" / "digits"
MODEL, CALIBRATION, TEST = (str(DIGITS / name) for name in ("model", "calibration.parquet", "test.parquet"))
RECIPE = ["--keep-ratio", "0.5", "--rank-multiple", "2", "--precision", "float32", "--measuring-images", "32"]
COMPRESS = ["compress", MODEL, "--data", CALIBRATION, "--output", "out", *RECIPE, "-q"]
COMMAND = [sys.executable, "-m", "hf_vitcompress"]


@dataclass
class Drill:
    """A command under some conditions.

    Attributes:
        name: what is tried.
        words: after `vitcompress`.
        codes: exit codes that are promised.
        says: a text that stderr or stdout must hold.
        shell: what the command line is put into, `{}` being the command.
        environment: changes; `None` takes a variable away.
        after: what must hold in the folder afterwards.
    """

    name: str
    words: list[str]
    codes: tuple[int, ...] = (0,)
    says: str = ""
    shell: str = "{}"
    environment: dict[str, str | None] = field(default_factory=dict)
    after: Callable[[Path], bool] = lambda folder: True


def saved(folder: Path) -> bool:
    """Whether the result is there, whole and alone."""
    return (folder / "out" / "model.safetensors").is_file() and not list(folder.glob(".*.part"))


def empty(folder: Path) -> bool:
    """Whether nothing was begun."""
    return not list(folder.iterdir())


NOWHERE = {"HF_HOME": "/proc/nowhere", "XDG_CACHE_HOME": "/proc/nowhere"}
ASCII = {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii", "PYTHONCOERCECLOCALE": "0"}
JUDGED = [*COMPRESS, "--test", TEST, "--latency"]

DRILLS = [
    Drill("no home", JUDGED, environment={"HOME": None, "MPLCONFIGDIR": None}, after=saved),
    Drill("no place for caches", COMPRESS, (1,), "/proc/nowhere", environment=NOWHERE, after=empty),
    Drill("a terminal of ASCII", JUDGED, environment=ASCII, after=saved, says="saved to out"),
    Drill(
        "a terminal of ASCII, an error", ["evaluate", "./modèle", "--data", TEST], (1,), "error: ", environment=ASCII
    ),
    Drill("stdin closed", COMPRESS, shell="{} <&-", after=saved),
    Drill("stdout closed", COMPRESS, (0, 1), shell="{} >&-", after=saved),
    Drill("stderr closed", ["evaluate", "./absent", "--data", TEST], (1,), shell="{} 2>&-"),
    Drill("stdout on a full disk", COMPRESS, (1,), "No space left", shell="{} >/dev/full", after=saved),
    Drill("nobody reads the result", COMPRESS, shell="{} | true", after=saved),
    Drill("nobody reads the help", ["compress", "--help"], shell="{} | head -1", says="sage:"),
    Drill(
        "a folder that takes no files", [*COMPRESS, "--statistics", "/proc/s.safetensors"], (1,), "/proc/s", after=empty
    ),
]


def environment(changes: dict[str, str | None]) -> dict[str, str]:
    """That of this process, with the changes."""
    merged = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **changes}
    return {name: value for name, value in merged.items() if value is not None}


def findings_of(drill: Drill, folder: Path) -> Iterator[str]:
    """What is wrong with how the command ended."""
    line = drill.shell.format('"$@"')
    command = ["bash", "-c", line, "drill", *COMMAND, *drill.words]
    done = subprocess.run(
        command, cwd=folder, env=environment(drill.environment), capture_output=True, text=True, timeout=300
    )
    said = done.stdout + done.stderr
    if done.returncode not in drill.codes:
        yield f"exit code {done.returncode}"
    for word in ("Traceback", "Exception ignored"):
        if word in said:
            yield word
    if drill.says not in said:
        yield f"does not say {drill.says!r}"
    if not drill.after(folder):
        yield f"left {sorted(path.name for path in folder.iterdir())}"
    if said.strip() and drill.codes == (1,) and done.returncode == 1 and said.count("error: ") > 1:
        yield "several errors"


def interrupted_findings(kind: signal.Signals, wait: float, folder: Path, expected: bytes) -> Iterator[str]:
    """What is wrong after a signal at some moment, and after the same command again."""
    process = subprocess.Popen(
        [*COMMAND, *COMPRESS],
        cwd=folder,
        env=environment({}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(wait)
    process.send_signal(kind)
    _, said = process.communicate(timeout=300)
    promised = {0, 128 + kind, -kind}
    if process.returncode not in promised:
        yield f"exit code {process.returncode} after {wait:.1f} s"
    if "Traceback" in said:
        yield f"Traceback after {wait:.1f} s: {said[-300:]}"
    if list(folder.glob(".*.part")):
        yield "a half-written file"
    if process.returncode != 0:
        subprocess.run([*COMMAND, *COMPRESS], cwd=folder, env=environment({}), capture_output=True, timeout=300)
    with contextlib.suppress(FileNotFoundError):
        if (folder / "out" / "model.safetensors").read_bytes() == expected:
            return
    yield f"not the same model after {wait:.1f} s"


def main(seed: int) -> int:
    """Run all drills; number of those with findings."""
    failed, count, random_ = 0, 0, random.Random(seed)
    with tempfile.TemporaryDirectory() as root:
        for number, drill in enumerate(DRILLS):
            folder = Path(root) / str(number)
            folder.mkdir()
            found = list(findings_of(drill, folder))
            print(f"{'ok' if not found else '; '.join(found):10} {drill.name}", flush=True)
            failed, count = failed + bool(found), count + 1
        whole = Path(root) / "whole"
        whole.mkdir()
        start = time.monotonic()
        subprocess.run([*COMMAND, *COMPRESS], cwd=whole, env=environment({}), capture_output=True, check=True)
        seconds = time.monotonic() - start
        expected = (whole / "out" / "model.safetensors").read_bytes()
        for number in range(6):
            folder, kind = Path(root) / f"signal{number}", (signal.SIGINT, signal.SIGTERM)[number % 2]
            folder.mkdir()
            found = list(interrupted_findings(kind, random_.uniform(0.1, seconds), folder, expected))
            print(f"{'ok' if not found else '; '.join(found):10} {kind.name}", flush=True)
            failed, count = failed + bool(found), count + 1
    print(f"terminals: {count} drills with seed {seed}, {failed} with findings")
    return failed


if __name__ == "__main__":
    sys.exit(bool(main(int(sys.argv[1]) if len(sys.argv) > 1 else 0)))
