"""Quantized models: near the ones they come from, whole on disk, and loaded by plain `from_pretrained`."""

import copy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    CLIPConfig,
    CLIPModel,
    DeiTConfig,
    DeiTForImageClassification,
    PreTrainedModel,
    TorchAoConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)
from transformers.utils import is_torchao_available

from hf_vitcompress import CompressionConfig, ViTCompressor, to_dense
from hf_vitcompress.architectures.outputs import outputs_of
from hf_vitcompress.cli.quantization import quantize_checkpoint
from hf_vitcompress.deploy import quantization
from hf_vitcompress.deploy.quantization import SCHEMES, quantize
from hf_vitcompress.errors import OutputError, QuantizationError, UnsupportedModelError
from hf_vitcompress.evaluation.comparison import Candidate, compare
from hf_vitcompress.evaluation.costs import count_costs
from hf_vitcompress.evaluation.latency import Latency
from hf_vitcompress.images.sources import open_images
from hf_vitcompress.model.loading import load_image_processor, load_model
from hf_vitcompress.modeling_factored import MANIFEST_FILE, FactoredModelMixin
from hf_vitcompress.report.report import CompressionReport
from hf_vitcompress.runtime.weights import disk_bytes, folder_digest
from support.clean_interpreter import run_script
from support.models import DIGITS, TINY, seeded, tiny_config
from support.students import METHODS, changed, compressed, lively, logits, random_images, state_of
from support.zoo import HEADS, TEXT, VISION

if not is_torchao_available():
    pytest.skip("torchao is not installed (pip install torchao)", allow_module_level=True)

from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig

from hf_vitcompress.architectures.subject import Subject

PIXELS = random_images(16, seed=5)
CONFIGS = {"int8_weight_only": Int8WeightOnlyConfig, "int8_dynamic": Int8DynamicActivationInt8WeightConfig}
TOLERANCE = {"int8_weight_only": 0.03, "int8_dynamic": 0.06}
"""Relative error of the logits of tiny random models: a few times the 0.4 % that the weights are rounded by."""


def build(kind: str) -> PreTrainedModel:
    if kind == "dense":
        return lively()
    if kind == "dense deit":
        return lively(DeiTForImageClassification, DeiTConfig(**TINY))
    if kind == "deit":
        return compressed(build("dense deit")).student()
    return compressed(**METHODS[kind]).student()


KINDS = [*METHODS, "deit", "dense", "dense deit"]
NARROW_LAYERS = {"keep_ratio": 0.8, "rank_multiple": 1, "precision": "float32", "measuring_images": 0}
every_kind = pytest.mark.parametrize("kind", KINDS)
every_scheme = pytest.mark.parametrize("scheme", SCHEMES)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A saved model of each kind."""
    root = tmp_path_factory.mktemp("models")
    for kind in KINDS:
        build(kind).save_pretrained(root / kind)
    return {kind: root / kind for kind in KINDS}


def load(folder: Path, scheme: str | None = None, **options: Any) -> PreTrainedModel:
    if scheme is not None:
        options["quantization_config"] = TorchAoConfig(CONFIGS[scheme]())
    return AutoModelForImageClassification.from_pretrained(folder, **options)


def relative_error(model: PreTrainedModel, reference: PreTrainedModel) -> float:
    got, wanted = (logits(each, PIXELS.to(each.dtype)).float() for each in (model, reference))
    return float((got - wanted).norm() / wanted.norm())


def model_bytes(model: PreTrainedModel) -> int:
    return count_costs(model).bytes


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def linears(model: PreTrainedModel) -> dict[str, nn.Linear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


# ---- by transformers alone


@every_scheme
@every_kind
def test_from_pretrained_quantizes_every_structure(
    kind: str, scheme: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    small = load(folders[kind])
    quantized = load(folders[kind], scheme)
    assert type(quantized) is type(small)
    assert {type(layer.weight).__name__ for layer in linears(quantized).values()} == {"Int8Tensor"}
    assert 0 < relative_error(quantized, small) < TOLERANCE[scheme]
    quantized.save_pretrained(tmp_path)
    again, info = load(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert type(again) is type(small)
    assert getattr(again.config, "compression", None) == getattr(small.config, "compression", None)
    assert torch.equal(logits(again, PIXELS), logits(quantized, PIXELS))


@every_kind
def test_weights_are_rounded_to_the_nearest_of_their_row_and_nothing_else_is(
    kind: str, folders: dict[str, Path]
) -> None:
    rounded = load(folders[kind])
    quantized = load(folders[kind], "int8_weight_only")
    with torch.no_grad():
        for name, layer in linears(rounded).items():
            weight = linears(quantized)[name].weight.dequantize()
            step = layer.weight.abs().amax(dim=1, keepdim=True) / 127
            assert ((weight - layer.weight).abs() <= 0.51 * step).all()
            layer.weight.copy_(weight)
    torch.testing.assert_close(logits(quantized, PIXELS), logits(rounded, PIXELS), rtol=1e-4, atol=1e-5)


def test_a_sharded_checkpoint_comes_back_identical(folders: dict[str, Path], tmp_path: Path) -> None:
    quantized = load(folders["default"], "int8_weight_only")
    quantized.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 1
    assert torch.equal(logits(load(tmp_path), PIXELS), logits(quantized, PIXELS))


def test_a_dense_class_refuses_a_quantized_compressed_checkpoint(folders: dict[str, Path], tmp_path: Path) -> None:
    load(folders["default"], "int8_weight_only").save_pretrained(tmp_path)
    with pytest.raises(Exception, match="pip install hf-vitcompress"):
        ViTForImageClassification.from_pretrained(tmp_path)


@every_kind
def test_a_quantized_model_can_be_copied(kind: str, folders: dict[str, Path]) -> None:
    model = load(folders[kind], "int8_weight_only")
    assert torch.equal(logits(copy.deepcopy(model), PIXELS), logits(model, PIXELS))


# ---- costs


@every_scheme
@every_kind
def test_parameters_and_macs_are_those_before_and_bytes_those_of_the_integers(
    kind: str, scheme: str, folders: dict[str, Path]
) -> None:
    small = load(folders[kind])
    before, after = count_costs(small), count_costs(load(folders[kind], scheme))
    assert (after.parameters, after.macs) == (before.parameters, before.macs)
    entries = sum(layer.weight.numel() for layer in linears(small).values())
    rows = sum(layer.out_features for layer in linears(small).values())
    integers = before.bytes - 3 * entries
    assert integers + 4 * rows <= after.bytes <= integers + 8 * rows, "a scale, maybe a zero point, for each row"


@pytest.mark.parametrize("dense", [True, False])
def test_a_model_of_usual_widths_takes_about_a_quarter(dense: bool, tmp_path: Path) -> None:
    model = lively(config=tiny_config(hidden_size=256, intermediate_size=1024, num_attention_heads=4))
    if not dense:
        model = compressed(model, keep_ratio=0.6, rank_multiple=8).student()
    quantized = quantize(model)
    for name, each in (("float", model), ("int8", quantized)):
        each.save_pretrained(tmp_path / name)
    assert 0.25 < disk_bytes(tmp_path / "int8") / disk_bytes(tmp_path / "float") < 0.31
    assert 0.25 < count_costs(quantized).bytes / count_costs(model).bytes < 0.31


def test_evaluate_judges_a_quantized_checkpoint(tmp_path: Path) -> None:
    """The model it comes from has float16 weights on disk and a float32 config."""
    quantize_checkpoint(str(DIGITS / "model"), tmp_path / "int8", scheme="int8-dynamic", quiet=True)
    small, dense = (Candidate.load(str(folder)) for folder in (tmp_path / "int8", DIGITS / "model"))
    images = open_images(DIGITS / "test.parquet", label2id=small.model.config.label2id)
    figures = compare(small, dense, images, load_image_processor(small.name), progress=False)
    assert figures.dense_costs is not None
    assert figures.evaluation.agreement is not None
    assert figures.evaluation.agreement.value > 0.98
    assert figures.costs.parameters == figures.dense_costs.parameters
    assert figures.costs.bytes < 0.3 * figures.dense_costs.bytes
    assert figures.disk_bytes == (tmp_path / "int8" / "model.safetensors").stat().st_size


# ---- quantize


@every_scheme
@every_kind
def test_quantize_is_from_pretrained(kind: str, scheme: str, folders: dict[str, Path]) -> None:
    expected = logits(load(folders[kind], scheme), PIXELS)
    for model in (folders[kind], str(folders[kind]), load(folders[kind])):
        quantized = quantize(model, scheme)
        assert torch.equal(logits(quantized, PIXELS), expected)
        assert quantized.config.name_or_path == str(folders[kind])
        assert not quantized.training


@every_kind
def test_the_model_given_stays_as_it_was(kind: str) -> None:
    model = build(kind).train()
    model.set_attn_implementation("eager")
    before = state_of(model)
    quantized = quantize(model)
    assert changed(before, model) == set()
    assert model.training
    assert not hasattr(model.config, "quantization_config")
    assert quantized.config._attn_implementation == "eager"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@every_scheme
@pytest.mark.parametrize("kind", ["default", "dense"])
def test_models_of_half_precision_keep_it(kind: str, scheme: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = build(kind).to(dtype)
    quantized = quantize(model, scheme)
    assert quantized.dtype == dtype
    assert relative_error(quantized, model) < 2 * TOLERANCE[scheme]
    quantized.save_pretrained(tmp_path)
    assert torch.equal(logits(load_model(tmp_path), PIXELS.to(dtype)), logits(quantized, PIXELS.to(dtype)))


@pytest.fixture(scope="module")
def complete() -> PreTrainedModel:
    """A compressed model with image processor, recipe, plan and report."""
    config = CompressionConfig(keep_ratio=0.5, rank_multiple=1, precision="float32")
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
    return ViTCompressor(config, processor, progress=False).compress(lively(), random_images(64))


@pytest.mark.parametrize("given", ["folder", "made", "loaded"])
def test_what_lies_beside_a_compressed_model_comes_along(given: str, complete: PreTrainedModel, tmp_path: Path) -> None:
    small, int8 = tmp_path / "small", tmp_path / "int8"
    complete.save_pretrained(small)
    (small / "README.md").write_text((small / "README.md").read_text() + "\nMy own words.\n")
    model = {"folder": small, "made": complete, "loaded": load(small)}[given]
    quantized = quantize(model, "int8_dynamic")
    quantized.save_pretrained(int8)
    assert names_in(int8) == names_in(small)
    for name in ("preprocessor_config.json", "compression_recipe.yaml", "compression_plan.json"):
        assert (int8 / name).read_bytes() == (small / name).read_bytes()
    before, after = CompressionReport.load(small), CompressionReport.load(int8)
    own = replace(before, compressed=count_costs(quantized), weights=folder_digest(int8))
    assert after == replace(own, quantization="int8_dynamic")
    card = (int8 / "README.md").read_text()
    assert "int8_dynamic" in card
    assert ("My own words." in card) == (given != "made")


def test_what_was_measured_before_quantization_is_not_said_of_the_quantized_model(
    complete: PreTrainedModel, tmp_path: Path
) -> None:
    complete.save_pretrained(tmp_path / "small")
    report = CompressionReport.load(tmp_path / "small")
    replace(report, latency=[Latency(1.0, 0.5, 0.5, 0.4, 0.6, 1, 5, 1, "cpu")]).save(tmp_path / "small")
    quantize(tmp_path / "small").save_pretrained(tmp_path / "int8")
    assert CompressionReport.load(tmp_path / "int8").latency == []
    card = (tmp_path / "int8" / "README.md").read_text()
    assert "quantized to int8_weight_only" in card
    assert "pip install hf-vitcompress torchao" in card
    assert "Afterwards the weights were changed" not in card
    assert "to_dense" not in card


# ---- errors


@pytest.mark.parametrize("name", ["CLIPForImageClassification", "DepthAnythingForDepthEstimation"])
def test_models_without_input_embeddings_are_quantized(name: str, tmp_path: Path) -> None:
    head = next(head for head in HEADS if str(head) == name)
    dense, images = head.dense(), head.pixels()
    small = ViTCompressor(CompressionConfig(**NARROW_LAYERS), progress=False).compress(dense, images)
    for model in (dense, small):
        quantized = quantize(model)
        assert type(quantized) is type(model)
        assert model_bytes(quantized) < 0.7 * model_bytes(model)
        with torch.no_grad():
            ours, theirs = (outputs_of(Subject.alone(m.eval()), images[:8])[0].values for m in (quantized, model))
        assert (ours - theirs).norm() < 0.1 * theirs.norm()
        quantized.save_pretrained(tmp_path / type(model).__name__)
        again = load_model(tmp_path / type(model).__name__, Accelerator(cpu=True))
        with torch.no_grad():
            assert torch.equal(outputs_of(Subject.alone(again), images[:8])[0].values, ours)


def test_a_whole_with_a_compressed_tower_is_quantized(tmp_path: Path) -> None:
    dense = seeded(CLIPModel, CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=16))
    compressor = ViTCompressor(CompressionConfig(**NARROW_LAYERS, target="vision_model"), progress=False)
    compressor.compress(dense, random_images(24)).save_pretrained(tmp_path / "small")
    quantized = quantize(tmp_path / "small")
    quantized.save_pretrained(tmp_path / "int8")
    loaded = load_model(tmp_path / "int8", Accelerator(cpu=True))
    loaded.save_pretrained(tmp_path / "again")
    inputs = {"input_ids": torch.tensor([[0, 5, 7, 1]] * 2), "pixel_values": random_images(2)}
    for model in (loaded, AutoModel.from_pretrained(tmp_path / "again").eval()):
        assert type(model).__name__ == "FactoredCLIPModel"
        with torch.no_grad():
            assert torch.equal(model(**inputs).logits_per_image, quantized(**inputs).logits_per_image)
    assert CompressionReport.load(tmp_path / "int8").quantization == "int8_weight_only"


def test_what_torchao_cannot_quantize_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("an odd layer\nand more")

    monkeypatch.setattr("torchao.quantization.quantize_", fail)
    with pytest.raises(QuantizationError, match=r"cannot be quantized: .*\.$"):
        quantize(lively())


def test_a_scheme_may_be_written_as_on_the_command_line() -> None:
    for scheme in SCHEMES:
        assert getattr(quantize(lively(), scheme.replace("_", "-")), "hf_quantizer", None) is not None


def test_an_unknown_scheme_is_refused_with_those_there_are() -> None:
    with pytest.raises(QuantizationError, match=r"'int3' is unknown.*int8_weight_only, int8_dynamic"):
        quantize(lively(), "int3")


@pytest.mark.parametrize("kind", ["default", "dense"])
def test_a_quantized_model_is_not_quantized_again(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    quantized = quantize(folders[kind])
    quantized.save_pretrained(tmp_path / "int8")
    with pytest.raises(QuantizationError, match=r"'.*int8' is quantized already"):
        quantize(tmp_path / "int8", "int8_dynamic")
    with pytest.raises(UnsupportedModelError, match=f"{type(quantized).__name__} is quantized already"):
        quantize(quantized, "int8_dynamic")


def test_what_is_no_transformers_model_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="not a Linear"):
        quantize(nn.Linear(2, 2))  # type: ignore[arg-type]


def test_a_quantized_model_is_not_compressed(folders: dict[str, Path]) -> None:
    compressor = ViTCompressor(CompressionConfig(), progress=False)
    with pytest.raises(UnsupportedModelError, match="ViTForImageClassification is quantized already"):
        compressor.compress(quantize(folders["dense"]), random_images(8))


def test_without_torchao_quantizing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "is_torchao_available", lambda: False)
    with pytest.raises(QuantizationError, match="pip install torchao"):
        quantize(lively())


def test_without_torchao_loading_says_what_to_install(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(folders["default"], "int8_weight_only").save_pretrained(tmp_path / "int8")
    monkeypatch.setitem(sys.modules, "torchao.core.config", None)
    with pytest.raises(QuantizationError, match=r"'.*int8' is quantized.*pip install torchao"):
        load_model(tmp_path / "int8")


# ---- the command


def test_the_command_saves_a_complete_folder(
    complete: PreTrainedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    complete.save_pretrained(tmp_path / "small")
    quantize_checkpoint(str(tmp_path / "small"), tmp_path / "int8", quiet=True)
    assert "kB of weights" in capsys.readouterr().out
    assert names_in(tmp_path) == {"int8", "small"}
    model = load(tmp_path / "int8")
    assert torch.equal(logits(model, PIXELS), logits(quantize(complete), PIXELS))
    assert isinstance(model, FactoredModelMixin)
    assert (tmp_path / "int8" / "modeling_factored.py").is_file()


def test_the_command_saves_the_image_processor_of_a_dense_model(
    processor: ViTImageProcessorPil, tmp_path: Path
) -> None:
    lively().save_pretrained(tmp_path / "dense")
    processor.save_pretrained(tmp_path / "dense")
    quantize_checkpoint(str(tmp_path / "dense"), tmp_path / "int8", quiet=True)
    assert names_in(tmp_path / "int8") == {*names_in(tmp_path / "dense"), MANIFEST_FILE}


def test_an_output_that_exists_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(OutputError, match="--overwrite"):
        quantize_checkpoint("absent", tmp_path)
    assert names_in(tmp_path) == {"mine"}


def test_overwrite_replaces_an_earlier_result(folders: dict[str, Path], tmp_path: Path) -> None:
    load(folders["default"]).save_pretrained(tmp_path / "int8")
    (tmp_path / "int8" / "LICENSE").write_text("theirs")
    expected = logits(quantize(folders["default"]), PIXELS)
    quantize_checkpoint(str(folders["default"]), tmp_path / "int8", overwrite=True, quiet=True)
    assert torch.equal(logits(load(tmp_path / "int8"), PIXELS), expected)
    assert (tmp_path / "int8" / "LICENSE").read_text() == "theirs"


@pytest.mark.parametrize("place", ["model", "model/int8", "."])
def test_overwrite_does_not_replace_the_model_it_reads(place: str, folders: dict[str, Path], tmp_path: Path) -> None:
    load(folders["default"]).save_pretrained(tmp_path / "model")
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    with pytest.raises(OutputError, match=r"(is|contains|lies inside) the model"):
        quantize_checkpoint(str(tmp_path / "model"), tmp_path / place, overwrite=True, quiet=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before


def test_a_full_disk_leaves_nothing(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: PreTrainedModel, folder: Path, *args: Any, **kwargs: Any) -> None:
        Path(folder, "model.safetensors").write_text("half")
        raise OSError("No space left on device")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", full)
    with pytest.raises(OutputError, match="No space left"):
        quantize_checkpoint(str(folders["default"]), tmp_path / "int8", quiet=True)
    assert names_in(tmp_path) == set()


# ---- where the package is not imported

CLEAN_SCRIPT = """
import json, sys
import torch
from transformers import AutoModelForImageClassification, TorchAoConfig
from torchao.quantization import Int8WeightOnlyConfig

def load(folder, **options):
    return AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True, **options)

pixels = torch.load("pixels.pt")
own = load("float", quantization_config=TorchAoConfig(Int8WeightOnlyConfig()))
own.save_pretrained("own")
models = {"saved": load("int8"), "own": own, "own, saved": load("own")}
assert not any(name.split(".")[0] == "hf_vitcompress" for name in sys.modules)
with torch.no_grad():
    torch.save({name: model(pixels).logits for name, model in models.items()}, "logits.pt")
"""


def test_without_the_package_trusted_code_loads_and_quantizes(folders: dict[str, Path], tmp_path: Path) -> None:
    load(folders["default"]).save_pretrained(tmp_path / "float")
    quantized = quantize(folders["default"])
    quantized.save_pretrained(tmp_path / "int8")
    torch.save(PIXELS, tmp_path / "pixels.pt")
    run_script(CLEAN_SCRIPT, tmp_path, {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")})
    expected = logits(quantized, PIXELS)
    for name, found in torch.load(tmp_path / "logits.pt").items():
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, msg=name)
    assert torch.equal(logits(load(tmp_path / "own"), PIXELS), expected)


def test_a_quantized_model_is_not_multiplied_out() -> None:
    with pytest.raises(UnsupportedModelError, match="quantized already"):
        to_dense(quantize(build("low rank"), "int8_weight_only"))
