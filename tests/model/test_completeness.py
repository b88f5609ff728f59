"""Checkpoints that lack weights, hold others, or are of something else."""

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import DPTForDepthEstimation, PreTrainedModel, ViTConfig, ViTForImageClassification, ViTModel

from hf_vitcompress import ViTCompressor, export_model, quantize
from hf_vitcompress.architectures.layers import find_layers
from hf_vitcompress.errors import UnsupportedModelError
from hf_vitcompress.evaluation.comparison import Candidate
from hf_vitcompress.model.completeness import differentiated, running_tensors
from hf_vitcompress.model.loading import load_model
from support.factored import formed
from support.models import TINY, seeded
from support.zoo import HEADS, Head


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of a classifier, of a headless model and of a compressed one."""
    root = tmp_path_factory.mktemp("saved")
    seeded(ViTForImageClassification, ViTConfig(**TINY)).save_pretrained(root / "classifier")
    seeded(ViTModel, ViTConfig(**TINY)).save_pretrained(root / "headless")
    formed("all at once").save_pretrained(root / "compressed")
    return root


def changed(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    tensors = change(load_file(folder / "model.safetensors"))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def without(folder: Path, *parts: str) -> None:
    changed(folder, lambda tensors: {k: v for k, v in tensors.items() if not any(part in k for part in parts)})


def edited(folder: Path, **values: object) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **values}))


def load(folder: Path) -> PreTrainedModel:
    return load_model(folder, Accelerator(cpu=True))


REFUSED: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "a block": ("classifier", lambda f: without(f, "layer.1.", "layers.1."), r"random: .*layers\.1\..*13 others"),
    "one bias": (
        "classifier",
        lambda f: without(f, "layer.1.intermediate.dense.bias"),
        r"layers\.1\.mlp\.fc1\.bias\. Give",
    ),
    "the head": ("classifier", lambda f: without(f, "classifier"), r"classifier\.bias, classifier\.weight.*train it"),
    "a new number of classes": ("classifier", lambda f: edited(f, num_labels=7), r"stored \[5, 32\], wanted \[7, 32\]"),
    "another image size": ("classifier", lambda f: edited(f, image_size=32), r"position_embeddings \(stored"),
    "another width": ("classifier", lambda f: edited(f, intermediate_size=48), r"fc1\.weight \(stored \[96, 32\]"),
    "one more block": ("classifier", lambda f: edited(f, num_hidden_layers=3), r"layers\.2\."),
    "the class token": ("headless", lambda f: without(f, "cls_token"), r"ViTModel runs with.*cls_token"),
    "a head it never had": (
        "headless",
        lambda f: edited(f, architectures=["ViTForImageClassification"]),
        r"classifier.*It holds pooler",
    ),
    "another architecture": (
        "classifier",
        lambda f: edited(f, model_type="deit", architectures=["DeiTForImageClassification"]),
        r"DeiTForImageClassification.*It holds .*vit\.",
    ),
    "a factor": ("compressed", lambda f: without(f, "mlp.fc1.up.weight"), r"layers\.0\.mlp\.fc1\.up\.weight"),
    "other ranks": (
        "compressed",
        lambda f: edited(f, compression={"layers": {}, "version": 1, "guarded": {"initializer_range": 0.02}}),
        r"It holds .*down\.weight",
    ),
    "everything": (
        "classifier",
        lambda f: changed(f, lambda _: {f"lm.{i}": torch.zeros(3) for i in range(3)}),
        r"37 others",
    ),
    "numbers": (
        "classifier",
        lambda f: changed(
            f, lambda t: {k: v * torch.nan if "layer.1.output.dense.weight" in k else v for k, v in t.items()}
        ),
        r"no numbers: .*fc2\.weight",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_checkpoint_that_lacks_what_runs_is_refused(case: str, saved: Path, tmp_path: Path) -> None:
    kind, change, message = REFUSED[case]
    folder = tmp_path / "model"
    shutil.copytree(saved / kind, folder)
    change(folder)
    with pytest.raises(UnsupportedModelError, match=message):
        load(folder)


ACCEPTED: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "a pooler that nothing reads": ("headless", lambda f: without(f, "pooler"), r"has no pooler\.dense\.bias, pooler"),
    "a head for which there is no place": (
        "classifier",
        lambda f: edited(f, architectures=["ViTModel"]),
        r"has no pooler.* and holds classifier\.bias, classifier\.weight, which",
    ),
    "tensors of something else": (
        "classifier",
        lambda f: changed(f, lambda tensors: {**tensors, "ema.decay": torch.zeros(3)}),
        r"holds ema\.decay, which the model does not have",
    ),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_what_changes_no_output_is_named_once(
    case: str, saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kind, change, message = ACCEPTED[case]
    folder = tmp_path / "model"
    shutil.copytree(saved / kind, folder)
    change(folder)
    with caplog.at_level(logging.WARNING):
        model = load(folder)
    (record,) = caplog.records
    assert "LOAD REPORT" not in caplog.text
    assert isinstance(model, ViTModel | ViTForImageClassification)
    assert record.levelno == logging.WARNING
    assert re.search(message, record.getMessage())


def test_a_whole_checkpoint_says_nothing(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    for kind in ("classifier", "headless", "compressed"):
        load(saved / kind)
    assert not caplog.records


def test_a_head_that_is_new_is_allowed_by_a_loaded_model(saved: Path) -> None:
    model = ViTForImageClassification.from_pretrained(saved / "headless", num_labels=3)
    assert ViTCompressor(progress=False).open(model).model is model


DOORS: dict[str, Callable[[str, Path], object]] = {
    "compress": lambda name, _: ViTCompressor(progress=False).open(name),
    "evaluate": lambda name, _: Candidate.load(name),
    "export": lambda name, place: export_model(name, "torch-export", place / "program"),
    "quantize": lambda name, _: quantize(name),
}


@pytest.mark.parametrize("kind", ["classifier", "compressed"])
@pytest.mark.parametrize("door", DOORS)
def test_every_command_refuses_it(door: str, kind: str, saved: Path, tmp_path: Path) -> None:
    if door == "quantize":
        pytest.importorskip("torchao")
    folder = tmp_path / "model"
    shutil.copytree(saved / kind, folder)
    without(folder, "layers.1.mlp.fc2", "layer.1.output")
    with pytest.raises(UnsupportedModelError, match="lacks weights"):
        DOORS[door](str(folder), tmp_path)


def test_a_layer_that_the_forward_pass_leaves_out_does_not_run() -> None:
    """The first fusion layer of DPT has nothing to add; published checkpoints lack its weights."""
    model = next(head for head in HEADS if head.name == DPTForDepthEstimation.__name__ and not head.variant).dense()
    idle = [name for name, _ in model.named_parameters() if "fusion_stage.layers.0.residual_layer1" in name]
    assert idle
    wanted = "neck.fusion_stage.layers.0.residual_layer2.convolution1.weight"
    assert running_tensors(model, [*idle, wanted]) == [wanted]


@pytest.mark.parametrize("head", HEADS, ids=str)
def test_the_compressed_layers_of_every_head_run(head: Head) -> None:
    """Blocks behind the last one that a head reads are the exception."""
    model = head.dense()
    found = differentiated(model)
    layers = {f"{layer.name}.weight" for layer in find_layers(model)}
    assert len(layers & found) >= len(layers) / 2
    assert {name for name in layers if ".0." in name} <= found
