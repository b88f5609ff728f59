"""Recipes and plans from anybody's hand: every file is read within bounds, or refused with one sentence."""

import os
import time
from pathlib import Path

import pytest

from hf_vitcompress.config import load_settings
from hf_vitcompress.config.reading import LARGEST, read_json, read_yaml
from hf_vitcompress.errors import ConfigError

BOMB = "a: &a [x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
YAML = {
    "aliases": (BOMB, "aliases"),
    "recursive alias": ("a: &a [*a]\n", "aliases"),
    "merged aliases": ("a: &a {b: 1}\nc:\n  <<: [*a, *a]\n", "aliases"),
    "given twice": ("keep_ratio: 0.9\nkeep_ratio: 0.5\n", "'keep_ratio' is given twice"),
    "deep": ("keep_ratio: " + "[" * 3000 + "]" * 3000, "recursion"),
    "code": ("a: !!python/object/apply:os.system ['true']\n", "python/object"),
    "names that cannot be": ("? [a]\n: 1\n", "unhashable"),
    "no date": ("a: 2020-99-99\n", "month"),
    "whole numbers without end": (f"a: {'9' * 5000}\n", "digits"),
    "two documents": ("a: 1\n---\nb: 2\n", "single document"),
    "control characters": ("a: \x07\n", "not allowed"),
    "tabs": ("a:\t1\n\tb: 2\n", r"line \d"),
    "unfinished": ("a: [1", r"line \d"),
}
JSON = {
    "given twice": ('{"a": 1, "a": 2}', "'a' is given twice"),
    "deep": ('{"a":' * 100000 + "1" + "}" * 100000, "recursion"),
    "whole numbers without end": (f'{{"a": {"9" * 5000}}}', "digits"),
    "unfinished": ("{", "line 1"),
    "nothing": ("", "line 1"),
}


def refused(path: Path, message: str) -> None:
    """The file is refused in time, on one line that is no essay and names the file."""
    read = read_json if path.suffix == ".json" else read_yaml
    start = time.monotonic()
    with pytest.raises(ConfigError, match=message) as caught:
        read(path, "recipe")
    assert time.monotonic() - start < 5
    text = str(caught.value)
    assert path.name in text
    assert len(text.splitlines()) == 1
    assert len(text) < 700


@pytest.mark.parametrize("kind", YAML)
def test_yaml_that_is_no_plain_data_is_refused(kind: str, tmp_path: Path) -> None:
    content, message = YAML[kind]
    (tmp_path / "recipe.yaml").write_text(content)
    refused(tmp_path / "recipe.yaml", message)


@pytest.mark.parametrize("kind", JSON)
def test_json_that_cannot_be_read_is_refused(kind: str, tmp_path: Path) -> None:
    content, message = JSON[kind]
    (tmp_path / "recipe.json").write_text(content)
    refused(tmp_path / "recipe.json", message)


@pytest.mark.parametrize("suffix", LARGEST)
def test_files_that_are_no_text_are_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"recipe{suffix}"
    for content, message in [
        (bytes(range(256)), "UTF-8"),
        ("keep_ratio: 1\n".encode("utf-16"), "UTF-8"),
        (b"#" * (LARGEST[suffix] + 1), "larger than"),
    ]:
        path.write_bytes(content)
        refused(path, message)


@pytest.mark.parametrize("suffix", LARGEST)
def test_what_is_no_file_is_refused_and_not_waited_for(suffix: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / f"pipe{suffix}")
    (tmp_path / f"folder{suffix}").mkdir()
    (tmp_path / f"loop{suffix}").symlink_to(tmp_path / f"loop{suffix}")
    (tmp_path / "file").touch()
    refused(tmp_path / f"pipe{suffix}", "is a pipe or a device; give a file")
    refused(tmp_path / f"folder{suffix}", "is a folder; give a file")
    refused(tmp_path / f"loop{suffix}", "cannot be read")
    refused(tmp_path / f"absent{suffix}", "There is no recipe")
    refused(tmp_path / "file" / f"below{suffix}", "cannot be read")


@pytest.mark.parametrize("path", ["x" * 300, "a\0b", "", None, 3])
def test_what_is_no_name_of_a_file_is_refused(path: object) -> None:
    for read in (read_json, read_yaml):
        with pytest.raises(ConfigError):
            read(path, "recipe")  # type: ignore[arg-type]


def test_an_empty_recipe_is_called_empty(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("# nothing yet\n")
    with pytest.raises(ConfigError, match="is empty"):
        load_settings(tmp_path / "recipe.yaml")


def test_a_mark_at_the_beginning_is_read_over(tmp_path: Path) -> None:
    for suffix, text in {".json": '{"keep_ratio": 0.4}', ".yaml": "keep_ratio: 0.4\n"}.items():
        path = tmp_path / f"recipe{suffix}"
        path.write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert load_settings(path) == {"keep_ratio": 0.4}


def test_yaml_keeps_what_recipes_are_written_with(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("# mine\nskip_modules: [fc1, 'layers.0.*']\ntarget: null\nseed: 3\n")
    assert load_settings(tmp_path / "recipe.yaml") == {"skip_modules": ["fc1", "layers.0.*"], "target": None, "seed": 3}
