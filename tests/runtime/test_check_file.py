"""Whether a file can be written, asked beforehand and without a trace."""

from pathlib import Path

import pytest

from hf_vitcompress.errors import OutputError
from hf_vitcompress.runtime.files import LONGEST_NAME, check_file


def test_places_that_take_files_are_left_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("mine")
    for name in ("new", "old", "folders/that/come", "x" * LONGEST_NAME):
        check_file(tmp_path / name, renews=lambda _: True)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "is a folder"),
        ("file/below", "not a folder|Not a directory"),
        ("x" * (LONGEST_NAME + 1), "too long"),
        ("ü" * (LONGEST_NAME // 2 + 1), "too long"),
        ("x" * 300 + "/file", "too long"),
        ("a\0b", "null"),
        ("loop/file", "symbolic links"),
        ("/proc/file", "cannot be written"),
    ],
)
def test_places_that_take_none_are_named(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(OutputError, match=message):
        check_file(tmp_path / name)


@pytest.mark.parametrize("path", ["", " ", None, 3])
def test_what_is_no_path_is_refused(path: object) -> None:
    with pytest.raises(OutputError, match=r"empty|Give the path"):
        check_file(path)  # type: ignore[arg-type]
