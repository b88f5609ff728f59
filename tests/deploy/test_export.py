"""Programs for other runtimes: what they compute, what lies beside them, and when there is none."""

import copy
import importlib.util
import json
import logging
import re
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTForMaskedImageModeling,
    DeiTModel,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTImageProcessorPil,
    ViTModel,
)

from hf_vitcompress import CompressionConfig, ViTCompressor
from hf_vitcompress.configuration_factored import factored_config_class
from hf_vitcompress.deploy import export as exporting
from hf_vitcompress.deploy import export_formats
from hf_vitcompress.deploy.export import export_model
from hf_vitcompress.deploy.export_formats import FORMATS
from hf_vitcompress.deploy.export_report import ExportReport, ExportResult
from hf_vitcompress.errors import ConfigError, ExportError, OutputError, UnsupportedModelError
from hf_vitcompress.modeling_factored import factored_model_class
from support.models import TINY, seeded, tiny_config
from support.students import METHODS, compressed, random_images
from support.terminal import Run, running_commands  # noqa: F401  (the fixture "run")
from support.zoo import TEXT, VISION

transformers.utils.logging.disable_progress_bar()

EVERYTHING: dict[str, dict[str, int]] = {
    "layers.0.attention": {"qk_rank": 6},
    "layers.0.attention.v_proj": {"out_features": 20, "rank": 8},
    "layers.0.attention.o_proj": {"in_features": 20, "rank": 9},
    "layers.0.mlp.fc1": {"out_features": 40, "rank": 7},
    "layers.0.mlp.fc2": {"in_features": 40},
    **{f"layers.1.attention.{letter}_proj": {"out_features": 24} for letter in "qkv"},
    "layers.1.attention.o_proj": {"in_features": 24},
    "layers.1.mlp.fc1": {"rank": 8},
}
"""A shared `down`, values with a head dimension of their own, heads and neurons pruned, and factors of all that."""


def dense(model_class: type[PreTrainedModel], **changes: Any) -> PreTrainedModel:
    return seeded(model_class, model_class.config_class(**{**TINY, "encoder_stride": 4, **changes}))


def formed(model_class: type[PreTrainedModel], **changes: Any) -> PreTrainedModel:
    config_class = factored_config_class(model_class.config_class.model_type)
    config = config_class(**{**TINY, "encoder_stride": 4, "compression": {"layers": EVERYTHING}, **changes})
    return seeded(factored_model_class(model_class), config)


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "dense": lambda: dense(ViTForImageClassification),
    "everything": lambda: formed(ViTForImageClassification),
    "default": lambda: compressed(**METHODS["default"]).student(),
    "low rank": lambda: compressed(**METHODS["low rank"]).student(),
    "pruned": lambda: compressed(**METHODS["pruned"]).student(),
    "without a head": lambda: formed(ViTModel),
    "dense DeiT without a head": lambda: dense(DeiTModel),
    "DeiT with a teacher": lambda: formed(DeiTForImageClassificationWithTeacher),
    "bfloat16": lambda: formed(DeiTForImageClassification).to(torch.bfloat16),
    "float16, eager": lambda: with_eager(formed(ViTForImageClassification)).half(),
    "masked images": lambda: formed(ViTForMaskedImageModeling),
    "dense DeiT, masked images": lambda: dense(DeiTForMaskedImageModeling),
    "not square": lambda: formed(ViTForImageClassification, image_size=(16, 8), num_channels=1),
}
"""Models by what is special about them."""
SOME = ("dense", "everything", "without a head")
CASES = [("onnx", name) for name in (*SOME, "default", "low rank", "pruned", "bfloat16")]
CASES += [("torch-export", name) for name in MODELS if name not in ("low rank", "pruned")]
CASES += [(to, name) for to in ("openvino", "executorch") for name in SOME[1:]]

Make = Callable[[str], PreTrainedModel]
Export = Callable[[str, str], ExportResult]


def with_eager(model: PreTrainedModel) -> PreTrainedModel:
    model.set_attn_implementation("eager")
    return model


def skip_without(to: str) -> None:
    missing = [package for package in FORMATS[to].packages if importlib.util.find_spec(package) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} is not installed (pip install {' '.join(FORMATS[to].packages)})")


@pytest.fixture(scope="session")
def models() -> Make:
    """A copy of a model of `MODELS`, each made once."""
    known: dict[str, PreTrainedModel] = {}

    def make(name: str) -> PreTrainedModel:
        if name not in known:
            known[name] = MODELS[name]()
        return copy.deepcopy(known[name])

    return make


@pytest.fixture(scope="session")
def exported(models: Make, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """A program that is made once for each model and format."""
    known: dict[tuple[str, str], ExportResult] = {}

    def export(name: str, to: str) -> ExportResult:
        skip_without(to)
        if (name, to) not in known:
            known[name, to] = export_model(models(name), to, tmp_path_factory.mktemp("program") / "out")
        return known[name, to]

    return export


@pytest.fixture
def model(models: Make) -> PreTrainedModel:
    return models("everything")


@pytest.fixture(scope="session")
def program(models: Make) -> Any:
    """What `trace` makes of `model` for torch-export."""
    return exporting.trace(models("everything"), FORMATS["torch-export"], (3, 16, 16))


@pytest.fixture
def traced(model: PreTrainedModel, program: Any, monkeypatch: pytest.MonkeyPatch) -> PreTrainedModel:
    """`model`, for torch-export without the time it takes to trace."""
    monkeypatch.setattr(exporting, "trace", lambda *_: program)
    return model


def values_of(model: PreTrainedModel, images: Tensor) -> list[Tensor]:
    """Outputs in float32, which the model then is in."""
    with torch.no_grad():
        return [value for value in model.float().eval()(images).values() if isinstance(value, Tensor)]


def images_for(report: ExportReport, count: int) -> Tensor:
    """Others than those the program was checked with."""
    return torch.randn(count, *report.inputs[0].shape[1:], generator=torch.Generator().manual_seed(77))


def run_onnx(file: Path, images: Tensor) -> list[Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return session.run(None, {"pixel_values": images.numpy()})


def run_torch(file: Path, images: Tensor) -> list[Any]:
    with torch.no_grad():
        return list(torch.export.load(file).module()(pixel_values=images).values())


def run_openvino(file: Path, images: Tensor) -> list[Any]:
    import openvino

    program = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return list(program({"pixel_values": images.numpy()}).values())


def run_executorch(file: Path, images: Tensor) -> list[Any]:
    from executorch.runtime import Runtime

    return Runtime.get().load_program(file).load_method("forward").execute([images])


RUNTIMES = {"onnx": run_onnx, "torch-export": run_torch, "openvino": run_openvino, "executorch": run_executorch}
"""Without transformers."""


# ---- what it computes


@pytest.mark.parametrize(("to", "name"), CASES)
def test_a_program_computes_what_the_model_does_for_batches_of_any_size(
    to: str, name: str, exported: Export, models: Make
) -> None:
    result = exported(name, to)
    file = result.folder / next(iter(result.report.files))
    model = models(name)
    for count in (1, 2, 7):
        images = images_for(result.report, count)
        ours, theirs = RUNTIMES[to](file, images), values_of(model, images)
        assert len(ours) == len(theirs) > 0
        for one, other in zip(ours, theirs, strict=True):
            assert one.shape == tuple(other.shape)
            assert np.abs(np.asarray(one) - other.numpy()).max() < 1e-4
            assert other.std() > 0.01, "outputs must differ visibly, or nothing is tested"


@pytest.mark.parametrize("to", FORMATS)
def test_transformers_loads_a_program_by_its_folder(to: str, exported: Export, model: PreTrainedModel) -> None:
    from transformers.exporters import ExportedModel

    result = exported("everything", to)
    with export_formats.quiet():
        program = ExportedModel.from_pretrained(result.folder, device="cpu")
    assert type(program.config) is ViTConfig
    images = images_for(result.report, 4)
    close = 1e-2 if to == "openvino" else 1e-4  # which computes in bfloat16 where it can
    assert (program(pixel_values=images)["logits"] - values_of(model, images)[0]).abs().max() < close


ALONE = {
    "onnx": """
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
print(session.get_inputs()[0].shape, [output.name for output in session.get_outputs()])
print(session.run(None, {"pixel_values": numpy.zeros((5, 3, 16, 16), numpy.float32)})[0].shape)
""",
    "torch-export": """
import sys, torch
program = torch.export.load(sys.argv[1]).module()
print(["batch", 3, 16, 16], list(program(pixel_values=torch.zeros(1, 3, 16, 16))))
print(tuple(program(pixel_values=torch.zeros(5, 3, 16, 16))["logits"].shape))
""",
}


@pytest.mark.parametrize("to", ALONE)
def test_the_runtime_is_all_that_a_program_needs(to: str, exported: Export) -> None:
    result = exported("everything", to)
    blocked = f"import sys; sys.modules.update(dict.fromkeys(['transformers', 'hf_vitcompress']))\n{ALONE[to]}"
    command = [sys.executable, "-c", blocked, str(result.folder / next(iter(result.report.files)))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.split("\n")[:2] == ["['batch', 3, 16, 16] ['logits']", "(5, 5)"]


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("size", [(8, 8), (16, 32)], ids=str)
def test_images_of_another_size_are_refused(size: tuple[int, int], to: str, exported: Export) -> None:
    result = exported("everything", to)
    with pytest.raises(Exception, match=r".+"):
        RUNTIMES[to](result.folder / next(iter(result.report.files)), torch.zeros(2, 3, *size))


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_no_block_adds_a_mask(to: str, exported: Export) -> None:
    result = exported("dense", to)
    program = (result.folder / next(iter(result.report.files))).read_bytes()
    assert not [operator for operator in (b"Where", b"LogicalNot", b"Less") if operator in program]


# ---- what it leaves behind


def test_the_report_names_inputs_and_outputs(exported: Export) -> None:
    result = exported("without a head", "onnx")
    saved = json.loads((result.folder / "export_report.json").read_text())
    assert saved["inputs"] == [{"name": "pixel_values", "dtype": "float32", "shape": ["batch", 3, 16, 16]}]
    assert saved["outputs"] == [
        {"name": "last_hidden_state", "dtype": "float32", "shape": ["batch", 17, 32]},
        {"name": "pooler_output", "dtype": "float32", "shape": ["batch", 32]},
    ]
    assert saved["model"] == "FactoredViTModel"
    assert saved["format"] == "onnx"
    assert saved["checked_batches"] == [1, 3]
    assert saved["max_batch"] is None
    assert 0 < saved["max_difference"] < 1e-4
    assert saved["packages"]["torch"] == torch.__version__
    assert set(saved["packages"]) == {"torch", "onnx", "onnxscript", "onnxruntime"}
    assert saved == json.loads(json.dumps(result.to_dict()["report"]))


@pytest.mark.parametrize("to", FORMATS)
def test_the_files_and_their_sizes_are_those_of_the_program(to: str, exported: Export, model: PreTrainedModel) -> None:
    result = exported("everything", to)
    others = {"config.json", "export.json", "export_report.json"}
    assert {path.name for path in result.folder.iterdir()} == {*result.report.files, *others}
    sizes = {name: (result.folder / name).stat().st_size for name in result.report.files}
    assert sizes == result.report.files
    weights = sum(4 * parameter.numel() for parameter in model.parameters())
    assert weights < result.report.bytes == sum(sizes.values())


@pytest.mark.parametrize("to", FORMATS)
def test_no_file_names_a_place_of_this_computer(to: str, exported: Export) -> None:
    result = exported("everything", to)
    places = [str(Path(module.__file__).parent).encode() for module in (transformers, torch, exporting)]
    contents = [path.read_bytes() for path in (*result.folder.iterdir(),)]
    assert not [place for place in places for content in contents if place in content]


def test_image_processor_and_labels_lie_beside_a_program(processor: ViTImageProcessorPil, tmp_path: Path) -> None:
    model = formed(ViTForImageClassification, id2label={i: f"label {i}" for i in range(5)})
    model.companions = [processor]
    result = export_model(model, "torch-export", tmp_path / "out")
    config = AutoConfig.from_pretrained(result.folder)
    assert type(config) is ViTConfig
    assert config.architectures == ["ViTForImageClassification"]
    assert config.id2label[3] == "label 3"
    assert config.dtype == torch.float32
    assert AutoImageProcessor.from_pretrained(result.folder).size == processor.size


@pytest.mark.parametrize("name", ["dense", "float16, eager"])
def test_the_model_is_left_as_it_was(name: str, models: Make, tmp_path: Path) -> None:
    model = models(name).train()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    attributes = set(vars(model))
    config, dtype = model.config.to_json_string(), model.dtype
    attention = model.config._attn_implementation
    export_model(model, "torch-export", tmp_path / "out")
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert (model.dtype, model.config._attn_implementation) == (dtype, attention)
    assert model.config.to_json_string() == config
    assert set(vars(model)) == attributes
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_a_forward_that_somebody_wrapped_is_not_what_is_exported(model: PreTrainedModel, tmp_path: Path) -> None:
    forward = model.forward
    model.forward = lambda *args, **kwargs: pytest.fail("exported the wrapper")
    result = export_model(model, "torch-export", tmp_path / "out")
    model.forward = forward
    images = images_for(result.report, 2)
    assert (run_torch(tmp_path / "out" / "model.pt2", images)[0] - values_of(model, images)[0]).abs().max() < 1e-4


@pytest.mark.parametrize("to", FORMATS)
def test_exporters_say_nothing(
    to: str,
    model: PreTrainedModel,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    skip_without(to)
    capfd.readouterr()
    export_model(model, to, tmp_path / "out")
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


# ---- where it goes


def test_by_default_a_program_goes_into_the_folder_of_the_model(
    traced: PreTrainedModel, processor: ViTImageProcessorPil, tmp_path: Path
) -> None:
    traced.companions = [processor]
    traced.save_pretrained(tmp_path / "model")
    result = export_model(tmp_path / "model", "torch-export")
    assert result.folder == tmp_path / "model" / "torch-export"
    assert (result.folder / "model.pt2").is_file()
    assert (result.folder / "preprocessor_config.json").is_file()
    assert result.report.model == "FactoredViTForImageClassification"


@pytest.mark.parametrize("model", ["somebody/vit", None])
def test_a_model_that_is_no_folder_needs_an_output(model: str | None) -> None:
    with pytest.raises(ConfigError, match="--output"):
        export_model(model or dense(ViTModel), "torch-export")


def test_an_output_that_exists_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="--overwrite"):
        export_model("not looked for", "torch-export", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_overwrite_replaces_the_folder_as_a_whole(traced: PreTrainedModel, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old.txt").write_text("old")
    export_model(traced, "torch-export", tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "model.pt2").is_file()
    assert not (tmp_path / "out" / "old.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_leaves_nothing(traced: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(ExportReport, "save", full)
    with pytest.raises(OutputError, match="No space left"):
        export_model(traced, "torch-export", tmp_path / "out")
    assert not list(tmp_path.iterdir())


# ---- when there is none

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
    small = ViTCompressor(config, progress=False).compress(model, random_images(24), target="vision_model")
    result = export_model(small, "torch-export", tmp_path / "out", against=model)
    assert result.report.model == "FactoredCLIPVisionModel"
    assert result.dense is not None
    assert result.dense.model == "CLIPVisionModel"


# ---- at most so many images


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


# ---- speed


def test_two_programs_are_timed_on_one_runtime(model: PreTrainedModel, tmp_path: Path) -> None:
    large = dense(ViTForImageClassification, num_hidden_layers=5)
    result = export_model(model, "torch-export", tmp_path / "out", against=large)
    assert result.dense is not None
    assert result.dense.bytes > result.report.bytes
    assert [latency.batch_size for latency in result.latency] == [1, 32]
    for latency in result.latency:
        assert latency.threads == torch.get_num_threads()
        assert latency.ratio_low <= latency.ratio <= latency.ratio_high
        assert latency.ratio < 1
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_models_for_other_images_are_not_timed_against_each_other(model: PreTrainedModel, tmp_path: Path) -> None:
    other = dense(ViTForImageClassification, image_size=32)
    with pytest.raises(ConfigError, match=r"\(3, 16, 16\) and \(3, 32, 32\).*--against"):
        export_model(model, "torch-export", tmp_path / "out", against=other)
    assert not list(tmp_path.iterdir())


# ---- terminal


@pytest.fixture
def export(run: Run) -> Run:
    """`vitcompress export …`"""
    return lambda *arguments: run("export", *arguments)


@pytest.fixture
def folders(model: PreTrainedModel, tmp_path: Path) -> tuple[Path, Path]:
    """A compressed model, and a dense one."""
    model.save_pretrained(tmp_path / "small")
    seeded(ViTForImageClassification, tiny_config()).save_pretrained(tmp_path / "dense")
    return tmp_path / "small", tmp_path / "dense"


def test_the_command_exports_compares_and_says_where(export: Run, folders: tuple[Path, Path], tmp_path: Path) -> None:
    skip_without("onnx")
    small, large = folders
    done = export(small, "--against", large, "--json", tmp_path / "figures.json", "-q")
    assert done.code == 0, done.err
    for text in ("onnx on ", "1 thread", "program on disk", "difference from torch", "latency, batch 1 ", "batch 32"):
        assert text in done.out
    assert f"saved to {small / 'onnx'}" in done.out.replace("\n", "")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["folder"] == str(small / "onnx")
    assert figures["report"]["files"].keys() == {"model.onnx", "model.onnx.data"}
    assert figures["dense"]["model"] == "ViTForImageClassification"
    assert [latency["threads"] for latency in figures["latency"]] == [1, 1]
    output = run_onnx(small / "onnx" / "model.onnx", random_images(2))[0]
    assert output.shape == (2, 5)


def test_the_command_exports_one_model_alone(export: Run, folders: tuple[Path, Path], tmp_path: Path) -> None:
    done = export(folders[1], "--to", "torch-export", "--output", tmp_path / "out", "-q")
    assert done.code == 0, done.err
    assert "latency" not in done.out
    assert (tmp_path / "out" / "model.pt2").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--to", "torch-export", "--output", "out"], "nowhere"),
        (["nowhere", "--to", "torch-export"], "--output"),
        (["nowhere", "--to", "coreml", "--output", "out"], "openvino"),
        (["nowhere", "--to", "torch-export", "--output", "out", "--max-batch", "2"], "--max-batch"),
    ],
    ids=["missing model", "no output", "unknown format", "limit"],
)
def test_what_is_wrong_is_one_line(
    arguments: list[str], message: str, export: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = export(*arguments)
    lines = done.err.strip().splitlines()
    assert done.code == 1
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert not list(tmp_path.iterdir())
