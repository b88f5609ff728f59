"""A kill at any moment leaves the old result, the new one, or a folder that does not load until a run completes it.

Kills are simulated: from some change to the disk on, none happens any more. `tests/drills` kills processes.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_vitcompress.errors import OutputError
from hf_vitcompress.runtime.outputs import Way, complete_exchange, reserved
from support.kills import killed_before
from support.results import PEOPLES, contents, files, fill, write_result

OLD_SHARDS = 3


def old_result(folder: Path) -> Path:
    """One of several shards, with words in its card and things of people beside it."""
    write_result(folder, "old", shards=OLD_SHARDS)
    with (folder / "README.md").open("a") as card:
        card.write("\nmy words")
    return fill(folder, PEOPLES)


def former_result(folder: Path) -> Path:
    """One of a version that wrote no manifest."""
    old_result(folder)
    (folder / ".vitcompress-files.json").unlink()
    return folder


def empty(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def nothing(folder: Path) -> Path:
    return folder


STARTS: dict[str, tuple[Callable[[Path], Path], Way]] = {
    "no folder": (nothing, "new"),
    "an empty folder": (empty, "new"),
    "a result": (old_result, "overwrite"),
    "a result of a former version": (former_result, "overwrite"),
    "a checkpoint that is saved again": (old_result, "renew"),
}


def assert_old_new_or_refused(folder: Path, before: dict[str, str], after: dict[str, str]) -> None:
    """That what there is loads as one of both, or has no config."""
    found = contents(folder) if folder.is_dir() else {}
    for name, content in PEOPLES.items():
        assert name not in before or found[name] == content
    if "README.md" in before:
        assert found["README.md"].endswith("my words")
    if "config.json" in found:
        ours = [name for name in found if name in (*files("", OLD_SHARDS), "model.safetensors")]
        assert {name: found[name] for name in ours} in (
            {name: text for name, text in before.items() if name in ours},
            {name: text for name, text in after.items() if name in ours},
        )


def is_complete(folder: Path) -> bool:
    """Whether a folder is refused because it has a result, which has just been completed where it was not."""
    try:
        with reserved(folder):
            return False
    except OutputError as error:
        return "exists and is not empty. Choose another name, or pass" in str(error)


@pytest.mark.parametrize("start", STARTS)
def test_a_kill_before_any_change_leaves_old_or_new_and_the_next_run_completes(start: str, tmp_path: Path) -> None:
    make, way = STARTS[start]
    original = make(tmp_path / "original" / "out")
    before = contents(original) if original.is_dir() else {}
    good = tmp_path / "good" / "out"
    if original.is_dir():
        shutil.copytree(original, good)
    write_result(good, "new", way)
    after = contents(good)
    assert after["config.json"] == files("new")["config.json"]

    change, killed = 0, True
    while killed:
        place = tmp_path / f"kill-{change}"
        place.mkdir()
        if original.is_dir():
            shutil.copytree(original, place / "out")
        killed = killed_before(lambda out=place / "out": write_result(out, "new", way), place, change)  # type: ignore[misc]
        assert_old_new_or_refused(place / "out", before, after)
        if way != "new" or not is_complete(place / "out"):
            write_result(place / "out", "new", way)
        assert contents(place / "out") == after
        assert [path.name for path in place.iterdir()] == ["out"]
        change += 1
    assert change > 10


def interrupted(folder: Path, reached: Callable[[Path], bool]) -> Path:
    """An exchange that was killed when `reached` is first true of the folder."""
    for change in range(100):
        shutil.rmtree(folder, ignore_errors=True)
        old_result(folder)
        assert killed_before(lambda: write_result(folder, "new", "overwrite"), folder.parent, change)
        if reached(folder):
            return folder
    raise AssertionError("the exchange never got there")


def without_config(folder: Path) -> bool:
    return not (folder / "config.json").exists()


def test_loading_completes_an_exchange(tmp_path: Path) -> None:
    folder = interrupted(tmp_path / "out", without_config)
    complete_exchange(folder)
    assert json.loads((folder / "config.json").read_text())["content"] == "new"
    assert not (folder / ".vitcompress-ready").exists()
    complete_exchange(folder)
    complete_exchange(tmp_path / "nowhere")


def test_what_somebody_puts_into_a_torn_folder_is_not_replaced(tmp_path: Path) -> None:
    folder = interrupted(tmp_path / "out", without_config)
    (folder / "config.json").write_text("from my backup")
    with pytest.raises(OutputError, match=r"config\.json.*was changed.*Move it elsewhere"):
        complete_exchange(folder)
    assert (folder / "config.json").read_text() == "from my backup"
    (folder / "config.json").unlink()
    complete_exchange(folder)
    assert json.loads((folder / "config.json").read_text())["content"] == "new"


@pytest.mark.parametrize(
    "journal", ["half of", "[]", '{"put": {"../out.txt": null}, "remove": {}}', '{"put": {}, "remove": {"/a": "b"}}']
)
def test_a_damaged_journal_is_refused_in_one_sentence(journal: str, tmp_path: Path) -> None:
    folder = interrupted(tmp_path / "out", without_config)
    (folder / ".vitcompress-ready" / "exchange.json").write_text(journal)
    with pytest.raises(OutputError, match=r"exchange\.json.*is damaged"):
        complete_exchange(folder)


def test_a_full_disk_in_the_exchange_is_an_output_error_and_the_next_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = old_result(tmp_path / "out")
    replace, moved = os.replace, []

    def full(source: object, target: object) -> None:
        moved.append(target)
        if len(moved) > 3:
            raise OSError(28, "No space left on device")
        replace(source, target)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OutputError, match=r"No space left.*Nothing is lost"):
        write_result(folder, "new", "overwrite")
    monkeypatch.undo()
    complete_exchange(folder)
    assert contents(folder)["model.safetensors"] == "new"
    assert contents(folder).items() >= PEOPLES.items()
