"""Folders of results: what may be replaced, what stays, and who may write."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_vitcompress.errors import OutputError
from hf_vitcompress.runtime.manifest import read_manifest
from hf_vitcompress.runtime.outputs import Way, check_renewable, reserved, work_path
from support.results import PEOPLES, contents, files, fill, write_result


@pytest.fixture
def result(tmp_path: Path) -> Path:
    """An earlier result with words in its card and all that people put beside it."""
    folder = tmp_path / "out"
    write_result(folder, "old", shards=3)
    with (folder / "README.md").open("a") as card:
        card.write("\nmy words")
    return fill(folder, PEOPLES)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_and(folder: Path, way: Way, then: Callable[[Path], object], more: dict[str, str] | None = None) -> None:
    """Write a new result; do something just before it takes its place."""
    with reserved(folder, way) as output, output.replaced() as new:
        fill(new, {**files("new"), **(more or {})})
        then(new)


def fail_with(error: BaseException) -> Callable[[Path], None]:
    def fail(_: Path) -> None:
        raise error

    return fail


def refused(folder: Path, match: str, *ways: str) -> None:
    """That nothing changes in a folder where each of these ways is refused, before work and after it."""
    before = contents(folder)
    for way in ways or ("new", "overwrite"):
        with pytest.raises(OutputError, match=match), reserved(folder, way):  # type: ignore[arg-type]
            pytest.fail("refused before any work")
    assert contents(folder) == before
    assert [name for name in names(folder) if name.startswith(".vitcompress") and "files" not in name] == []


# ---- what there may be


@pytest.mark.parametrize("way", ["new", "overwrite", "renew"])
@pytest.mark.parametrize("there", [False, True])
def test_a_new_or_an_empty_folder_will_do(way: str, there: bool, tmp_path: Path) -> None:
    if there:
        (tmp_path / "a" / "out").mkdir(parents=True)
    write_result(tmp_path / "a" / "out", "new", way)  # type: ignore[arg-type]
    assert contents(tmp_path / "a" / "out").items() >= files("new").items()
    assert names(tmp_path / "a") == ["out"]


def test_a_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    seen = []
    write_and(tmp_path / "out", "new", lambda _: seen.append((tmp_path / "out").exists()))
    assert seen == [False]
    assert contents(tmp_path / "out") == files("new")


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt])
def test_a_failure_leaves_nothing_of_a_new_folder(error: type[BaseException], tmp_path: Path) -> None:
    with pytest.raises(error):
        write_and(tmp_path / "a" / "b" / "out", "new", fail_with(error()))
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_folder(error: type[BaseException], result: Path) -> None:
    before = contents(result)
    with pytest.raises(error):
        write_and(result, "overwrite", fail_with(error()))
    assert contents(result) == before
    assert names(result.parent) == ["out"]


def test_overwriting_keeps_what_is_not_ours(result: Path) -> None:
    write_result(result, "new", "overwrite")
    assert contents(result) == {**PEOPLES, **files("new"), "README.md": "new\nmy words"}
    assert names(result.parent) == ["out"]


def test_a_result_needs_permission(result: Path) -> None:
    refused(result, "--overwrite", "new")


def test_the_current_folder_can_be_a_result(result: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(result)
    write_result(Path("."), "new", "overwrite")
    assert Path("config.json").read_text() == files("new")["config.json"]


def test_a_relative_output_is_where_it_was_when_the_work_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    write_and(Path("out"), "new", lambda _: monkeypatch.chdir("elsewhere"))
    assert contents(tmp_path / "out") == files("new")


@pytest.mark.parametrize(
    "there",
    [
        {"thesis.tex": "mine", ".ssh/id_rsa": "mine"},
        {"README.md": "mine", "LICENSE": "mine", ".git/HEAD": "mine"},
        {"config.json": '{"model_type": "vit"}', "model.safetensors": "a dense model"},
        {"config.json": "[1]"},
        {"config.json": "{"},
        {"photos/a.png": "an image", "a.png": "an image"},
        {"onnx/model.onnx": "of another tool", "config.json": "{}"},
        {".vitcompress-files.json": "{}", "mine.doc": "mine"},
        {".vitcompress-files.json": '{"version": 1, "files": {"mine.doc": "0"}}', "config.json": "{}", "mine.doc": "1"},
    ],
    ids=lambda there: " ".join(there),
)
def test_a_folder_that_is_no_result_is_refused(there: dict[str, str], tmp_path: Path) -> None:
    refused(fill(tmp_path / "out", there), "not written by this package")


@pytest.mark.parametrize("name", ["thesis.tex", "data/a.csv", ".env", "id_rsa", "model.pt"])
def test_a_result_with_anything_foreign_in_it_is_refused(name: str, result: Path) -> None:
    fill(result, {name: "mine"})
    refused(result, f"also holds {name.partition('/')[0]}", "overwrite")


def test_files_that_somebody_has_changed_are_not_replaced(result: Path) -> None:
    (result / "compression_report.json").write_text("edited")
    refused(result, r"compression_report\.json changed after", "overwrite")


def test_a_file_is_never_replaced_by_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("mine")
    refused_file = tmp_path / "a.txt"
    with pytest.raises(OutputError, match="is a file"), reserved(refused_file, "overwrite"):
        pytest.fail("refused before any work")
    assert refused_file.read_text() == "mine"


def test_a_result_that_another_model_was_saved_over_is_no_result(result: Path) -> None:
    fill(result, {"config.json": '{"model_type": "vit"}', "model.safetensors": "a dense model"})
    (result / "training_args.bin").unlink()
    refused(result, "not written by this package", "overwrite", "renew")


def test_a_damaged_manifest_is_as_none(result: Path) -> None:
    (result / ".vitcompress-files.json").write_text("{" * 100_000)
    write_result(result, "new", "overwrite")
    assert contents(result) == {**PEOPLES, **files("new"), "README.md": "new\nmy words"}


@pytest.mark.parametrize("name", ["../victim", "/victim", "link/victim", "a/../../victim"])
def test_a_manifest_cannot_name_files_outside_its_folder(name: str, result: Path) -> None:
    outside = result.parent / "elsewhere"
    fill(outside, {"victim": "mine"})
    (result.parent / "victim").write_text("mine")
    (result / "docs").symlink_to(outside)
    listed = json.loads((result / ".vitcompress-files.json").read_text())
    digest = listed["files"]["model-00001-of-00003.safetensors"]
    named = name.replace("link", "docs").replace("/victim", str(result.parent / "victim")) if name[0] == "/" else name
    listed["files"][named.replace("link", "docs")] = digest
    (result / ".vitcompress-files.json").write_text(json.dumps(listed))
    (outside / "victim").write_text("old")  # the content that the digest is of
    (result.parent / "victim").write_text("old")
    write_result(result, "new", "overwrite")
    assert (outside / "victim").read_text() == (result.parent / "victim").read_text() == "old"


# ---- while the work is done


def test_what_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="not empty"):
        write_and(tmp_path / "out", "new", lambda _: fill(tmp_path / "out", {"thesis.tex": "mine"}))
    assert contents(tmp_path / "out") == {"thesis.tex": "mine"}


def test_a_card_that_is_edited_meanwhile_stays(result: Path) -> None:
    edited = {"README.md": "just written"}
    write_and(result, "overwrite", lambda _: fill(result, edited), more={"README.md": "new"})
    assert contents(result) == {**PEOPLES, **files("new"), "README.md": "just written"}


def test_a_licence_of_a_result_takes_the_place_of_no_other(result: Path) -> None:
    write_and(result, "overwrite", lambda new: fill(new, dict.fromkeys(("LICENSE", "NOTICE"), "of the dense model")))
    assert contents(result)["LICENSE"] == "theirs"
    assert contents(result)["NOTICE"] == "of the dense model"
    assert "LICENSE" not in (read_manifest(result) or {})


def test_a_folder_in_the_way_of_a_file_is_refused_before_anything_moves(result: Path) -> None:
    (result / "compression_report.md").mkdir()
    before = contents(result)
    with pytest.raises(OutputError, match="in the way"):
        write_and(result, "renew", lambda new: fill(new, {"compression_report.md": "new"}))
    assert contents(result) == before


WRITER = """
import sys
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("locked", flush=True)
    sys.stdin.read()
"""
"""What another run does with its lock."""


@pytest.mark.parametrize("there", [True, False])
def test_two_runs_exclude_each_other_and_a_killed_one_does_not_block(there: bool, result: Path) -> None:
    folder = result if there else result.parent / "new"
    command = [sys.executable, "-c", WRITER, str(folder.with_name(f".{folder.name}.lock"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(OutputError, match=r"Another run is writing to .*Wait until it has ended"):
            write_result(folder, "new", "overwrite")
        other.kill()
    write_result(folder, "new", "overwrite")
    assert contents(folder).items() >= files("new").items()
    assert names(result.parent) == sorted({"out", folder.name})


# ---- saving a model again


def test_renewing_replaces_what_is_written_and_nothing_else(result: Path) -> None:
    fill(result, {"thesis.tex": "mine", "model_ema.safetensors": "mine"})
    with reserved(result, "renew") as output, output.replaced() as new:
        fill(new, {"config.json": files("new")["config.json"], "model.safetensors": "new"})
    left = {**PEOPLES, "thesis.tex": "mine", "model_ema.safetensors": "mine", "README.md": "old\nno words\nmy words"}
    ours = {"compression_report.json": "old", "modeling_factored.py": "old", "model.safetensors": "new"}
    assert contents(result) == {**left, **ours, "config.json": files("new")["config.json"]}
    assert {*ours, "config.json"} <= (read_manifest(result) or {}).keys()


@pytest.mark.parametrize("way", ["new", "overwrite", "renew"])
def test_a_model_of_somebody_else_is_never_replaced(way: str, tmp_path: Path) -> None:
    dense = {"config.json": '{"model_type": "vit"}', "model.safetensors": "dense"}
    refused(fill(tmp_path / "dense", dense), "not written by this package", way)


def test_a_trainer_saves_over_its_own_model(tmp_path: Path) -> None:
    dense = {"config.json": '{"model_type": "vit"}', "model.safetensors": "dense", "training_args.bin": "mine"}
    write_result(fill(tmp_path / "run", dense), "new", "renew")
    assert contents(tmp_path / "run").items() >= files("new").items()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: fill(folder, {"config.json": '{"model_type": "vit"}'}), "holds a model"),
        (lambda folder: folder.write_text(""), "not a folder"),
    ],
)
def test_where_a_model_cannot_be_saved_is_known_before(
    make: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    make(tmp_path / "out")
    with pytest.raises(OutputError, match=message):
        check_renewable(tmp_path / "out")
    check_renewable(tmp_path / "new")


# ---- what former versions left


def ended_process() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


def test_what_killed_runs_left_does_not_block(result: Path) -> None:
    process = ended_process()
    fill(result.parent / f".out.{process}.part", files("half"))
    fill(result.parent / ".out.part", files("half"))
    fill(result / ".saving-abc", files("half"))
    fill(result / ".vitcompress-part" / "new", files("half"))
    fill(result, {f".README.md.{process}.part": "half"})
    write_result(result, "new", "overwrite")
    assert contents(result) == {**PEOPLES, **files("new"), "README.md": "new\nmy words"}
    assert names(result.parent) == ["out"]


@pytest.mark.parametrize("moved_in", [0, 2], ids=["nothing of the new was in", "half of the new was in"])
def test_what_a_former_version_had_moved_out_comes_back(moved_in: int, result: Path) -> None:
    process = ended_process()
    before = contents(result)
    old, part = (result.parent / f".out.{process}.{ending}" for ending in ("old", "part"))
    old.mkdir()
    for path in list(result.iterdir())[: None if moved_in else 4]:
        os.replace(path, old / path.name)
    fill(part, {**files("new"), "README.md": "new"})
    for name in list(files("new"))[:moved_in]:
        os.replace(part / name, result / name)
    with reserved(result, "overwrite"):
        assert contents(result) == before
    assert names(result.parent) == ["out"]


def test_what_a_former_version_had_not_removed_yet_comes_back_if_it_is_somebodys(result: Path) -> None:
    process = ended_process()
    old = fill(result.parent / f".out.{process}.old", {**files("older"), "thesis.md": "mine", "LICENSE": "older"})
    fill(result.parent / f".out.{process}.part" / "onnx", {})
    write_result(result, "new", "overwrite")
    assert contents(result)["thesis.md"] == "mine"
    assert contents(result)["LICENSE"] == "theirs"
    assert contents(old)["LICENSE"] == "older", "nowhere else"


# ---- names


def test_names_may_be_as_long_as_file_systems_allow(tmp_path: Path) -> None:
    folder = tmp_path / ("ä" * 127 + "x")
    write_result(folder, "old")
    write_result(folder, "new", "overwrite")
    assert contents(folder).items() >= files("new").items()
    assert names(tmp_path) == [folder.name]
    assert len(os.fsencode(work_path(folder, ".calibration.safetensors").name)) < 100


@pytest.mark.parametrize("name", ["", " ", "x" * 256])
def test_names_that_cannot_be_are_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match=r"is empty|cannot be an output"), reserved(name, "overwrite"):
        pytest.fail("refused before any work")
    assert names(tmp_path) == []


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc")
def test_a_place_that_takes_no_files_is_refused_before_any_work() -> None:
    with pytest.raises(OutputError, match="could not be written"), reserved("/proc/out"):
        pytest.fail("refused before any work")


def test_links_to_an_output_are_followed(result: Path) -> None:
    link = result.parent / "link"
    link.symlink_to("out", target_is_directory=True)
    refused(link, "--overwrite", "new")
    write_result(link, "new", "overwrite")
    assert link.is_symlink()
    assert contents(result).items() >= files("new").items()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_place_is_refused_before_any_work(result: Path) -> None:
    result.chmod(0o500)
    with pytest.raises(OutputError, match="could not be written"), reserved(result, "overwrite"):
        pytest.fail("refused before any work")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_in_a_read_only_one_can_be_written_to(result: Path) -> None:
    result.parent.chmod(0o500)
    write_result(result, "new", "overwrite")
    assert work_path(result, ".calibration.safetensors").parent == result
    result.parent.chmod(0o700)
    assert contents(result).items() >= files("new").items()
