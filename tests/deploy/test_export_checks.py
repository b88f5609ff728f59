"""Programs that compute something else, and models and settings that cannot be exported."""

import importlib.util
import re
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from transformers import BertConfig, BertModel, CLIPConfig, CLIPModel, PreTrainedModel, ViTModel

from hf_vitcompress import CompressionConfig, ViTCompressor
from hf_vitcompress.deploy import export as exporting
from hf_vitcompress.deploy.export import export_model
from hf_vitcompress.deploy.export_formats import FORMATS
from hf_vitcompress.errors import ConfigError, ExportError, UnsupportedModelError
from support.models import seeded
from support.programs import dense, images_for, run_executorch, skip_without, values_of
from support.students import random_images
from support.zoo import TEXT, VISION

WRONG: dict[str, Callable[[list[Tensor]], list[Tensor]]] = {
    "a little off": lambda outputs: [outputs[0] + 2e-4],
    "not a number": lambda outputs: [outputs[0] * float("nan")],
    "another shape": lambda outputs: [outputs[0][:1, :1]],
    "one output more": lambda outputs: [*outputs, *outputs],
}


def distorted(monkeypatch: pytest.MonkeyPatch, change: Callable[[list[Tensor]], list[Tensor]]) -> None:
    """From now on, programs compute something else."""
    load = exporting.load_program

    def load_distorted(*arguments: Any) -> Callable[[Tensor], list[Tensor]]:
        run = load(*arguments)
        return lambda images: change(run(images))

    monkeypatch.setattr(exporting, "load_program", load_distorted)


@pytest.mark.parametrize("how", WRONG)
def test_a_program_that_computes_something_else_is_not_kept(
    how: str, traced: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distorted(monkeypatch, WRONG[how])
    with pytest.raises(ExportError, match=r"torch-export differs.*1\.0e-04; it was not kept\..*--tolerance") as caught:
        export_model(traced, "torch-export", tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_difference_at_one_batch_size_alone_is_found(
    traced: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distorted(monkeypatch, lambda outputs: [outputs[0] + (1 if len(outputs[0]) > 1 else 0)])
    with pytest.raises(ExportError, match="at batch size 3"):
        export_model(traced, "torch-export", tmp_path / "out")


def test_more_can_be_tolerated(traced: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distorted(monkeypatch, WRONG["a little off"])
    result = export_model(traced, "torch-export", tmp_path / "out", tolerance=1e-3)
    assert result.report.max_difference == pytest.approx(2e-4, rel=0.05)


def failing(*_: Any, **__: Any) -> Any:
    raise RuntimeError("the operator aten::frobnicate is unknown\nand much more")


@pytest.mark.parametrize(
    ("step", "message"), [("trace", "could not be exported to torch-export"), ("load_program", "could not be run")]
)
def test_what_exporters_and_runtimes_raise_becomes_one_line(
    step: str, message: str, traced: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, step, failing)
    with pytest.raises(ExportError, match=rf"{message}: the operator aten::frobnicate is unknown\. Try") as caught:
        export_model(traced, "torch-export", tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


MISSING = [(to, package) for to, entry in FORMATS.items() for package in entry.packages]


@pytest.mark.parametrize(("to", "package"), MISSING)
def test_what_is_not_installed_is_named_before_anything_is_done(
    to: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    others = types.SimpleNamespace()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name) or others)
    install = re.escape(f"`pip install {' '.join(FORMATS[to].packages)}`.")
    with pytest.raises(ExportError, match=rf"^Exporting to {to} needs {package}: {install}$"):
        export_model("not looked for", to, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_old_transformers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers.exporters", types.ModuleType("transformers.exporters"))
    with pytest.raises(ExportError, match=r"transformers 5\.23 or newer"):
        export_model("not looked for", "torch-export", "out")


def test_what_the_exporter_misses_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.exporters import DynamoExporter

    monkeypatch.setattr(DynamoExporter, "min_versions", {"torch": "99"})
    with pytest.raises(ExportError, match=r"torch-export is not possible.*torch>=99"):
        export_model("not looked for", "torch-export", "out")


@pytest.mark.parametrize("to", ["tflite", "ONNX", ""])
def test_an_unknown_format_is_refused_with_the_known_ones(to: str) -> None:
    with pytest.raises(ConfigError, match="onnx, torch-export, openvino, executorch"):
        export_model("not looked for", to, "out")


def bert() -> PreTrainedModel:
    return BertModel(BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2))


def quantized() -> PreTrainedModel:
    model = dense(ViTModel)
    model.hf_quantizer = object()
    return model


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (bert, UnsupportedModelError, r"bert.*beit, clip"),
        (lambda: 3, UnsupportedModelError, r"not a int.*beit, clip"),
        (lambda: "nowhere", UnsupportedModelError, r"nowhere.*cannot be loaded"),
        (quantized, UnsupportedModelError, r"ViTModel is quantized"),
    ],
    ids=["other architecture", "no model", "missing", "quantized"],
)
def test_what_cannot_be_exported_is_refused(
    make: Callable[[], Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        export_model(make(), "torch-export", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def two_towers() -> PreTrainedModel:
    return seeded(CLIPModel, CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=16))


def test_a_model_of_images_and_texts_is_refused_and_the_way_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"CLIPModel takes more than images.*model\.vision_model"):
        export_model(two_towers(), "torch-export", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_of_a_model_of_images_and_texts_the_compressed_tower_is_exported(tmp_path: Path) -> None:
    model = two_towers()
    config = CompressionConfig(keep_ratio=0.6, rank_multiple=1, precision="float32", measuring_images=0)
    small = ViTCompressor(replace(config, target="vision_model"), progress=False).compress(model, random_images(24))
    result = export_model(small, "torch-export", tmp_path / "out", against=model)
    assert result.report.model == "FactoredCLIPVisionModel"
    assert result.dense is not None
    assert result.dense.model == "CLIPVisionModel"


@pytest.mark.parametrize("max_batch", [1, 2, 5])
def test_executorch_takes_as_many_images_as_it_is_told_to(
    max_batch: int, model: PreTrainedModel, tmp_path: Path
) -> None:
    skip_without("executorch")
    report = export_model(model, "executorch", tmp_path / "out", max_batch=max_batch).report
    assert report.max_batch == max_batch
    assert report.inputs[0].shape[0] == (1 if max_batch == 1 else "batch")
    images = images_for(report, max_batch)
    (output,) = run_executorch(tmp_path / "out" / "model.pte", images)
    assert (output - values_of(model, images)[0]).abs().max() < 1e-4
    with pytest.raises(RuntimeError):
        run_executorch(tmp_path / "out" / "model.pte", images_for(report, max_batch + 1))


def test_a_limit_is_for_executorch_alone() -> None:
    with pytest.raises(ConfigError, match=r"executorch.*torch-export takes any number"):
        export_model("not looked for", "torch-export", "out", max_batch=4)


def test_no_image_is_too_few() -> None:
    skip_without("executorch")
    with pytest.raises(ConfigError, match="max_batch is 0"):
        export_model("not looked for", "executorch", "out", max_batch=0)
