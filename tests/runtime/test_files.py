"""Writing: all of it or nothing."""

import contextlib
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors import SafetensorError
from transformers import AutoModelForImageClassification, PreTrainedModel

from hf_vitcompress import CompressionConfig, Statistics, ViTCompressor, cli
from hf_vitcompress.errors import OutputError
from hf_vitcompress.runtime.files import atomic_path, check_new_folder
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


def write_and_fail(path: Path, error: BaseException, folder: bool = False) -> None:
    with atomic_path(path, folder=folder) as temporary:
        (temporary / "new.txt" if folder else temporary).write_text("half")
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


def test_a_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "out", folder=True) as temporary:
        (temporary / "a.txt").write_text("new")
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out" / "a.txt").read_text() == "new"
    assert names(tmp_path) == ["out"]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old.txt").write_text("old")
    with atomic_path(tmp_path / "out", folder=True) as temporary:
        (temporary / "new.txt").write_text("new")
    assert names(tmp_path / "out") == ["new.txt"]
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [ValueError, OSError])
def test_a_failure_leaves_the_old_folder(error: type[Exception], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old.txt").write_text("old")
    with pytest.raises(error):
        write_and_fail(tmp_path / "out", error(), folder=True)
    assert names(tmp_path / "out") == ["old.txt"]
    assert names(tmp_path) == ["out"]


# ---- check_new_folder


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_new_or_an_empty_folder_will_do(overwrite: bool, tmp_path: Path) -> None:
    check_new_folder(tmp_path, overwrite)
    check_new_folder(tmp_path / "new", overwrite)
    assert names(tmp_path) == []


def test_a_full_folder_needs_permission(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("mine")
    with pytest.raises(OutputError, match="--overwrite"):
        check_new_folder(tmp_path)
    check_new_folder(tmp_path, overwrite=True)
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_file_is_never_replaced_by_a_folder(overwrite: bool, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("mine")
    with pytest.raises(OutputError, match="is a file"):
        check_new_folder(tmp_path / "a.txt", overwrite)


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
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.safetensors").write_bytes(b"the earlier one")
    assert compress_on_a_full_disk(compressed[1], tmp_path / "out", monkeypatch, "--overwrite") == 1
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == b"the earlier one"


def test_save_pretrained_on_a_full_disk_leaves_no_half_of_a_model(
    compressed: tuple[PreTrainedModel, Path], tmp_path: Path
) -> None:
    with full_disk(LIMIT), pytest.raises((OSError, SafetensorError)):
        compressed[0].save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists() or names(tmp_path / "out") == []


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
