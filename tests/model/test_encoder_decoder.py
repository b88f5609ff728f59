"""A vision encoder in a model whose own config has no number: compressed, saved, guarded and loaded all the same."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from accelerate import Accelerator
from torch import Tensor
from transformers import AutoModelForImageTextToText, PreTrainedModel

from hf_vitcompress import CompressionConfig, ViTCompressor, to_dense
from hf_vitcompress.configuration_factored import GUARD_TEXT, guards_of
from hf_vitcompress.deploy.export import export_model
from hf_vitcompress.model.loading import load_model
from support.larger import captioner


def compressed(model: PreTrainedModel) -> PreTrainedModel:
    config = CompressionConfig(
        keep_ratio=0.6, rank_multiple=1, precision="float32", measuring_images=0, target="encoder"
    )
    images = torch.randn(96, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    return ViTCompressor(config, progress=False).compress(model, images)


@pytest.fixture(scope="module")
def small() -> PreTrainedModel:
    return compressed(captioner())


@pytest.fixture
def saved(small: PreTrainedModel, tmp_path: Path) -> Path:
    small.save_pretrained(tmp_path)
    return tmp_path


def logits(model: PreTrainedModel, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        ids = torch.tensor([[0, 5, 7, 1]] * 2)
        return model.eval()(pixel_values=pixels[:2], decoder_input_ids=ids).logits


def test_its_own_config_has_nothing_to_guard_and_those_in_it_have() -> None:
    assert {name: field for name, (_, field) in guards_of(captioner().config).items()} == {
        "encoder": "initializer_range",
        "decoder": "initializer_range",
    }


def test_it_comes_back_with_the_values_that_were_guarded(small: PreTrainedModel, saved: Path, pixels: Tensor) -> None:
    content = json.loads((saved / "config.json").read_text())
    assert content["encoder"]["initializer_range"] == GUARD_TEXT
    for loaded in (load_model(saved, Accelerator(cpu=True)), AutoModelForImageTextToText.from_pretrained(saved)):
        assert type(loaded) is type(small)
        assert loaded.config.encoder.initializer_range == loaded.config.decoder.initializer_range == 0.02
        assert loaded.config.compression == small.config.compression
        assert torch.equal(logits(loaded, pixels), logits(small, pixels))


@pytest.mark.parametrize("dense", [transformers.VisionEncoderDecoderModel, transformers.ViTModel])
def test_a_dense_class_refuses_it(dense: type[PreTrainedModel], saved: Path) -> None:
    with pytest.raises(Exception, match="factored layers, which a dense model class cannot hold"):
        dense.from_pretrained(saved)


def test_multiplied_out_it_computes_the_same(small: PreTrainedModel, pixels: Tensor) -> None:
    wide = to_dense(small)
    assert type(wide) is transformers.VisionEncoderDecoderModel
    torch.testing.assert_close(logits(wide, pixels), logits(small, pixels), rtol=1e-3, atol=1e-3)


def test_its_encoder_is_what_is_exported(small: PreTrainedModel, tmp_path: Path) -> None:
    result = export_model(small, "torch-export", tmp_path / "program")
    assert result.report.model == "FactoredViTModel"


def test_a_class_that_could_not_be_saved_is_refused_before_any_work() -> None:
    class Captioner(transformers.VisionEncoderDecoderModel):
        pass

    with pytest.raises(ValueError, match=r"Captioner.*no Auto class knows it"):
        compressed(Captioner(captioner().config))
