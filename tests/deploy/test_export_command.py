"""Programs timed against each other, and the command that exports."""

import json
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, ViTForImageClassification

from hf_vitcompress.deploy.export import export_model
from hf_vitcompress.errors import ConfigError
from support.models import seeded, tiny_config
from support.programs import dense, run_onnx, skip_without
from support.students import random_images
from support.terminal import Run


def test_two_programs_are_timed_on_one_runtime(model: PreTrainedModel, tmp_path: Path) -> None:
    large = dense(ViTForImageClassification, num_hidden_layers=5)
    result = export_model(model, "torch-export", tmp_path / "out", against=large)
    assert result.dense is not None
    assert result.dense.bytes > result.report.bytes
    assert [latency.batch_size for latency in result.latency] == [1, 32]
    for latency in result.latency:
        assert latency.threads == torch.get_num_threads()
        assert latency.ratio_low <= latency.ratio <= latency.ratio_high
        assert latency.ratio < 1
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_models_for_other_images_are_not_timed_against_each_other(model: PreTrainedModel, tmp_path: Path) -> None:
    other = dense(ViTForImageClassification, image_size=32)
    with pytest.raises(ConfigError, match=r"\(3, 16, 16\) and \(3, 32, 32\).*--against"):
        export_model(model, "torch-export", tmp_path / "out", against=other)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def folders(model: PreTrainedModel, tmp_path: Path) -> tuple[Path, Path]:
    """A compressed model, and a dense one."""
    model.save_pretrained(tmp_path / "small")
    seeded(ViTForImageClassification, tiny_config()).save_pretrained(tmp_path / "dense")
    return tmp_path / "small", tmp_path / "dense"


def test_the_command_exports_compares_and_says_where(export: Run, folders: tuple[Path, Path], tmp_path: Path) -> None:
    skip_without("onnx")
    small, large = folders
    done = export(small, "--against", large, "--json", tmp_path / "figures.json", "-q")
    assert done.code == 0, done.err
    for text in ("onnx on ", "1 thread", "program on disk", "difference from torch", "latency, batch 1 ", "batch 32"):
        assert text in done.out
    assert f"saved to {small / 'onnx'}" in done.out.replace("\n", "")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["folder"] == str(small / "onnx")
    assert figures["report"]["files"].keys() == {"model.onnx", "model.onnx.data"}
    assert figures["dense"]["model"] == "ViTForImageClassification"
    assert [latency["threads"] for latency in figures["latency"]] == [1, 1]
    output = run_onnx(small / "onnx" / "model.onnx", random_images(2))[0]
    assert output.shape == (2, 5)


def test_the_command_exports_one_model_alone(export: Run, folders: tuple[Path, Path], tmp_path: Path) -> None:
    done = export(folders[1], "--to", "torch-export", "--output", tmp_path / "out", "-q")
    assert done.code == 0, done.err
    assert "latency" not in done.out
    assert (tmp_path / "out" / "model.pt2").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--to", "torch-export", "--output", "out"], "nowhere"),
        (["nowhere", "--to", "torch-export"], "--output"),
        (["nowhere", "--to", "coreml", "--output", "out"], "openvino"),
        (["nowhere", "--to", "torch-export", "--output", "out", "--max-batch", "2"], "--max-batch"),
    ],
    ids=["missing model", "no output", "unknown format", "limit"],
)
def test_what_is_wrong_is_one_line(
    arguments: list[str], message: str, export: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = export(*arguments)
    lines = done.err.strip().splitlines()
    assert done.code == 1
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert not list(tmp_path.iterdir())
