"""Programs for other runtimes: what they compute, what lies beside them, and when there is none."""

import functools
import json
import logging
import subprocess
import sys
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
    Dinov2Backbone,
    Dinov2Config,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from hf_vitcompress.deploy import export as exporting
from hf_vitcompress.deploy import export_formats
from hf_vitcompress.deploy.export import export_model
from hf_vitcompress.deploy.export_formats import FORMATS
from hf_vitcompress.deploy.export_report import ExportResult
from hf_vitcompress.modeling_factored import MANIFEST_FILE
from support.models import seeded
from support.programs import MODELS, Make, formed, images_for, run_executorch, run_onnx, skip_without, values_of

SOME = ("everything", "without a head")
CASES = [("onnx", name) for name in (*SOME, "bfloat16", "removed modules")]
CASES += [("torch-export", name) for name in MODELS if name not in ("without a head", *(name for _, name in CASES[2:]))]
CASES += [(to, name) for to in ("openvino", "executorch") for name in SOME]
CASES += [("openvino", "removed modules")]
"""Each model for one of the two formats that everybody has; what is special about the forms, for all four."""

Export = Callable[[str, str], ExportResult]


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


@functools.lru_cache(maxsize=1)
def torch_program(file: Path) -> torch.nn.Module:
    return torch.export.load(file).module()


def run_torch(file: Path, images: Tensor) -> list[Any]:
    with torch.no_grad():
        return list(torch_program(file)(pixel_values=images).values())


def run_openvino(file: Path, images: Tensor) -> list[Any]:
    import openvino

    program = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return list(program({"pixel_values": images.numpy()}).values())


RUNTIMES = {"onnx": run_onnx, "torch-export": run_torch, "openvino": run_openvino, "executorch": run_executorch}
"""Without transformers."""


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
        program = ExportedModel.from_pretrained(result.folder, device="cpu", trust_remote_code=to == "torch-export")
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


def test_each_map_of_a_backbone_is_an_output(tmp_path: Path) -> None:
    skip_without("onnx")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28}
    model = seeded(Dinov2Backbone, Dinov2Config(**sizes, out_indices=[1, 2]))
    result = export_model(model, "onnx", tmp_path / "program")
    assert [output.name for output in result.report.outputs] == ["feature_maps.0", "feature_maps.1"]
    images = images_for(result.report, 2)
    with torch.no_grad():
        maps = model(images).feature_maps
    ours = run_onnx(result.folder / next(iter(result.report.files)), images)
    for one, other in zip(ours, maps, strict=True):
        assert np.abs(np.asarray(one) - other.numpy()).max() < 1e-4


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
    others = {"config.json", "export.json", "export_report.json", MANIFEST_FILE}
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
