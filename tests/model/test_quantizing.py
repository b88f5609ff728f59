"""Layers that torchao cannot quantize stay as they are."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageClassification, PreTrainedModel, TorchAoConfig, ViTForImageClassification
from transformers.utils import is_torchao_available

from hf_vitcompress import quantize
from hf_vitcompress.configuration_factored import factored_config_class
from hf_vitcompress.model.loading import load_model
from hf_vitcompress.model.quantizing import spare_narrow_layers
from hf_vitcompress.modeling_factored import factored_model_class
from support.models import TINY, seeded

if not is_torchao_available():
    pytest.skip("torchao is not installed (pip install torchao)", allow_module_level=True)

from torchao.quantization import Int8WeightOnlyConfig

LAYERS = {
    "vit.layers.0.mlp.fc1": {"rank": 1},
    "vit.layers.0.attention": {"qk_rank": 1},
    "vit.layers.1.mlp.fc1": {"out_features": 1},
    "vit.layers.1.mlp.fc2": {"in_features": 1},
}
NARROW = [
    "vit.layers.0.attention.q_proj",
    "vit.layers.0.attention.k_proj",
    "vit.layers.0.mlp.fc1.up",
    "vit.layers.1.mlp.fc2",
]


@pytest.fixture
def small() -> PreTrainedModel:
    config = factored_config_class("vit")(**TINY, compression={"layers": LAYERS})
    return seeded(factored_model_class(ViTForImageClassification), config)


@pytest.mark.parametrize("scheme", ["int8_weight_only", "int8_dynamic"])
def test_layers_that_read_one_feature_stay_in_float(scheme: str, small: PreTrainedModel, pixels, tmp_path) -> None:
    quantized = quantize(small, scheme)
    plain = [
        name
        for name, module in quantized.named_modules()
        if isinstance(module, nn.Linear) and type(module.weight) is nn.Parameter
    ]
    assert sorted(plain) == sorted(NARROW)
    quantized.save_pretrained(tmp_path)
    reloaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        before, after = small(pixels[:4]).logits, quantized(pixels[:4]).logits
        assert torch.equal(reloaded(pixels[:4]).logits, after)
    assert (after - before).norm() < 0.05 * before.norm()


def test_the_layers_that_stay_are_named(small: PreTrainedModel, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("hf_vitcompress.model.loading.logger.warning", said.append)
    small.save_pretrained(tmp_path)
    load_model(tmp_path, quantization_config=TorchAoConfig(Int8WeightOnlyConfig()))
    [sentence] = said
    assert sentence.startswith("4 layers read one feature, which torchao cannot quantize, and stay as they are: ")
    assert all(name in sentence for name in NARROW)


def test_what_was_to_be_left_alone_still_is() -> None:
    config = factored_config_class("vit")(**TINY, compression={"layers": LAYERS})
    asked = TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=["classifier"])
    assert spare_narrow_layers(asked, factored_model_class(ViTForImageClassification), config) == NARROW
    assert {"classifier", *NARROW} <= set(asked.modules_to_not_convert)
