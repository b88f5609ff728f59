"""What importing the package costs, what it offers, and what its files must not say."""

import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import hf_vitcompress
from hf_vitcompress.starting import unfit_libraries
from support.models import REPOSITORY

HEAVY = ("datasets", "evaluate", "matplotlib", "rich", "typer", "accelerate")
MODELS = ("transformers.modeling_utils", "transformers.generation.utils", "transformers.quantizers")
OPTIONAL = ("onnx", "onnxruntime", "onnxscript", "openvino", "peft", "timm", "torchao", "torchvision")
IMPORT = """
import sys
import transformers.models.auto.modeling_auto
before = set(sys.modules)
import hf_vitcompress
print(*set(sys.modules) - before)
print(*dir(hf_vitcompress))
import hf_vitcompress.evaluation, hf_vitcompress.evaluation.comparison
print(*(name for name in ("evaluate", "datasets") if name in sys.modules))
"""
# A root folder of one computer, and not a part of an address or of a relative path.
ABSOLUTE = re.compile(r"(?<![\w.~}\])-])/(?:work|tmp|home|root|Users)\b")

OUTPUTS = {".json", ".onnx", ".parquet", ".png", ".pt2", ".pte", ".safetensors"}
"""Suffixes of what the commands write, and of what they read."""

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@pytest.fixture(scope="module")
def imported() -> list[list[str]]:
    """What a new interpreter says: modules that the import adds, the package's names, and libraries for metrics."""
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True, timeout=300)
    return [line.split() for line in done.stdout.split("\n")]


def test_importing_it_imports_nothing_that_is_not_needed_yet(imported: list[list[str]]) -> None:
    assert "hf_vitcompress" in imported[0]
    assert not [name for name in imported[0] if name.partition(".")[0] in HEAVY + OPTIONAL or name in MODELS]
    assert not [name for name in imported[0] if ".modeling_" in name]


def test_dir_shows_every_public_name_and_the_modules_own_ones(imported: list[list[str]]) -> None:
    assert set(imported[1]) >= {*hf_vitcompress.__all__, "__name__", "__path__"}


def test_evaluation_imports_the_library_of_metrics_only_where_one_is_named(imported: list[list[str]]) -> None:
    assert imported[2] == []


def test_a_torchvision_that_does_not_fit_torch_is_named() -> None:
    """transformers says only that some class of its own cannot be imported."""
    error = ModuleNotFoundError("Could not import module 'PreTrainedModel'.")
    assert unfit_libraries(error) is None
    error.__cause__ = RuntimeError("operator torchvision::nms does not exist")
    assert re.fullmatch(
        r".*torchvision is not made for.*nms does not exist.*pip install --upgrade.*", str(unfit_libraries(error))
    )


@pytest.mark.parametrize("name", hf_vitcompress.__all__)
def test_public_names_can_be_imported(name: str) -> None:
    assert getattr(hf_vitcompress, name) is not None


def test_other_names_are_refused_as_usual() -> None:
    with pytest.raises(AttributeError, match="no attribute 'ViTCompresor'"):
        hf_vitcompress.ViTCompresor  # noqa: B018


def test_the_version_is_the_installed_one() -> None:
    assert importlib.metadata.version("hf-vitcompress") == hf_vitcompress.__version__


def test_the_package_says_it_is_typed() -> None:
    assert (Path(hf_vitcompress.__file__).parent / "py.typed").is_file()


def test_links_and_pictures_of_the_readme_work_on_a_package_index() -> None:
    """The pictures and links of Markdown, less those to a heading of the same page."""
    command = [sys.executable, "-m", "hatch_fancy_pypi_readme"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=60)
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    relative = [target for target in LINK.findall(readme) if not target.startswith(("http", "#"))]
    assert relative
    made = [target for target in LINK.findall(done.stdout) if not target.startswith("#")]
    assert not [target for target in made if not target.startswith("https://")]
    absolute = [target for target in made if target.startswith(project["urls"]["Homepage"])]
    assert [target.split("/main/")[1] for target in absolute] == relative


def tracked_files() -> list[Path]:
    if shutil.which("git") is None or not (REPOSITORY / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    paths = [REPOSITORY / name for name in listing.stdout.split("\0") if name]
    return [path for path in paths if path.is_file()]


def tracked_text_files() -> list[Path]:
    return [path for path in tracked_files() if b"\0" not in path.read_bytes()[:8000]]


def test_no_file_names_a_place_of_one_computer() -> None:
    found = [
        f"{path.relative_to(REPOSITORY)}:{number}: {line.strip()[:80]}"
        for path in tracked_text_files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if ABSOLUTE.search(line)
    ]
    assert not found


def test_what_commands_and_examples_write_is_not_in_the_root() -> None:
    """`inspect` writes `inspection.png` into the folder in which it is run, if nobody names another file."""
    tracked = [path.name for path in tracked_files() if path.parent == REPOSITORY]
    assert "README.md" in tracked
    assert not [name for name in tracked if Path(name).suffix in OUTPUTS]


@pytest.mark.parametrize("before", ['path = "', "see ", "(", "file://"])
def test_the_search_for_absolute_paths_finds_them(before: str) -> None:
    assert ABSOLUTE.search(before + "/" + "home/somebody/model")


@pytest.mark.parametrize("line", ["https://example.org/home/x", "a/work/b", "./tmp", "{root}/tmp", "/homes"])
def test_the_search_for_absolute_paths_leaves_others_alone(line: str) -> None:
    assert not ABSOLUTE.search(line)
