"""Mistakes on the command line: each ends at once in one sentence that names the flag and the remedy."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml

import hf_vitcompress.compressor
from support.models import DIGITS
from support.terminal import Run, one_line, running_commands, without_bars  # noqa: F401  (the fixture "run")

MODEL = str(DIGITS / "model")
CALIBRATION = str(DIGITS / "calibration.parquet")
TEST = str(DIGITS / "test.parquet")
COMPRESS = ["compress", MODEL, "--data", CALIBRATION, "--output", "out", "-q"]
EVALUATE = ["evaluate", MODEL, "--data", TEST, "-q"]
LONG = "x" * 300


@pytest.fixture(autouse=True)
def no_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In an empty folder, and whoever begins to calibrate has noticed too late."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hf_vitcompress.compressor, "calibrate", lambda *_: pytest.fail("calibrated first"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*COMPRESS, "--keep-ratio="], "--keep-ratio is empty"),
        ([*COMPRESS, "--test", ""], "--test is empty"),
        ([*COMPRESS, "--statistics", ""], "--statistics is empty"),
        (["compress", MODEL, "--data", "", "--output", "out"], "--data is empty"),
        (["compress", MODEL, "--data", CALIBRATION, "--output", ""], "--output is empty"),
        (["evaluate", "", "--data", TEST], "An argument is empty"),
        ([*EVALUATE, "--against", ""], "--against is empty"),
        (["push", "out", "me/small", "--token="], "--token is empty"),
        (["compress", LONG, "--data", CALIBRATION, "--output", "out"], "model 'xxx.*too long"),
        (["compress", MODEL, "--data", LONG, "--output", "out"], "data 'xxx.*too long"),
        (["compress", MODEL, "--data", CALIBRATION, "--output", LONG], "output 'xxx.*too long"),
        ([*COMPRESS, "--test", LONG], "test 'xxx.*too long"),
        ([*COMPRESS, "--plan", LONG], "plan 'xxx.*too long"),
        ([*COMPRESS, "--config", LONG], "cannot be read|too long"),
        ([*COMPRESS, "--statistics", LONG], "statistics 'xxx.*too long"),
        (["inspect", MODEL, "--data", CALIBRATION, "--figure", LONG], "figure 'xxx.*too long"),
        ([*EVALUATE, "--against", LONG], "against 'xxx.*too long"),
        ([*COMPRESS, "--keep-ratio", "-1"], "keep_ratio"),
        ([*COMPRESS, "--keep-ratio", "nan"], "keep_ratio"),
        ([*COMPRESS, "--keep-ratio", "40"], r"keep_ratio must lie in \(0, 1\]"),
        ([*COMPRESS, "--keep-ratio", "0.5", "--max-accuracy-drop", "0.1"], "max_accuracy_drop stands alone"),
        ([*COMPRESS, "--keep-ratio", "0.5", "--max-params", "9"], "budget of 9 params is out of reach"),
        ([*COMPRESS, "--speedup", "0.5"], "speedup must be at least 1"),
        ([*COMPRESS, "--max-latency-ms", "0"], "max_latency_ms must"),
        ([*COMPRESS, "--keep-ratio", "0.001"], "out of reach: the smallest model"),
        ([*COMPRESS, "--max-params", "10", "--compensation", "residual"], "out of reach: the smallest model"),
        (["inspect", MODEL, "--data", CALIBRATION, "--keep-ratio", "0.001", "-q"], "out of reach"),
        ([*COMPRESS, "--test", "./tset"], "tset"),
        (["compress", "./absent", "--data", "./photso", "--output", "out"], "no folder or file './photso'"),
        (["inspect", "./absent", "--data", "./photso", "--figure", "f.png"], "no folder or file './photso'"),
        (["evaluate", "./absent", "--data", "./photso"], "no folder or file './photso'"),
        ([*COMPRESS, "--max-accuracy-drop", "0.01", "--validation", "./tset"], "tset"),
        (["inspect", MODEL, "--data", CALIBRATION, "--max-accuracy-drop", "0.01"], "compress` and `vitcompress plan"),
        ([*COMPRESS, "--validation", TEST], "--validation holds.*--max-accuracy-drop"),
        ([*COMPRESS, "--plan", "."], "is a folder; give a file"),
        ([*COMPRESS, "--config", "."], "is a folder; give a file"),
        ([*COMPRESS, "--statistics", "."], "is a folder"),
        ([*COMPRESS, "--statistics", f"{TEST}/s.safetensors"], "Not a directory"),
        (["inspect", MODEL, "--data", CALIBRATION, "--figure", "f.pdf", "-q"], r"ends in \.png"),
        (["inspect", MODEL, "--data", CALIBRATION, "--figure", f"{TEST}/f.png", "-q"], "Not a directory"),
        (["plan", MODEL, "--statistics", "s", "--output", "."], "is a folder"),
        ([*EVALUATE, "--precision", "float16"], "precision is one of"),
        (["evaluate", "./absent", "--data", TEST, "--precision", "float16"], "precision is one of"),
        ([*EVALUATE, "--dataset", "me/images"], "--update-card"),
        ([*EVALUATE, "--metric", "./absent"], "metric './absent' cannot be loaded"),
        (["export", MODEL, "--to", "tflite", "--output", "out"], "onnx"),
        (["quantize", "./absent", "--scheme", "int4", "--output", "out"], "int8"),
    ],
    ids=lambda value: " ".join(word for word in value if word not in COMPRESS)[:50] if isinstance(value, list) else "",
)
def test_what_is_wrong_is_said_before_the_work(arguments: list[str], message: str, run: Run, tmp_path: Path) -> None:
    done = run(*arguments)
    assert done.code == 1
    assert re.search(message, one_line(without_bars(done.err)))
    assert not list(tmp_path.iterdir())


def test_labels_of_test_images_that_the_model_does_not_know_are_refused_before_the_work(
    run: Run, tmp_path: Path
) -> None:
    image = {"bytes": (DIGITS / "model" / "config.json").read_bytes(), "path": None}
    datasets.Dataset.from_dict({"image": [image] * 2, "label": [3, 10]}).to_parquet(tmp_path / "ten.parquet")
    done = run(*COMPRESS, "--test", "ten.parquet")
    assert done.code == 1
    assert re.search(r"10.*class", one_line(without_bars(done.err)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--data", CALIBRATION, "compress", MODEL], "--data belongs after the command: vitcompress compress … --data"),
        (["--config", "r.yaml", "compress", MODEL], "--config belongs after the command"),
        ([*COMPRESS, "--against", MODEL], "--against is a flag of evaluate and export, not of compress"),
        ([*COMPRESS, "--private"], "--private is a flag of push, not of compress"),
        (
            [*EVALUATE, "--keep-ratio", "0.5"],
            "--keep-ratio is a flag of compress and inspect and plan, not of evaluate",
        ),
        ([*COMPRESS, "--keep-ratio", "50%"], "Write 50% as 0.5."),
        ([*COMPRESS, "--keep-ratio=0,5"], "Write 0,5 as 0.5."),
        ([*COMPRESS, "--keep_ratio", "0.5"], "--keep-ratio"),
        ([*COMPRESS, "--keep-ratoi", "0.5"], "--keep-ratio"),
        ([*COMPRESS, "--sparsity", "0.5"], "Hint: vitcompress compress --help-all shows every flag."),
        ([*COMPRESS, "--sparsity", "0.5"], "Try 'vitcompress compress --help' for help."),
        (["compress"], "Missing argument 'MODEL'"),
        (["push", "out"], "Try 'vitcompress push --help' for help."),
        (["compres", MODEL], "compress"),
    ],
    ids=lambda value: " ".join(word for word in value if word not in COMPRESS)[:50] if isinstance(value, list) else "",
)
def test_a_flag_in_the_wrong_place_is_told_the_right_one(arguments: list[str], hint: str, run: Run) -> None:
    done = run(*arguments)
    assert done.code == 2
    assert hint in " ".join(done.err.split())
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    "content",
    [
        {"target": True},
        {"target": ["a"]},
        {"keep_ratio": [0.5]},
        {"keep_ratio": {"a": 1}},
        {"keep_ratio": float("nan")},
        {"keep_ratio": int("9" * 400)},
        {"keep_ratio": None, "max_params": float("inf")},
        {"keep_ratio": ["x" * 50] * 5000},
        {"max_params": 1.5},
        {"seed": None},
        {"seed": -1},
        {"skip_modules": "fc1"},
        {"metric": ["fisher"]},
        {"metric": "a\nb"},
        {"preset": ["svd"]},
        {"compensation_duration": 5},
        {"compensation_duration": "9" * 400 + " minutes"},
        {"compensation_epochs": [1]},
        {"crop": [1]},
        {"keep_ration": 0.5},
    ],
    ids=lambda content: str(content)[:40],
)
@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_a_setting_that_cannot_be_is_named(content: dict[str, Any], suffix: str, run: Run, tmp_path: Path) -> None:
    write = yaml.safe_dump if suffix == "yaml" else json.dumps
    (tmp_path / f"recipe.{suffix}").write_text(write(content))
    done = run(*COMPRESS, "--config", f"recipe.{suffix}")
    assert done.code == 1
    line = one_line(done.err)
    assert any(name in line for name in (*content, "larger than"))
    assert len(line) < 700


@pytest.mark.parametrize(
    ("against", "message"), [("seven", "10 and 7 classes"), ("renamed", "class 0 is '0' to one and 'thing 0'")]
)
def test_models_of_other_classes_are_not_compared(against: str, message: str, run: Run, tmp_path: Path) -> None:
    from transformers import AutoModelForImageClassification

    count = 7 if against == "seven" else 10
    names = {i: f"thing {i}" for i in range(count)}
    other = AutoModelForImageClassification.from_pretrained(
        MODEL, num_labels=count, id2label=names, label2id={v: k for k, v in names.items()}, ignore_mismatched_sizes=True
    )
    other.save_pretrained(tmp_path / against)
    done = run(*EVALUATE, "--against", tmp_path / against)
    assert done.code == 1
    assert message in done.err


def test_a_library_that_is_missing_is_named_before_the_work(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delitem(sys.modules, "matplotlib.figure", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = run("inspect", MODEL, "--data", CALIBRATION, "-q")
    assert done.code == 1
    assert "pip install --upgrade matplotlib" in one_line(without_bars(done.err))


def test_images_of_another_kind_are_named_before_the_work(run: Run, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    done = run(*COMPRESS, "--test", tmp_path / "notes.txt")
    assert done.code == 1
    assert "notes.txt" in one_line(without_bars(done.err))
