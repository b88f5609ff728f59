"""The size of the images that a program takes: what the image processor beside it makes, or what was asked for."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    BeitImageProcessorPil,
    BitImageProcessorPil,
    CLIPImageProcessorPil,
    DPTImageProcessorPil,
    PreTrainedModel,
    ViTForImageClassification,
    ViTImageProcessorPil,
    YolosImageProcessorPil,
)

from hf_vitcompress.deploy import export as exporting
from hf_vitcompress.deploy import export_formats
from hf_vitcompress.deploy.export import export_model
from hf_vitcompress.deploy.export_sizes import Size, checked_size, fit_for
from hf_vitcompress.errors import ConfigError, ExportError
from hf_vitcompress.images.unloaded import UnloadedProcessor
from support.models import seeded, tiny_config
from support.terminal import Run, one_line
from support.zoo import HEADS

TINY_HEADS = {head.name: head for head in HEADS if not head.variant}
WIDE = Image.new("RGB", (90, 50), (200, 100, 0))


def square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


def tiny(name: str) -> PreTrainedModel:
    return TINY_HEADS[name].dense()


CROPPED = BitImageProcessorPil(size={"shortest_edge": 28}, crop_size=square(24))
RATIO_KEPT = DPTImageProcessorPil(size=square(32), keep_aspect_ratio=True, ensure_multiple_of=4)
CASES: dict[str, tuple[str, Any, Size | None, Size]] = {
    "a crop smaller than the config": ("Dinov2ForImageClassification", CROPPED, None, (24, 24)),
    "another crop": ("Dinov2ForImageClassification", CROPPED, (12, 12), (12, 12)),
    "another crop that is not square": ("Dinov2ForImageClassification", CROPPED, (12, 20), (12, 20)),
    "the aspect ratio is kept": ("DepthAnythingForDepthEstimation", RATIO_KEPT, None, (32, 32)),
    "the aspect ratio is given": ("DepthAnythingForDepthEstimation", RATIO_KEPT, (16, 28), (16, 28)),
    "shortest and longest edge": (
        "YolosForObjectDetection",
        YolosImageProcessorPil(size={"shortest_edge": 16, "longest_edge": 64}),
        (16, 32),
        (16, 32),
    ),
    "a crop of BEiT": (
        "BeitForImageClassification",
        BeitImageProcessorPil(size=square(20), do_center_crop=True, crop_size=square(16)),
        None,
        (16, 16),
    ),
    "a crop of CLIP": (
        "CLIPForImageClassification",
        CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size=square(16)),
        None,
        (16, 16),
    ),
    "windows": ("SwinForImageClassification", ViTImageProcessorPil(size=square(48)), None, (48, 48)),
    "no processor": ("Dinov2ForImageClassification", None, None, (16, 16)),
}


@pytest.mark.parametrize("what", CASES)
def test_the_program_takes_what_the_processor_beside_it_makes(what: str) -> None:
    name, processor, wanted, size = CASES[what]
    fit = fit_for(tiny(name), processor, wanted)
    assert fit.shape == (3, *size)
    if processor is not None:
        assert fit.processor(images=[WIDE], return_tensors="pt")["pixel_values"].shape == (1, 3, *size)


def test_a_processor_that_fits_is_the_one_beside_the_program() -> None:
    assert fit_for(tiny("Dinov2ForImageClassification"), CROPPED, (24, 24)).processor is CROPPED
    other = fit_for(tiny("Dinov2ForImageClassification"), CROPPED, (48, 48)).processor
    assert (other.size["shortest_edge"], other.crop_size["height"]) == (56, 48)  # the same share of the picture
    assert (CROPPED.size["shortest_edge"], CROPPED.crop_size["height"]) == (28, 24)


def made_by_hand(images: list[Image.Image], return_tensors: str) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.zeros(len(images), 3, 20, 20)}


def failing(**_: Any) -> Any:
    raise RuntimeError("no such picture")


@pytest.mark.parametrize(
    ("processor", "wanted", "size", "says"),
    [
        (RATIO_KEPT, None, 32, "keeps the aspect ratio.*32 × 32.*--image-size HEIGHTxWIDTH"),
        (made_by_hand, (24, 24), 24, "24 × 24 pixels, and the function beside it makes others"),
        (failing, None, 16, "does not say what size it makes .no such picture.*config"),
        (UnloadedProcessor({}, "It needs something.", {}), None, 16, "It needs something. The program.*config"),
    ],
    ids=["the aspect ratio is kept", "not to be set", "fails", "cannot be loaded"],
)
def test_what_may_surprise_is_said(
    processor: Any,
    wanted: Size | None,
    size: int,
    says: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fit = fit_for(tiny("Dinov2ForImageClassification"), processor, wanted)
    assert fit.shape == (3, size, size)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert re.search(says, record.getMessage())


def test_a_processor_that_leaves_sizes_says_none() -> None:
    processor = ViTImageProcessorPil(do_resize=False)
    fit = fit_for(tiny("Dinov2ForImageClassification"), processor, None)
    assert (fit.shape, fit.processor) == ((3, 16, 16), processor)


def test_a_model_of_patches_is_refused() -> None:
    with pytest.raises(ExportError, match=r"Siglip2VisionModel takes patches of images of any size.*Run it with torch"):
        fit_for(tiny("Siglip2VisionModel"), None, None)


@pytest.mark.parametrize("size", [0, -1, True, 2.5, (16,), (16, 16, 3), (16, 0), "16", [16, None]], ids=repr)
def test_what_is_no_size_is_refused_before_the_model_is_loaded(size: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"image_size is .*; give a number of pixels, or height and width"):
        export_model("not looked for", "torch-export", tmp_path / "out", image_size=size)


@pytest.mark.parametrize(("size", "both"), [(16, (16, 16)), ((16, 8), (16, 8)), ([16, 8], (16, 8)), (None, None)])
def test_one_number_stands_for_both(size: Any, both: Size | None) -> None:
    assert checked_size(size) == both


@pytest.mark.parametrize("text", ["", "big", "16x", "16x16x3", "-16", "1.5"])
def test_the_command_refuses_what_is_no_size(text: str, export: Run, tmp_path: Path) -> None:
    done = export("nowhere", f"--image-size={text}", "-o", tmp_path / "out")
    assert (done.code, text in one_line(done.err)) == (1, True)


@pytest.fixture
def interpolating(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are told that images are not of the size in their config."""
    of_images = exporting.model_inputs

    def inputs(model: PreTrainedModel, images: torch.Tensor) -> dict[str, Any]:
        return {**of_images(model, images), "interpolate_pos_encoding": True}

    monkeypatch.setattr(exporting, "model_inputs", inputs)
    monkeypatch.setattr(export_formats, "model_inputs", inputs)


@pytest.mark.usefixtures("interpolating")
def test_a_program_for_another_size_computes_what_the_model_does(export: Run, tmp_path: Path) -> None:
    model = seeded(ViTForImageClassification, tiny_config(num_hidden_layers=1))
    model.save_pretrained(tmp_path / "model")
    ViTImageProcessorPil(size=square(16)).save_pretrained(tmp_path / "model")
    done = export(tmp_path / "model", "--to", "torch-export", "--image-size", "24x32")
    assert done.code == 0, done.err
    folder = tmp_path / "model" / "torch-export"
    report = json.loads((folder / "export_report.json").read_text())
    assert report["inputs"][0]["shape"] == ["batch", 3, 24, 32]
    pixels = AutoImageProcessor.from_pretrained(folder)(images=[WIDE, WIDE], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        ours = torch.export.load(folder / "model.pt2").module()(pixel_values=pixels)["logits"]
        theirs = model(pixels, interpolate_pos_encoding=True).logits
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_a_size_that_the_model_does_not_take_is_one_sentence(tmp_path: Path) -> None:
    model = seeded(ViTForImageClassification, tiny_config())
    with pytest.raises(ExportError, match=r"images of 3 × 3 pixels alone: .*\. Choose another size.*--image-size"):
        export_model(model, "torch-export", tmp_path / "out", image_size=3)
    assert not list(tmp_path.iterdir())
