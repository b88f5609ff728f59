"""What is saved beside a model, and goes with it wherever it goes."""

import copy
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForImageClassification, PreTrainedModel

from hf_vitcompress import CompressionConfig, CompressionPlan, CompressionReport
from hf_vitcompress.publish import retries
from hf_vitcompress.publish.names import PLAN_FILE, RECIPE_FILE
from hf_vitcompress.publish.saved import SavedFiles, lies_beside, restored_companions
from support.digits import identical
from support.fake_hub import FakeHub, running_hub  # noqa: F401  (the fixture "hub")
from support.published import PUBLISHED, Made, block_count, contents

WORDS = "# My own words\n\nabove the block."


def load(folder: Path | str) -> PreTrainedModel:
    return AutoModelForImageClassification.from_pretrained(folder)


def edit(folder: Path, words: str = WORDS) -> None:
    """As a person does: a sentence above our block."""
    path = folder / "README.md"
    head, mark, rest = path.read_text().partition("<!-- hf_vitcompress: begin")
    path.write_text(f"{head}{words}\n\n{mark}{rest}")


def test_a_compressed_model_is_saved_with_everything(made: Made) -> None:
    assert contents(made.folder).keys() == PUBLISHED
    assert CompressionConfig.load(made.folder / RECIPE_FILE).keep_ratio == 0.5
    assert CompressionPlan.load(made.folder / PLAN_FILE).layers
    assert CompressionReport.load(made.folder) == made.report


def test_saving_again_changes_nothing(made: Made, folder: Path) -> None:
    before = contents(folder)
    made.model.save_pretrained(folder)
    assert contents(folder) == before


def test_saving_again_keeps_what_a_person_wrote(made: Made, folder: Path) -> None:
    edit(folder)
    text = (folder / "README.md").read_text().replace("license: mit", "license: apache-2.0\nwidget: [{src: a.png}]")
    (folder / "README.md").write_text(text)
    trained = copy.deepcopy(made.model)
    with torch.no_grad():
        trained.classifier.bias += 1
    for _ in range(2):
        trained.save_pretrained(folder)
        card = (folder / "README.md").read_text()
        assert WORDS in card
        assert "license: apache-2.0" in card
        assert "a.png" in card
        assert block_count(card) == 1
        assert "Afterwards the weights were changed" in card


@pytest.mark.parametrize("damage", [b"---\nlicense: [\n---\nmy words", b"\xff\xfemy words", b"my words", b""])
def test_a_damaged_card_in_the_folder_stops_nothing(made: Made, folder: Path, damage: bytes) -> None:
    (folder / "README.md").write_bytes(damage)
    for _ in range(2):
        made.model.save_pretrained(folder)
        card = (folder / "README.md").read_text()
        assert card.startswith("---\n")
        assert block_count(card) == 1
        assert ("my words" in card) == bool(damage)
        assert ("license: [" in card) == (b"license" in damage)


# ---- of a model that was loaded


def test_what_lies_beside_a_loaded_model_goes_along(folder: Path, tmp_path: Path) -> None:
    edit(folder)
    (folder / "LICENSE").write_text("the terms")
    (folder / "notes.txt").write_text("mine")
    model = load(folder)
    model.companions = restored_companions(model)
    model.save_pretrained(tmp_path / "copy")
    assert contents(tmp_path / "copy").keys() == {*PUBLISHED, "LICENSE"}
    for name in PUBLISHED - {"README.md"}:
        assert (tmp_path / "copy" / name).read_bytes() == (folder / name).read_bytes(), name
    assert WORDS in (tmp_path / "copy" / "README.md").read_text()


def test_a_card_that_lies_where_it_is_saved_wins(folder: Path, made: Made, tmp_path: Path) -> None:
    edit(folder, "words of the source")
    model = load(folder)
    model.companions = restored_companions(model)
    made.model.save_pretrained(tmp_path / "target")
    edit(tmp_path / "target")
    model.save_pretrained(tmp_path / "target")
    card = (tmp_path / "target" / "README.md").read_text()
    assert WORDS in card
    assert "words of the source" not in card


def test_a_model_from_nowhere_has_none(vit: PreTrainedModel) -> None:
    assert restored_companions(vit) == []


def test_a_folder_with_weights_alone_gives_none(vit: PreTrainedModel, tmp_path: Path) -> None:
    vit.save_pretrained(tmp_path)
    assert restored_companions(load(tmp_path)) == []


def test_a_damaged_report_is_named_and_the_weights_are_saved(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "compression_report.json").write_text('{"model": 3')
    model = load(folder)
    model.save_pretrained(tmp_path / "copy")
    assert "'compression_report.json' is damaged" in caplog.text
    assert identical(load(tmp_path / "copy"), model)


def test_files_without_a_report_are_copied_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# Words\n")
    saved = SavedFiles.of(tmp_path, lies_beside)
    (tmp_path / "copy").mkdir()
    saved.save_pretrained(tmp_path / "copy")
    assert contents(tmp_path / "copy") == {"README.md": b"# Words\n"}


def test_from_the_hub(hub: FakeHub, folder: Path, tmp_path: Path) -> None:
    edit(folder)
    hub.add_repo("me/x", contents(folder))
    model = load("me/x")
    model.companions = restored_companions(model)
    model.save_pretrained(tmp_path / "copy")
    assert contents(tmp_path / "copy").keys() == PUBLISHED
    assert WORDS in (tmp_path / "copy" / "README.md").read_text()
    assert CompressionReport.load(tmp_path / "copy") == CompressionReport.load(folder)


def test_from_a_repository_that_is_gone_nothing_goes_along(
    hub: FakeHub, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub.add_repo("me/x", contents(folder))
    model = load("me/x")
    del hub.repositories["me/x"]
    assert not any(isinstance(companion, SavedFiles) for companion in restored_companions(model))
    assert "no 'me/x' any more" in caplog.text


def test_from_a_folder_that_is_gone_what_was_read_goes_along(folder: Path, tmp_path: Path) -> None:
    model, before = load(folder), contents(folder)
    shutil.rmtree(folder)
    model.save_pretrained(tmp_path / "copy")
    assert contents(tmp_path / "copy") == before


def test_from_a_folder_that_was_gone_before_nothing_goes_along(
    hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A relative path looks like the name of a repository."""
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    folder.rename("runs/small")
    model = load("runs/small")
    Path("runs").rename("elsewhere")
    model.companions = []
    assert restored_companions(model) == []


def test_a_hub_that_is_busy_takes_nothing_away(hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add_repo("me/x", contents(folder))
    model = load("me/x")
    monkeypatch.setattr(retries, "time", SimpleNamespace(sleep=hub.waits.append))
    hub.fail("GET", "/api/models/me/x", 503)
    hub.cut("GET", "/resolve/.*/compression_plan.json", times=7)
    saved = restored_companions(model)[0]
    beside = ("compression", "README", "preprocessor")
    assert saved.files.keys() == {name for name in PUBLISHED if name.startswith(beside)}
