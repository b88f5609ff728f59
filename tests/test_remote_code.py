"""Families of every kind, loaded where the package is not: the file beside the weights is all that is needed."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from hf_vitcompress import CompressionConfig, ViTCompressor
from support.clean_interpreter import run_script
from support.larger import TOWERS, captioner
from support.models import seeded
from support.ways import compressor_for
from support.zoo import HEADS

NAMES = {
    "DINOv3ViTModel-gated": "AutoModel",
    "Dinov2ForImageClassification": "AutoModelForImageClassification",
    "BeitForSemanticSegmentation": "AutoModelForSemanticSegmentation",
    "SwinForImageClassification": "AutoModelForImageClassification",
    "YolosForObjectDetection": "AutoModelForObjectDetection",
    "DepthAnythingForDepthEstimation": "AutoModelForDepthEstimation",
}
"""Rotary positions, layer scales, position biases, windows, attention in two modules, a backbone inside."""

LARGER = {"clip": "AutoModel", "captioner": "AutoModelForImageTextToText"}
"""A part of these is compressed."""

SCRIPT = """
import json, sys
import torch, transformers
from safetensors.torch import load_file, save_file
found, results = {}, {}
pixels = load_file("pixels.safetensors")
texts = {"clip": ["input_ids"], "captioner": ["decoder_input_ids"]}
for name, auto in json.load(open("names.json")).items():
    model = getattr(transformers, auto).from_pretrained(name, trust_remote_code=True).eval()
    results[name] = type(model).__name__
    with torch.no_grad():
        inputs = {text: torch.tensor([[0, 5, 7, 1]] * 2) for text in texts.get(name, [])}
        result = model(pixel_values=pixels[name], **inputs)
    for key, value in result.items():
        if isinstance(value, torch.Tensor):
            found[f"{name}/{key}"] = value.contiguous().clone()
results["imported"] = [name for name in sys.modules if name.split(".")[0] == "hf_vitcompress"]
save_file(found, "found.safetensors")
json.dump(results, open("results.json", "w"))
"""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, PreTrainedModel], Path]:
    folder = tmp_path_factory.mktemp("clean")
    heads = {str(head): head for head in HEADS}
    models, pixels = {}, {}
    for name in NAMES:
        dense = heads[name].dense()
        compressor = compressor_for(dense, {})
        models[name] = compressor.compress(dense, heads[name].pixels(96))
        pixels[name] = heads[name].pixels(2, seed=7)
    clip = seeded(transformers.CLIPModel, transformers.CLIPConfig(**TOWERS))
    config = CompressionConfig(keep_ratio=0.6, rank_multiple=1, precision="float32", measuring_images=0)
    images = torch.randn(96, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    models["clip"] = ViTCompressor(replace(config, target="vision_model"), progress=False).compress(clip, images)
    encoder = ViTCompressor(replace(config, target="encoder"), progress=False)
    models["captioner"] = encoder.compress(captioner(), images)
    pixels |= {"clip": images[:2], "captioner": images[:2].clone()}
    for name, model in models.items():
        model.companions = []
        model.save_pretrained(folder / name)
    save_file(pixels, folder / "pixels.safetensors")
    (folder / "names.json").write_text(json.dumps({**NAMES, **LARGER}))
    run_script(SCRIPT, folder, {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(folder / "modules")})
    return models, folder


def answers(model: PreTrainedModel, pixels: Tensor) -> dict[str, Tensor]:
    text = {"FactoredCLIPModel": "input_ids", "FactoredVisionEncoderDecoderModel": "decoder_input_ids"}
    name = text.get(type(model).__name__)
    inputs = {} if name is None else {name: torch.tensor([[0, 5, 7, 1]] * 2)}
    with torch.no_grad():
        result = model(pixel_values=pixels, **inputs)
    return {key: value for key, value in result.items() if isinstance(value, Tensor)}


@pytest.mark.parametrize("name", [*NAMES, *LARGER])
def test_the_same_class_computes_the_same(loaded: tuple[dict[str, PreTrainedModel], Path], name: str) -> None:
    models, folder = loaded
    results = json.loads((folder / "results.json").read_text())
    assert results["imported"] == []
    assert results[name] == type(models[name]).__name__
    found = load_file(folder / "found.safetensors")
    expected = answers(models[name], load_file(folder / "pixels.safetensors")[name])
    assert expected
    for key, value in expected.items():
        torch.testing.assert_close(found[f"{name}/{key}"], value, rtol=1e-5, atol=1e-5)
