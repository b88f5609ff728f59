"""The rules of the house: who may import whom, how long a file may be, which names stay where they are.

`support.structure` reads imports off the source, those in functions, for type checkers and by `importlib` included.
"""

import ast
import textwrap
from pathlib import Path

import pytest

from support.models import REPOSITORY
from support.structure import (
    Package,
    circles,
    foreign_imports,
    imported_tests,
    long_files,
    private_imports,
    travelling,
    upward,
)

ORDER = [
    ("__init__", "__main__"),
    ("callbacks", "cli", "timm"),
    ("compressor",),
    ("auto_classes",),
    ("model_methods",),
    ("conversion", "deploy"),
    ("publish",),
    ("report",),
    ("compensation",),
    ("planning",),
    ("profiling",),
    ("importance",),
    ("evaluation",),
    ("model",),
    ("training",),
    ("statistics",),
    ("architectures",),
    ("images",),
    ("runtime",),
    ("modeling_timm",),
    ("modeling_timm_backbone",),
    ("modeling_factored",),
    ("tokens_factored",),
    ("layers_factored",),
    ("configuration_timm",),
    ("configuration_factored",),
    ("config",),
    ("durations", "metrics"),
    ("errors", "version", "starting"),
]
"""From the top down: what stands in a row imports from rows below it, and nothing else."""

PACKAGE_LINES, TEST_LINES = 350, 500
TRAVELS_WITH = ("torch", "transformers")


def python_files(*folders: str) -> dict[str, Path]:
    """By their path in the repository."""
    paths = [path for folder in folders for path in sorted((REPOSITORY / folder).rglob("*.py"))]
    return {path.relative_to(REPOSITORY).as_posix(): path for path in paths}


@pytest.fixture(scope="module")
def package() -> Package:
    return Package(REPOSITORY / "hf_vitcompress")


def test_no_modules_import_one_another_in_a_circle(package: Package) -> None:
    assert circles(package.graph()) == []


def test_a_folder_imports_from_folders_below_it(package: Package) -> None:
    assert upward(package, ORDER) == []


def test_files_of_the_package_are_short() -> None:
    assert long_files(python_files("hf_vitcompress"), PACKAGE_LINES) == {}


def test_files_of_the_tests_are_not_long() -> None:
    assert long_files(python_files("tests"), TEST_LINES) == {}


def test_private_names_stay_in_their_file(package: Package) -> None:
    files = python_files("hf_vitcompress", "tests", "benchmarks", "examples", "docs", "model_cards")
    assert private_imports(package, files) == []


def test_no_test_module_is_imported() -> None:
    assert imported_tests(python_files("tests")) == []


def test_tensors_that_the_package_makes_name_their_type() -> None:
    """torch's default one is the caller's to set."""
    assert [place for file, path in python_files("hf_vitcompress").items() for place in of_no_type(file, path)] == []


def of_no_type(file: str, path: Path) -> list[str]:
    """Calls of torch that make a tensor of floats and take its type from the default."""
    made = {f"torch.{name}" for name in ("zeros", "ones", "empty", "full", "eye", "rand", "randn", "linspace")}
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    of_floats = [call for call in calls if ast.unparse(call.func) in made]
    return [f"{file}:{call.lineno}" for call in of_floats if "dtype" not in {word.arg for word in call.keywords}]


def test_what_travels_with_a_checkpoint_needs_torch_transformers_and_itself(package: Package) -> None:
    entries = ("modeling_factored", "modeling_timm")
    files = {file for entry in entries for file in travelling(package, f"hf_vitcompress.{entry}")}
    of_timm = ("configuration_timm", "modeling_timm_backbone", "modeling_timm")
    names = ("modeling_factored", "configuration_factored", *of_timm)
    assert {f"hf_vitcompress.{name}" for name in names} <= files
    assert {module for module in files if module.count(".") != 1} == set(), "beside one another, as transformers copies"
    assert foreign_imports(package, files, TRAVELS_WITH) == []


# ---- that the rules can be broken


def house(root: Path, **files: str) -> Package:
    """A package of files by their module's name, `__` for a dot."""
    for name, source in files.items():
        path = root / "house" / f"{name.replace('__', '/') if not name.startswith('__') else name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))
    return Package(root / "house")


@pytest.mark.parametrize(
    "upward_import",
    [
        "from . import attic",
        "from .attic import view",
        "import house.attic",
        "from house import attic",
        "from house.attic import view",
        "def look():\n    from .attic import view",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .attic import view",
        "import importlib\nimportlib.import_module('house.attic')",
        "import importlib\nimportlib.import_module('.attic', __package__)",
        "from importlib import import_module\nimport_module('.attic', __package__)",
        "__import__('house.attic')",
        "import importlib\nPLACES = {1: 'attic'}\ndef look(name):\n    importlib.import_module(f'.{PLACES[name]}')",
    ],
)
def test_a_circle_is_found_however_it_is_imported(tmp_path: Path, upward_import: str) -> None:
    package = house(tmp_path, __init__="", attic="from .cellar import wine", cellar=upward_import)
    assert circles(package.graph()) == [["house.attic", "house.cellar"]]
    assert upward(package, [("__init__",), ("attic",), ("cellar",)]) == ["house.cellar → house.attic"]


def test_no_circle_is_found_where_imports_go_down(tmp_path: Path) -> None:
    package = house(
        tmp_path,
        __init__="from .attic.room import view\nimport importlib\nimportlib.import_module('torch')",
        attic__room="from ..cellar import wine",
        attic__window="from .room import view",
        cellar="import math\nWORD = '.'",
    )
    assert circles(package.graph()) == []
    assert upward(package, [("__init__",), ("attic",), ("cellar",)]) == []


def test_long_circles_and_several_are_found(tmp_path: Path) -> None:
    package = house(
        tmp_path,
        __init__="",
        a="from . import b",
        b="from . import c",
        c="from . import a",
        d="from . import a, e",
        e="from . import d",
    )
    assert circles(package.graph()) == [["house.a", "house.b", "house.c"], ["house.d", "house.e"]]


def test_rooms_of_one_row_and_rooms_without_a_place_are_found(tmp_path: Path) -> None:
    package = house(tmp_path, __init__="", left="from .right import wall", right="", shed="from .left import tools")
    assert upward(package, [("__init__",), ("left", "right")]) == ["house.left → house.right", "shed has no place"]


def test_private_names_are_found_wherever_they_are_taken(tmp_path: Path) -> None:
    package = house(
        tmp_path,
        __init__="from .cellar import __version__",
        cellar="_key = 1\n__version__ = 2",
        thief="from .cellar import _key",
        other="from . import cellar\nfrom .cellar import wine as red\ncellar._key\nred._label\ncellar.wine",
        named="patch('house.cellar._key')\nimport torch\ntorch._C\nself._own",
        whole="import house.cellar\nhouse.cellar._key",
    )
    assert private_imports(package, package.files) == [
        "house.named: house.cellar._key",
        "house.other: house.cellar._key",
        "house.thief: house.cellar._key",
        "house.whole: house.cellar._key",
    ]


def test_what_travels_is_followed_and_its_needs_are_found(tmp_path: Path) -> None:
    package = house(
        tmp_path,
        __init__="import numpy",
        modeling="import torch.nn\nfrom .layers import Layer",
        layers="import json\ndef load():\n    import numpy",
        other="import numpy",
    )
    files = travelling(package, "house.modeling")
    assert files == {"house.modeling", "house.layers"}
    assert foreign_imports(package, files, TRAVELS_WITH) == ["house.layers → numpy"]


def test_test_modules_that_are_imported_are_found(tmp_path: Path) -> None:
    sources = {
        "test_one": "from test_two import helper",
        "test_two": "from support.models import tiny",
        "folder/test_three": "from . import test_one\nimport folder.test_three",
        "conftest": "def f():\n    from ..test_two import helper",
    }
    for name, source in sources.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.py").write_text(source)
    assert imported_tests({name: tmp_path / f"{name}.py" for name in sources}) == [
        "conftest → test_two",
        "folder/test_three → test_one",
        "folder/test_three → test_three",
        "test_one → test_two",
    ]


def test_a_tensor_of_no_type_is_found(tmp_path: Path) -> None:
    (tmp_path / "made.py").write_text("torch.zeros(2, dtype=x)\ntorch.ones(\n2)\n")
    assert of_no_type("made.py", tmp_path / "made.py") == ["made.py:2"]


def test_long_files_are_found(tmp_path: Path) -> None:
    package = house(tmp_path, __init__="x = 1\n" * 5, long="x = 1\n" * 6)
    assert long_files(package.files, 5) == {"house.long": 6}
