"""`vitcompress profile`, and budgets of time on the command line; how long anything takes is made up or not asked."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from hf_vitcompress import CompressionConfig, CompressionReport, LatencyProfile, ViTCompressor
from hf_vitcompress.planning import latency as planning
from hf_vitcompress.planning import profiles
from hf_vitcompress.profiling import measuring
from support.models import DIGITS
from support.profiles import even_seconds, latency_by_macs
from support.terminal import Run, one_line, running_commands, without_bars  # noqa: F401  (the fixture "run")

MODEL = str(DIGITS / "model")
RECIPE = ["--rank-multiple", "2", "--precision", "float32", "--quiet"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With statistics and a latency profile of the digits' model."""
    folder = tmp_path_factory.mktemp("timed")
    config = CompressionConfig(rank_multiple=2, precision="float32", num_images=64, measuring_images=16)
    compressor = ViTCompressor(config, progress=False)
    subject = compressor.open(MODEL)
    compressor.calibrate(subject, str(DIGITS / "calibration.parquet")).save(folder / "s.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        time_little(patch)
        profiles.profile_of(subject, compressor.run).save(folder / "p.json")
    return folder


def time_little(patch: pytest.MonkeyPatch) -> None:
    """Take a profile of made-up seconds in no time."""
    patch.setattr(measuring, "time_operation", lambda _, operation: even_seconds(operation))
    patch.setattr(profiles, "forward_pass", lambda *_: lambda: 2e-3)


@pytest.fixture(autouse=True)
def timed_by_macs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "alternate_latency", latency_by_macs)


def test_profile_writes_a_file_and_a_small_table(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    time_little(monkeypatch)
    file = tmp_path / "p.json"
    done = run("profile", MODEL, file, "--latency-batch-size", 2, "--rank-multiple", 8, "-q")
    assert done.code == 0, done.err
    profile = LatencyProfile.load(file)
    assert profile.conditions.batch_size == 2
    for text in ("batch 2, float32", "the dense model", "ms at half the MACs", "saved to"):
        assert text in done.out
    again = run("profile", MODEL, file, "-q")
    assert again.code == 1
    assert "exists and would be replaced" in one_line(again.err)
    assert "give --overwrite, which replaces an earlier latency profile" in again.err
    assert LatencyProfile.load(file) == profile


def test_profile_replaces_nothing_but_profiles(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "notes.json"
    file.write_text('{"mine": 1}')
    for flags in ([], ["--overwrite"]):
        done = run("profile", MODEL, file, *flags, "-q")
        assert done.code == 1
        assert "notes.json" in one_line(done.err)
        assert "is no latency profile that can be read; --overwrite replaces nothing else" in done.err
        assert json.loads(file.read_text()) == {"mine": 1}


def test_plan_says_what_was_asked_predicted_and_measured(run: Run, folder: Path, tmp_path: Path) -> None:
    known = ["--statistics", folder / "s.safetensors", "--profile", folder / "p.json"]
    budgets = ["--speedup", 1.5, "--keep-ratio", 0.9]
    done = run("plan", MODEL, *known, *budgets, *RECIPE, "--output", tmp_path / "plan.json")
    assert done.code == 0, done.err
    assert "speed-up when planned, batch 1: 1." in done.out
    assert "(asked 1.50, predicted " in done.out
    assert " for keep ratio 0.9, speedup 1.5: " in " ".join(done.out.split())
    content = json.loads((tmp_path / "plan.json").read_text())
    assert content["budget"] == {"keep_ratio": 0.9, "speedup": 1.5}
    assert "latency" not in content


def test_compress_shows_and_keeps_what_became_of_the_budget(run: Run, folder: Path, tmp_path: Path) -> None:
    known = ["--statistics", folder / "s.safetensors", "--profile", folder / "p.json"]
    done = run("compress", MODEL, *known, "--speedup", 1.5, *RECIPE, "--output", tmp_path / "small")
    assert done.code == 0, done.err
    assert "speed-up when" in done.out  # a narrow terminal breaks the line there
    report = CompressionReport.load(tmp_path / "small")
    assert report.timed is not None
    assert report.timed.asked == pytest.approx(1 / 1.5)
    assert report.timed.excess <= planning.EXCEEDED
    card = (tmp_path / "small" / "README.md").read_text(encoding="utf-8")
    assert "Speed-up when planned, batch 1: 1." in card
    assert "asked 1.50, predicted " in card
    assert "a CPU (1 thread)" in card


@pytest.mark.usefixtures("drawn")
def test_inspect_shows_losses_over_latencies(run: Run, folder: Path, tmp_path: Path) -> None:
    """Also where the budget is none of time, and only a profile is given."""
    known = ["--statistics", folder / "s.safetensors", "--figure", tmp_path / "f.png", *RECIPE]
    without = run("inspect", MODEL, *known)
    assert without.code == 0, without.err
    assert "over latencies" not in without.out
    done = run("inspect", MODEL, *known, "--profile", folder / "p.json")
    assert done.code == 0, done.err
    assert "over latencies, batch 1 (dense " in done.out
    assert "predicted speed-up" in done.out
    timed = run("inspect", MODEL, *known, "--profile", folder / "p.json", "--speedup", 1.5)
    assert re.search(r" for speedup 1\.5: \d+\.\d% of the parameters kept", " ".join(timed.out.split()))


WRONG: dict[str, tuple[list[Any], str]] = {
    "missing": (["--profile", "none.json"], "There is no latency profile"),
    "another kind": (["--profile", "s.safetensors"], "latency profile"),
    "other conditions": (["--profile", "p.json", "--latency-batch-size", 8], "measured for the batch size 1, and this"),
    "out of reach": (["--profile", "p.json", "--speedup", 1000], "out of reach: the fastest"),
    "too few milliseconds": (["--profile", "p.json", "--max-latency-ms", 0.0001], "out of reach: the fastest"),
    "beside an accuracy": (["--speedup", 2, "--max-accuracy-drop", 0.1], "stands alone"),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("command", ["plan", "inspect", "compress"])
def test_what_is_wrong_is_one_line(
    command: str, case: str, run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    flags, message = WRONG[case]
    budget = [] if {"--speedup", "--max-latency-ms"} & set(flags) else ["--speedup", 1.5]
    output = {"plan": ["--output", tmp_path / "p"], "inspect": [], "compress": ["--output", tmp_path / "o"]}[command]
    done = run(command, MODEL, "--statistics", "s.safetensors", *flags, *budget, *RECIPE, *output)
    assert done.code == 1
    assert message in one_line(without_bars(done.err))
    assert not (tmp_path / "p").exists()
    assert not (tmp_path / "o").exists()
