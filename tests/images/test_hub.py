"""Data sets on the Hub, for which a local repository of the same form stands: `datasets` reads both alike."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from hf_vitcompress.errors import DataError
from hf_vitcompress.images import hub
from hf_vitcompress.images.images import ImageSource
from hf_vitcompress.images.options import TESTING, DataOptions
from support.pictures import LABELS, as_dataset

SIX = [Image.new("RGB", (16, 16), (40 * index, 0, 0)) for index in range(6)]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two configurations of two splits; the one for training has two files."""
    root = tmp_path_factory.mktemp("repository")
    card = ["---", "configs:"]
    for config in ("small", "large"):
        (root / config).mkdir()
        for file, pictures in (("train-0", 6), ("train-1", 6), ("test-0", 2)):
            as_dataset(SIX[:pictures], LABELS[:pictures]).to_parquet(root / config / f"{file}.parquet")
        card += [f"- config_name: {config}", "  data_files:"]
        card += [f"  - split: {split}\n    path: {config}/{split}-*" for split in ("train", "test")]
    (root / "README.md").write_text("\n".join([*card, "---", ""]))
    return root


def opened(repository: Path, options: DataOptions, limit: int | None = None) -> ImageSource:
    return hub.from_hub(str(repository), options, "skip", limit)


def test_the_split_is_named(repository: Path) -> None:
    source = opened(repository, DataOptions(config="small", prefer=TESTING.prefer))
    assert (len(source), source.split, source.hub_id) == (2, "test", str(repository))
    assert source.name == f"{repository}, split test"


REFUSED = {
    "no configuration": (DataOptions(), "has several configurations: small, large. Choose one with --data-config"),
    "another one": (DataOptions(config="huge"), "has no configuration 'huge'; it has small, large"),
    "no such split": (DataOptions(config="small", split="dev"), "has no split 'dev'; it has train, test"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_a_data_set_does_not_have_is_refused(kind: str, repository: Path) -> None:
    options, said = REFUSED[kind]
    with pytest.raises(DataError, match=said):
        opened(repository, options)


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `load_dataset` is asked for."""
    asked: list[dict[str, Any]] = []
    load: Callable[..., Any] = datasets.load_dataset

    def recording(path: str, /, **settings: Any) -> Any:
        asked.append(settings)
        return load(path, **settings)

    monkeypatch.setattr(datasets, "load_dataset", recording)
    return asked


def test_only_the_files_of_the_split_are_loaded(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = recorded(monkeypatch)
    assert len(opened(repository, DataOptions(config="large", split="test"))) == 2
    (settings,) = asked
    assert list(settings["data_files"]) == ["test"]
    assert [Path(file).name for file in settings["data_files"]["test"]] == ["test-0.parquet"]


def test_of_a_large_split_only_the_images_that_are_used_are_read(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outline = hub.outline

    def with_sizes(*arguments: Any) -> tuple[dict[str, list[str]], dict[str, int]]:
        return outline(*arguments)[0], {"train": 12, "test": 2}

    monkeypatch.setattr(hub, "outline", with_sizes)
    asked = recorded(monkeypatch)
    source = opened(repository, DataOptions(config="small"), limit=3)
    assert asked[0]["streaming"]
    assert len(source) == 3
    assert source.found is not None
    assert list(source.found.values) == [0, 0, 0]  # the first two of one file and the first of the other


def test_without_a_way_to_the_hub_what_was_loaded_before_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    splits = datasets.DatasetDict(train=as_dataset(SIX, LABELS), test=as_dataset(SIX[:2], [0, 1]))
    monkeypatch.setattr(datasets, "load_dataset", lambda name, **_: splits)
    source = hub.from_hub("someone/photos", TESTING, "skip", None)
    assert (source.name, source.hub_id, len(source)) == ("someone/photos, split test", "someone/photos", 2)
