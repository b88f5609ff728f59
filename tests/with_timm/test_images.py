"""Pictures for models of timm: what timm's own transform makes of them, and what the saved folder makes again."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, PreTrainedModel, ViTImageProcessor

from hf_vitcompress import CompressionConfig, ViTCompressor
from hf_vitcompress.errors import DataError
from hf_vitcompress.images import open_images
from hf_vitcompress.images.colours import in_channels, in_eight_bits
from hf_vitcompress.model.loading import load_image_processor, load_model
from hf_vitcompress.model.subject import open_subject
from hf_vitcompress.publish.saved import restored_companions

pytest.importorskip("timm", reason="timm is not installed here; `make test-torchvision` runs this part")

import timm
from transformers import TimmWrapperImageProcessor

from support.timm_models import VIT, wrapper

OTHER = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.4, 0.3), "interpolation": "bilinear", "crop_pct": 1.0}
CASES: dict[str, dict[str, Any]] = {
    "as published": {},
    "other numbers": OTHER,
    "squashed": {"crop_mode": "squash"},
    "with a border": {"crop_mode": "border", "crop_pct": 0.8},
}


def array(mode: str, kind: type = np.uint8) -> Image.Image:
    generator = np.random.default_rng(0)
    shape = (50, 70, *([len(mode)] if len(mode) > 1 else []))
    return Image.fromarray(generator.integers(0, np.iinfo(kind).max, shape, dtype=kind))


PICTURES = {
    "colour": array("RGB"),
    "grey": array("L"),
    "transparent": array("RGBA"),
    "palette": array("RGB").convert("P"),
    "black and white": array("L").convert("1"),
    "16 bit": array("L", np.uint16),
}


def module(**arguments: Any) -> Any:
    size = {"depth": 2, "embed_dim": 32, "num_heads": 2, "patch_size": 8, "img_size": 32, "num_classes": 5}
    return timm.create_model(VIT, pretrained=False, **{**size, **arguments})


def made(processor: Any, picture: Image.Image, channels: int = 3) -> torch.Tensor:
    source = open_images([picture])
    source.channels = channels
    return next(source.batches(processor, 1)).pixel_values[0]


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
@pytest.mark.parametrize("channels", [3, 1])
def test_pixels_are_those_of_timms_own_transform(settings: dict[str, Any], channels: int) -> None:
    model = module(in_chans=channels)
    model.pretrained_cfg = {**model.pretrained_cfg, **settings}
    subject = open_subject(model)
    stated = {**subject.model.config.pretrained_cfg}
    transform = timm.data.create_transform(**timm.data.resolve_data_config(stated))
    for name, picture in PICTURES.items():
        expected = transform(in_channels(in_eight_bits(picture), channels))
        pixels = made(subject.processor, picture, channels)
        assert pixels.shape == (channels, 32, 32), name
        assert torch.equal(pixels, expected), name
        assert subject.model(pixels[None]).logits.shape == (1, 5)


def test_four_channels_take_the_average_of_the_numbers_as_timm_does() -> None:
    subject = open_subject(module(in_chans=4))
    assert subject.processor.data_config["mean"] == (0.5,) * 4
    assert made(subject.processor, PICTURES["transparent"], 4).shape == (4, 32, 32)


def test_ready_pixels_that_are_not_normalized_are_noticed() -> None:
    subject = open_subject(module())
    raw = torch.full((2, 3, 32, 32), 255.0)
    with pytest.raises(DataError, match="TimmWrapperImageProcessor makes reach 1: they are not normalized"):
        next(open_images(raw).batches(subject.processor, 2))


# ---- what the saved folder loads


def compressed(model: Any, pictures: list[Image.Image], processor: Any = None) -> PreTrainedModel:
    config = CompressionConfig(keep_ratio=0.7, measuring_images=0, fisher_probes=1, rank_multiple=1)
    return ViTCompressor(config, image_processor=processor, progress=False).compress(model, pictures)


@pytest.fixture(autouse=True)
def nothing_says_that_it_is_disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    """`save_pretrained` of timm's processor warns and does nothing else."""

    def called(*_: Any, **__: Any) -> None:
        raise AssertionError("this warns")

    monkeypatch.setattr(TimmWrapperImageProcessor, "save_pretrained", called)


def test_it_is_found_in_every_later_folder(
    pictures: list[Image.Image], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = module()
    model.pretrained_cfg = {**model.pretrained_cfg, **OTHER}
    compressed(model, pictures).save_pretrained(tmp_path / "small")
    again = load_model(tmp_path / "small")
    again.companions = restored_companions(again)
    again.save_pretrained(tmp_path / "again")
    again.to_dense().save_pretrained(tmp_path / "dense")
    expected = made(open_subject(model).processor, PICTURES["colour"])
    for folder in ("small", "again", "dense"):
        assert torch.equal(made(load_image_processor(tmp_path / folder), PICTURES["colour"]), expected)
    assert "backend" not in caplog.text
    for folder in ("small", "again", "dense"):
        assert torch.equal(made(AutoImageProcessor.from_pretrained(tmp_path / folder), PICTURES["colour"]), expected)


OWN: dict[str, Any] = {"size": {"height": 32, "width": 32}, "image_mean": (0.1, 0.2, 0.3)}


@pytest.mark.parametrize("how", ["given", "beside the model"])
def test_a_processor_of_the_users_is_what_the_folders_load(
    how: str, pictures: list[Image.Image], tmp_path: Path
) -> None:
    own = ViTImageProcessor(**OWN)
    if how == "given":
        small = compressed(module(), pictures, own)
    else:
        wrapper(patch_size=8).save_pretrained(tmp_path / "given")
        own.save_pretrained(tmp_path / "given")
        small = compressed(tmp_path / "given", pictures)
    small.save_pretrained(tmp_path / "small")
    small.to_dense().save_pretrained(tmp_path / "dense")
    for folder in ("small", "dense"):
        for loaded in (
            load_image_processor(tmp_path / folder),
            AutoImageProcessor.from_pretrained(tmp_path / folder),
        ):
            assert type(loaded) is ViTImageProcessor
            assert tuple(loaded.image_mean) == OWN["image_mean"]


def test_timms_settings_that_are_given_replace_those_of_the_model(pictures: list[Image.Image], tmp_path: Path) -> None:
    given = TimmWrapperImageProcessor({**OTHER, "input_size": (3, 32, 32)})
    compressed(module(), pictures, given).save_pretrained(tmp_path / "small")
    loaded = AutoImageProcessor.from_pretrained(tmp_path / "small")
    assert torch.equal(made(loaded, PICTURES["colour"]), made(given, PICTURES["colour"]))


def test_timms_processor_goes_with_a_model_of_transformers_too(
    vit: PreTrainedModel, pictures: list[Image.Image], tmp_path: Path
) -> None:
    given = TimmWrapperImageProcessor({**OTHER, "input_size": (3, 16, 16)})
    compressed(vit, pictures, given).save_pretrained(tmp_path / "small")
    assert not hasattr(vit.config, "pretrained_cfg")
    loaded = AutoImageProcessor.from_pretrained(tmp_path / "small")
    assert torch.equal(made(loaded, PICTURES["colour"]), made(given, PICTURES["colour"]))
