"""Saving a factored model: all of it or nothing, and nothing else of the folder."""

import os
from pathlib import Path

import pytest
from transformers import AutoModelForImageClassification, PreTrainedModel, ViTForImageClassification

from hf_vitcompress.errors import OutputError
from hf_vitcompress.modeling_factored import FactoredModelMixin
from support.factored import assert_same_outputs, factored, files_of
from support.kills import killed_before
from support.models import seeded, tiny_config


class Broken:
    """A companion that writes a little and then finds the disk full."""

    def save_pretrained(self, folder):
        Path(folder, "half").write_text("half")
        raise OSError("No space left on device")


def break_weights(monkeypatch):
    def save(self, folder, *args, **kwargs):
        Path(folder, "model.safetensors").write_text("half")
        raise OSError("No space left on device")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", save)


@pytest.mark.parametrize("broken", ["weights", "companion"])
def test_a_failure_while_saving_leaves_the_old_checkpoint_as_it_was(broken, pixels, monkeypatch, tmp_path):
    good, other = factored(), factored(intermediate_size=64)
    good.save_pretrained(tmp_path)
    before = files_of(tmp_path)
    if broken == "companion":
        other.companions.append(Broken())
    else:
        break_weights(monkeypatch)
    with pytest.raises(OSError, match="No space left"):
        other.save_pretrained(tmp_path)
    assert files_of(tmp_path) == before
    assert_same_outputs(good, AutoModelForImageClassification.from_pretrained(tmp_path), pixels)


def test_an_interruption_before_the_first_file_is_moved_in_leaves_the_old_checkpoint(monkeypatch, tmp_path):
    def interrupt(source, target):
        raise KeyboardInterrupt

    good = factored()
    good.save_pretrained(tmp_path)
    before = files_of(tmp_path)
    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        factored(intermediate_size=64).save_pretrained(tmp_path)
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("broken", ["weights", "companion"])
def test_a_failure_while_saving_to_a_new_folder_leaves_no_files(broken, monkeypatch, tmp_path):
    model = factored()
    if broken == "companion":
        model.companions.append(Broken())
    else:
        break_weights(monkeypatch)
    with pytest.raises(OSError, match="No space left"):
        model.save_pretrained(tmp_path / "new")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert list((tmp_path / "new").glob("*")) == []


@pytest.mark.parametrize("sizes", [("20KB", "1GB"), ("1GB", "20KB"), ("10KB", "40KB")], ids="-then-".join)
def test_saving_over_a_checkpoint_leaves_no_shards_of_the_old_one(sizes, pixels, tmp_path):
    seeded(type(model := factored()), model.config, seed=1).save_pretrained(tmp_path / "over", max_shard_size=sizes[0])
    model.save_pretrained(tmp_path / "over", max_shard_size=sizes[1])
    model.save_pretrained(tmp_path / "fresh", max_shard_size=sizes[1])
    assert files_of(tmp_path / "over") == files_of(tmp_path / "fresh")
    assert_same_outputs(model, AutoModelForImageClassification.from_pretrained(tmp_path / "over"), pixels)


def test_saving_leaves_other_files_of_the_folder_alone(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    factored().save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_a_companion_with_a_folder_of_its_own_can_be_saved_twice(pixels, tmp_path):
    class Nested:
        def save_pretrained(self, folder):
            Path(folder, "extra").mkdir()
            Path(folder, "extra", "notes.txt").write_text("notes")

    model = factored()
    model.companions.append(Nested())
    model.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "extra" / "notes.txt").read_text() == "notes"
    assert_same_outputs(model, AutoModelForImageClassification.from_pretrained(tmp_path), pixels)


def test_a_path_that_is_a_file_is_refused(tmp_path):
    path = tmp_path / "taken"
    path.write_text("something else")
    with pytest.raises(NotADirectoryError, match="taken"):
        factored().save_pretrained(path)
    assert path.read_text() == "something else"


@pytest.fixture
def without_the_package(monkeypatch):
    """Models save as what travels with a checkpoint does by itself."""

    def save():
        monkeypatch.setattr(type(factored()), "replacing", FactoredModelMixin.replacing)

    return save


@pytest.mark.parametrize("package", [True, False])
def test_a_dense_model_is_not_replaced(package, without_the_package, tmp_path):
    dense = seeded(ViTForImageClassification, tiny_config())
    dense.save_pretrained(tmp_path)
    before = files_of(tmp_path)
    if not package:
        without_the_package()
    with pytest.raises(OutputError if package else FileExistsError, match="another folder"):
        factored().save_pretrained(tmp_path)
    assert files_of(tmp_path) == before
    (tmp_path / "training_args.bin").write_text("of a Trainer, which replaces what it saved")
    factored().save_pretrained(tmp_path)
    assert "FactoredViT" in (tmp_path / "config.json").read_text()


def test_without_the_package_a_kill_leaves_old_or_new_or_no_config(without_the_package, tmp_path):
    old, new = factored(), factored(intermediate_size=64)
    original = {}
    for name, model in (("old", old), ("new", new)):
        model.save_pretrained(tmp_path / name)
        original[name] = {file: text for file, text in files_of(tmp_path / name).items() if not file.startswith(".")}
    without_the_package()
    change, killed, seen = 0, True, set()
    while killed:
        place = tmp_path / f"{change}" / "out"
        old.save_pretrained(place)
        killed = killed_before(lambda place=place: new.save_pretrained(place), place, change)
        found = {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()}
        state = next((name for name, files in original.items() if found == files), None)
        assert state is not None or "config.json" not in found
        seen.add(state)
        change += 1
    assert seen == {"old", "new", None}


def test_without_the_package_nothing_of_its_exchanges_is_left(without_the_package, tmp_path):
    model = factored()
    model.save_pretrained(tmp_path)
    (tmp_path / ".vitcompress-ready").mkdir()
    without_the_package()
    model.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
