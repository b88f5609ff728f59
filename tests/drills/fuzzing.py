"""What the fuzzers of this folder share: their arguments, and how they end."""

import argparse
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path


def arguments(text: str | None) -> tuple[int, float]:
    """Seed and seconds of the command line, which `text` describes."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    return options.seed, options.seconds


def run(text: str | None, name: str, what: str, fuzz: Callable[[int, float, Path], tuple[int, list[str]]]) -> int:
    """Print the findings and how many were tried; the exit code is 1 if there is a finding.

    Args:
        fuzz: (seed, seconds, empty folder) → number of what was tried, and the findings.
    """
    seed, seconds = arguments(text)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as place:
        count, findings = fuzz(seed, seconds, Path(place))
    print(*findings, sep="\n")
    print(f"{name}: {count} {what} in {seconds:g} s with seed {seed}, {len(findings)} findings")
    return int(bool(findings))
