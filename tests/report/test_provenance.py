"""Where a model comes from: what its card and its files say, and nothing that is nobody's business."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from pydantic import TypeAdapter
from safetensors.torch import save_file
from transformers import AutoModelForImageClassification, PreTrainedModel, ViTForImageClassification

from hf_vitcompress.report.provenance import Environment, Origin, as_list, card_data, hub_card_data, is_repo_id
from hf_vitcompress.runtime.weights import stored_dtypes
from support.fake_hub import FakeHub, running_hub  # noqa: F401  (the fixture "hub")
from support.models import tiny_config

CARD = """---
license: other
license_name: mine
license_link: LICENSE
language: [en, no]
base_model: a/b
datasets: c/d
---
"""
STATED = {
    "license": "other",
    "license_name": "mine",
    "license_link": "LICENSE",
    "language": ["en", "no"],
    "datasets": ["c/d"],
}


def saved(folder: Path, card: str | bytes | None = CARD) -> PreTrainedModel:
    """A tiny dense model that was loaded from a folder."""
    ViTForImageClassification(tiny_config()).save_pretrained(folder)
    if card is not None:
        (folder / "README.md").write_bytes(card if isinstance(card, bytes) else card.encode())
    return AutoModelForImageClassification.from_pretrained(folder)


def test_a_model_that_was_not_loaded_has_no_origin(vit: PreTrainedModel) -> None:
    assert Origin.of(vit) == Origin()


def test_a_folder_gives_its_card_and_its_size(tmp_path: Path) -> None:
    origin = Origin.of(saved(tmp_path))
    size = (tmp_path / "model.safetensors").stat().st_size
    assert origin == Origin(base_model="a/b", **STATED, disk_bytes=size, dtypes=["F32"])
    assert str(tmp_path) not in str(dataclasses.asdict(origin))


def test_a_folder_of_a_trainer_is_as_large_as_its_weights(tmp_path: Path) -> None:
    model = saved(tmp_path)
    (tmp_path / "training_args.bin").write_bytes(b"0" * 5000)
    assert Origin.of(model).disk_bytes == (tmp_path / "model.safetensors").stat().st_size


@pytest.mark.parametrize(
    "card",
    [None, "", "# words", "---\nlicense: [\n---\n", "---\n- a\n---\n", b"\xff\xfe\x00", "---\nlicense: 3\n---\n"],
    ids=["none", "empty", "words", "broken", "list", "binary", "number"],
)
def test_a_folder_without_a_usable_card_is_no_error(card: str | bytes | None, tmp_path: Path) -> None:
    assert dataclasses.replace(Origin.of(saved(tmp_path, card)), disk_bytes=None, dtypes=[]) == Origin()


@pytest.mark.parametrize("base", ["/models/vit", "./vit", "../vit", "C:\\vit", "a/b/c", "", 5, ["a/b", "c/d"], {}])
def test_what_is_no_repository_is_no_base_model(base: Any) -> None:
    assert Origin().completed({"base_model": base}).base_model is None


def test_a_path_that_exists_is_no_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_repo_id("runs/vit")
    (tmp_path / "runs" / "vit").mkdir(parents=True)
    assert not is_repo_id("runs/vit")
    assert not is_repo_id("")
    assert not is_repo_id(str(tmp_path))


def test_a_folder_that_was_deleted_since_is_not_taken_for_a_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ViTForImageClassification(tiny_config()).save_pretrained("runs/checkpoint-5")
    model = AutoModelForImageClassification.from_pretrained("runs/checkpoint-5")
    Path("runs").rename("elsewhere")
    assert Origin.of(model) == Origin()


@pytest.mark.parametrize(
    ("language", "known"),
    [("no", ["no"]), (["de", "English", False, 3], ["de"]), ("multilingual", ["multilingual"]), (5, []), (None, [])],
)
def test_languages_that_the_hub_would_refuse_are_left_out(language: Any, known: list[str]) -> None:
    assert Origin().completed({"language": language}).language == known


def test_metadata_of_every_form_is_a_list_of_words() -> None:
    assert as_list(None) == as_list(3) == as_list({"a": 1}) == as_list(False) == []
    assert as_list("a") == as_list(["a", None, 2, {}]) == ["a"]


def test_what_is_known_already_is_not_overwritten() -> None:
    origin = Origin(base_model="a/b", license="mit", disk_bytes=5)
    completed = origin.completed({"base_model": "x/y", "license": "gpl", "datasets": ["c/d"], "language": "en"})
    assert completed == dataclasses.replace(origin, datasets=["c/d"], language=["en"])


def test_types_are_ordered_by_how_many_values_have_them(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3), "b": torch.zeros(4, 4).half()}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"c": torch.zeros(()).bfloat16()}, tmp_path / "model-00002-of-00002.safetensors")
    save_file({"d": torch.zeros(99).double()}, tmp_path / "model_ema.safetensors")
    assert stored_dtypes(tmp_path) == ["F16", "F32", "BF16"]


def test_the_environment_names_versions_and_no_names() -> None:
    here = Environment.here(Accelerator(cpu=True))
    assert {"hf_vitcompress", "transformers", "torch", "python"} <= here.versions.keys()
    assert here.processes == 1
    adapter = TypeAdapter(Environment)
    assert adapter.validate_json(adapter.dump_json(here)) == here


# ---- from the Hub


@pytest.fixture
def model_hub(hub: FakeHub, tmp_path: Path) -> Iterator[FakeHub]:
    """It has a dense model with a card."""
    saved(tmp_path / "dense")
    files = {path.name: path.read_bytes() for path in (tmp_path / "dense").iterdir()}
    hub.add_repo("someone/vit", files)
    return hub


def test_a_model_of_the_hub_is_its_own_base(model_hub: FakeHub) -> None:
    model = AutoModelForImageClassification.from_pretrained("someone/vit")
    size = len(model_hub.files("someone/vit")["model.safetensors"])
    expected = Origin(base_model="someone/vit", published=True, **STATED, disk_bytes=size, dtypes=["F32"])
    assert Origin.of(model) == expected


def test_without_a_way_to_the_hub_the_cache_knows_where_a_model_came_from(
    model_hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = AutoModelForImageClassification.from_pretrained("someone/vit")
    model_hub.fail("HEAD", "README", 503, times=99)
    model_hub.fail("GET", "/api/models", 503, times=99)
    origin = Origin.of(model)
    assert (origin.base_model, origin.published, origin.license) == ("someone/vit", True, None)
    assert origin.disk_bytes


def test_a_repository_without_a_card_is_a_base_model_all_the_same(hub: FakeHub, tmp_path: Path) -> None:
    saved(tmp_path / "dense", None)
    hub.add_repo("someone/vit", {path.name: path.read_bytes() for path in (tmp_path / "dense").iterdir()})
    model = AutoModelForImageClassification.from_pretrained("someone/vit", cache_dir=tmp_path / "cache")
    assert Origin.of(model) == Origin(base_model="someone/vit", published=True)


def test_a_card_that_is_not_there_has_no_metadata(hub: FakeHub, tmp_path: Path) -> None:
    assert hub_card_data("nobody/nothing") == card_data(tmp_path / "README.md") == {}
