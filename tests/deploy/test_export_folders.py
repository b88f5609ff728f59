"""Where an exported program goes, and what becomes of a folder that is there."""

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel, ViTImageProcessorPil, ViTModel

from hf_vitcompress.deploy.export import export_model
from hf_vitcompress.deploy.export_report import ExportReport
from hf_vitcompress.errors import ConfigError, OutputError
from hf_vitcompress.modeling_factored import MANIFEST_FILE
from support.programs import dense


def test_by_default_a_program_goes_into_the_folder_of_the_model(
    traced: PreTrainedModel, processor: ViTImageProcessorPil, tmp_path: Path
) -> None:
    traced.companions = [processor]
    traced.save_pretrained(tmp_path / "model")
    result = export_model(tmp_path / "model", "torch-export")
    assert result.folder == tmp_path / "model" / "torch-export"
    assert (result.folder / "model.pt2").is_file()
    assert (result.folder / "preprocessor_config.json").is_file()
    assert result.report.model == "FactoredViTForImageClassification"


@pytest.mark.parametrize("model", ["somebody/vit", None])
def test_a_model_that_is_no_folder_needs_an_output(model: str | None) -> None:
    with pytest.raises(ConfigError, match="--output"):
        export_model(model or dense(ViTModel), "torch-export")


def test_an_output_that_exists_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="--overwrite"):
        export_model("not looked for", "torch-export", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_overwrite_replaces_an_earlier_program_and_nothing_else(traced: PreTrainedModel, tmp_path: Path) -> None:
    traced.save_pretrained(tmp_path / "model")
    out = export_model(tmp_path / "model", "torch-export").folder
    (out / "notes.md").write_text("mine")
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir() if path.is_file()}
    with pytest.raises(OutputError, match="--overwrite"):
        export_model(tmp_path / "model", "torch-export")
    export_model(tmp_path / "model", "torch-export", overwrite=True)
    assert (out / "model.pt2").is_file()
    assert (out / "notes.md").read_text() == "mine"
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir() if path.is_file()} == before


def test_a_program_of_a_former_version_is_known(traced: PreTrainedModel, tmp_path: Path) -> None:
    out = export_model(traced, "torch-export", tmp_path / "out").folder
    (out / MANIFEST_FILE).unlink()
    export_model(traced, "torch-export", out, overwrite=True)
    assert (out / MANIFEST_FILE).is_file()


@pytest.mark.parametrize("place", ["model", "."])
def test_a_program_does_not_take_the_place_of_its_model(place: str, traced: PreTrainedModel, tmp_path: Path) -> None:
    traced.save_pretrained(tmp_path / "model")
    before = sorted(path.name for path in (tmp_path / "model").iterdir())
    with pytest.raises(OutputError, match=r"(is|contains) the model"):
        export_model(tmp_path / "model", "torch-export", tmp_path / place, overwrite=True)
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == before


def test_a_full_disk_leaves_nothing(traced: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(ExportReport, "save", full)
    with pytest.raises(OutputError, match="No space left"):
        export_model(traced, "torch-export", tmp_path / "out")
    assert not list(tmp_path.iterdir())
