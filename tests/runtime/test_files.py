"""Writing: all of it or nothing."""

import contextlib
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors import SafetensorError
from transformers import AutoModelForImageClassification, PreTrainedModel

from hf_vitcompress import CompressionConfig, Statistics, ViTCompressor, cli
from hf_vitcompress.errors import OutputError
from hf_vitcompress.runtime.files import atomic_path, check_apart, check_file, with_ending, write_text
from support.models import DIGITS

MODEL = DIGITS / "model"


@contextlib.contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file can grow beyond `size` bytes; Python ignores the signal that goes with it and gets an OSError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- atomic_path


def write_and_fail(path: Path, error: BaseException) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        raise error


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
        assert not (tmp_path / "a.txt").exists()
        assert temporary.parent == tmp_path
    assert (tmp_path / "a.txt").read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


def test_missing_parents_are_made(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "b" / "c" / "a.txt") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "b" / "c" / "a.txt").read_text() == "new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_and_no_other(error: type[BaseException], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(error):
        write_and_fail(tmp_path / "a.txt", error())
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("I/O error")])
def test_what_the_disk_refuses_is_an_output_error(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"a\.txt.*(No space|I/O error).*Free some space") as caught:
        write_and_fail(tmp_path / "a.txt", error)
    assert caught.value.__cause__ is error
    assert names(tmp_path) == []


def test_a_place_that_is_no_folder_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"), atomic_path(tmp_path / "file" / "a.txt"):
        pytest.fail("there is nowhere to write to")


def test_what_a_process_that_has_ended_left_is_removed(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for name in (f".a.txt.{ended.pid}.part", f".a.txt.{ended.pid}-{ended.pid}.part"):
        (tmp_path / name).write_text("half")
    others = [f".a.txt.{os.getppid()}-1.part", f".b.txt.{ended.pid}.part", ".a.txt.part", "a.txt.1.part"]
    for name in others:
        (tmp_path / name).write_text("of others")
    write_text(tmp_path / "a.txt", "new")
    assert names(tmp_path) == sorted([*others, "a.txt"])


def test_a_link_is_replaced_and_not_what_it_leads_to(tmp_path: Path) -> None:
    write_text(tmp_path / "elsewhere" / "b.txt", "old")
    (tmp_path / "a.txt").symlink_to(tmp_path / "elsewhere" / "b.txt")
    (tmp_path / "folder").symlink_to("elsewhere", target_is_directory=True)
    write_text(tmp_path / "a.txt", "new")
    write_text(tmp_path / "folder" / "c.txt", "new")
    assert not (tmp_path / "a.txt").is_symlink()
    assert (tmp_path / "a.txt").read_text() == "new"
    assert (tmp_path / "elsewhere" / "b.txt").read_text() == "old"
    assert (tmp_path / "elsewhere" / "c.txt").read_text() == "new"


def test_the_other_name_of_a_file_keeps_its_content(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    (tmp_path / "backup.txt").hardlink_to(tmp_path / "a.txt")
    write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "backup.txt").read_text() == "old"


LONGEST = "ä" * 125 + ".json"  # 255 bytes


def test_names_may_be_as_long_as_file_systems_allow(tmp_path: Path) -> None:
    write_text(tmp_path / LONGEST, "new")
    assert names(tmp_path) == [LONGEST]
    derived = with_ending(tmp_path / LONGEST, ".stage-0123456789")
    write_text(derived, "a checkpoint")
    assert derived.name.endswith(".stage-0123456789")
    assert with_ending(tmp_path / "short", ".x") == tmp_path / "short.x"


@pytest.mark.parametrize("name", ["ä" * 128, "nul\0nul"])
def test_names_that_no_file_can_have_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot be an output.*Choose another name"):
        write_text(tmp_path / name, "new")


@pytest.mark.parametrize("blank", ["", " ", "\t\n"])
def test_a_blank_name_is_refused(blank: str) -> None:
    with pytest.raises(OutputError, match="is empty"):
        write_text(blank, "new")


# ---- before any work


def test_a_file_that_is_new_or_may_be_renewed_will_do(tmp_path: Path) -> None:
    check_file(tmp_path / "deeper" / "new.json")
    write_text(tmp_path / "old.json", "old")
    check_file(tmp_path / "old.json", renews=lambda path: path.read_text() == "old")
    assert names(tmp_path) == ["old.json"]


def test_a_file_that_somebody_else_wrote_is_refused(tmp_path: Path) -> None:
    write_text(tmp_path / "thesis.json", "mine")
    with pytest.raises(OutputError, match=r"thesis\.json.*exists and would be replaced"):
        check_file(tmp_path / "thesis.json")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("folder", "is a folder"),
        ("pipe", "is a device or a pipe"),
        ("file/a.json", "Not a directory"),
        pytest.param(
            "read-only/a.json",
            "not a folder that you may write to",
            marks=pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere"),
        ),
    ],
)
def test_a_file_that_could_not_be_written_is_refused(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "read-only").mkdir(mode=0o500)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=message):
        check_file(tmp_path / name)


@pytest.mark.parametrize(
    ("output", "given", "relation"),
    [
        ("photos", "photos", "is"),
        (".", "photos", "contains"),
        ("photos/out", "photos", "lies inside"),
        ("photos/not/yet/there", "photos", "lies inside"),
        ("link", "photos", "is"),
        ("photos", "link", "is"),
        ("link/out", "photos", "lies inside"),
        ("photos/../photos/out", "photos", "lies inside"),
        ("photos/a.png", "photos/a.png", "is"),
        ("photos", "photos/a.png", "contains"),
        ("again.png", "photos/a.png", "is"),
    ],
)
def test_an_output_is_apart_from_every_input(output: str, given: str, relation: str, tmp_path: Path) -> None:
    write_text(tmp_path / "photos" / "a.png", "an image")
    (tmp_path / "link").symlink_to("photos", target_is_directory=True)
    (tmp_path / "again.png").hardlink_to(tmp_path / "photos" / "a.png")
    target = Path(os.path.realpath(tmp_path / output))
    with pytest.raises(OutputError, match=rf"{relation} the images.*Choose another place"):
        check_apart(target, {"the model": None, "the images": str(tmp_path / given)})


def test_an_output_beside_inputs_will_do(tmp_path: Path) -> None:
    write_text(tmp_path / "photos" / "a.png", "an image")
    inputs = {"the images": tmp_path / "photos", "the model": "google/vit", "more": object(), "none": None}
    check_apart(tmp_path / "photos-small", inputs)
    check_apart(tmp_path / "photos" / "out", inputs, beside=("the images",))
    with pytest.raises(OutputError, match="is the images"):
        check_apart(tmp_path / "photos", inputs, beside=("the images",))
    with pytest.raises(OutputError, match="is the model"):
        check_apart(tmp_path / "photos", {"the model": SimpleNamespace(name_or_path=str(tmp_path / "photos"))})


# ---- a full disk


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedModel, Path]:
    """The digits model at half size (0.4 MB of weights), and the file of its statistics."""
    compressor = ViTCompressor(CompressionConfig(rank_multiple=2, measuring_images=0), progress=False)
    file = tmp_path_factory.mktemp("statistics") / "digits.safetensors"
    model = compressor.compress(MODEL, DIGITS / "calibration.parquet", checkpoint=file)
    return model, file


LIMIT = 100_000


def test_statistics_that_do_not_fit_leave_the_earlier_ones(compressed: tuple[PreTrainedModel, Path]) -> None:
    file = compressed[1]
    before = file.read_bytes()
    assert len(before) > LIMIT
    statistics = Statistics.load(file)
    with full_disk(LIMIT), pytest.raises(OutputError, match="Free some space"):
        statistics.save(file)
    assert file.read_bytes() == before
    assert names(file.parent) == [file.name]


def compress_on_a_full_disk(statistics: Path, output: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> object:
    arguments = ["compress", str(MODEL), "--statistics", str(statistics), "--rank-multiple", "2", "-q"]
    monkeypatch.setattr(sys, "argv", ["vitcompress", *arguments, "--output", str(output), *options])
    with full_disk(LIMIT), pytest.raises(SystemExit) as stopped:
        cli.main()
    return stopped.value.code


def test_a_model_that_does_not_fit_leaves_nothing(
    compressed: tuple[PreTrainedModel, Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    before = compressed[1].read_bytes()
    assert compress_on_a_full_disk(compressed[1], tmp_path / "out", monkeypatch) == 1
    (error,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert "could not be written" in error
    assert "Free some space" in error
    assert names(tmp_path) == []
    assert compressed[1].read_bytes() == before


def test_a_model_that_does_not_fit_leaves_the_earlier_one(
    compressed: tuple[PreTrainedModel, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compressed[0].save_pretrained(tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert compress_on_a_full_disk(compressed[1], tmp_path / "out", monkeypatch, "--overwrite") == 1
    assert names(tmp_path) == ["out"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_save_pretrained_on_a_full_disk_leaves_no_half_of_a_model(
    compressed: tuple[PreTrainedModel, Path], tmp_path: Path
) -> None:
    with full_disk(LIMIT), pytest.raises((OSError, SafetensorError)):
        compressed[0].save_pretrained(tmp_path / "out")
    assert names(tmp_path) == []


def test_save_pretrained_on_a_full_disk_leaves_the_earlier_model(
    compressed: tuple[PreTrainedModel, Path], tmp_path: Path
) -> None:
    model = compressed[0]
    model.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with full_disk(LIMIT), pytest.raises((OSError, SafetensorError)):
        model.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    again = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert again.num_parameters() == model.num_parameters()


def test_calibration_on_a_full_disk_says_so(tmp_path: Path) -> None:
    compressor = ViTCompressor(CompressionConfig(metric="activation", measuring_images=0), progress=False)
    with full_disk(LIMIT), pytest.raises(OutputError, match=r"statistics\.safetensors.*could not be written"):
        compressor.calibrate(MODEL, DIGITS / "calibration.parquet", checkpoint=tmp_path / "statistics.safetensors")
    assert names(tmp_path) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_write_protected_is_an_output_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="could not be written"), atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
