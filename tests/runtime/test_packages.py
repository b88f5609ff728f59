"""Packages that only some of the work needs: missing, or of a version that does not work here."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from hf_vitcompress.deploy import quantization
from hf_vitcompress.deploy.export_formats import FORMATS, require_format
from hf_vitcompress.errors import ExportError, MissingPackageError, QuantizationError, UnsupportedModelError
from hf_vitcompress.evaluation.metrics import Metrics
from hf_vitcompress.images import open_images
from hf_vitcompress.model.boundary import explained
from hf_vitcompress.report.figures import check_figure
from hf_vitcompress.runtime.packages import require_package


def read_a_folder(place: Path) -> Any:
    Image.new("RGB", (8, 8)).save(place / "one.png")
    return open_images(place)


NEEDED: dict[str, Callable[[Path], Any]] = {
    "matplotlib.figure": lambda place: check_figure(place / "figure.png"),
    "evaluate": lambda _: Metrics.load(["f1"], 5),
    "datasets": read_a_folder,
}


@pytest.mark.parametrize("module", NEEDED)
def test_a_missing_package_is_one_sentence_with_the_command(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    package = module.partition(".")[0]
    with pytest.raises(
        MissingPackageError, match=rf"needs {package}, which .*: `pip install --upgrade \w+`\.$"
    ) as caught:
        NEEDED[module](tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "lacking"),
    [
        (ModuleNotFoundError("No module named 'pyarrow.lib'", name="pyarrow.lib"), "pyarrow"),
        (ImportError("undefined symbol: x"), "datasets"),
        (OSError("libgomp.so: cannot open shared object file"), "datasets"),
        (AttributeError("module 'numpy' has no attribute 'bool8'"), "datasets"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value,
)
def test_what_it_needs_itself_and_versions_that_do_not_fit(
    error: Exception, lacking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: str) -> ModuleType:
        raise error

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(MissingPackageError, match=rf"Images needs datasets, .*upgrade {lacking}`"):
        require_package("datasets", "Images")


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_an_exporter_that_is_missing_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ExportError, match=rf"needs .*{package}.*`pip install onnx onnxscript onnxruntime`"):
        require_format("onnx")


@pytest.mark.parametrize("to", ["openvino", "executorch"])
def test_a_runtime_that_is_missing_is_named(to: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, FORMATS[to].packages[0], None)
    with pytest.raises(ExportError, match=f"needs {to}: `pip install {to}`"):
        require_format(to)


def test_an_exporter_of_another_version_is_told_how_to_renew(monkeypatch: pytest.MonkeyPatch) -> None:
    exporters = importlib.import_module("transformers.exporters")

    def refuse(*_: Any) -> Any:
        raise ImportError("OnnxExporter requires:\n  - onnxscript>=9.0 (found 0.7.2)")

    monkeypatch.setattr(exporters.AutoHfExporter, "from_config", refuse)
    with pytest.raises(
        ExportError, match=r"not possible.*found 0\.7\.2.*`pip install --upgrade torch transformers"
    ) as e:
        require_format("torch-export")
    assert "\n" not in str(e.value)


def test_a_transformers_without_exporters_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers.exporters", ModuleType("exporters"))
    with pytest.raises(ExportError, match=r"transformers 5\.23 or newer: `pip install --upgrade transformers`"):
        require_format("torch-export")


def test_a_torchao_that_does_not_work_is_told_how_to_renew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "is_torchao_available", lambda: True)
    for broken in (None, ModuleType("torchao.quantization")):  # not to be imported, and without the schemes
        monkeypatch.setitem(sys.modules, "torchao.quantization", broken)
        with pytest.raises(QuantizationError, match=r"torchao does not work here .*`pip install --upgrade torchao`"):
            quantization.quantize("not looked for")


def test_adapters_of_a_peft_that_transformers_refuses_are_not_called_quantized() -> None:
    match = r"'m' has adapters.*peft>=0\.22.*`pip install --upgrade peft`"
    with pytest.raises(UnsupportedModelError, match=match), explained("m"):
        raise ImportError("The version of PEFT you are using is not compatible, please use a version: peft>=0.22")
