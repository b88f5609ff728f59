"""Models of transformers become modules of timm with the same output."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    ViTModel,
)

from hf_vitcompress import convert_from_timm, convert_to_timm
from hf_vitcompress.conversion.to_timm import conversion_to_timm, save_timm
from hf_vitcompress.errors import UnsupportedModelError
from hf_vitcompress.model.companions import give_companions
from support.factored import factored
from support.models import TINY, seeded

timm = pytest.importorskip("timm", reason="timm is not installed here; `make test-torchvision` has it")

DINO = {name: value for name, value in TINY.items() if name != "intermediate_size"}
CASES = [
    (ViTForImageClassification, ViTConfig(**TINY, layer_norm_eps=1e-6)),
    (ViTForImageClassification, ViTConfig(**{**TINY, "image_size": [16, 8]}, num_channels=1, qkv_bias=False)),
    (ViTForImageClassification, ViTConfig(**TINY, hidden_act="quick_gelu")),
    (ViTModel, ViTConfig(**TINY)),
    (DeiTForImageClassificationWithTeacher, DeiTConfig(**TINY)),
    (Dinov2Model, Dinov2Config(**DINO)),
    (Dinov2WithRegistersModel, Dinov2WithRegistersConfig(**DINO)),
]


def answers(model: Any, module: Any, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    outputs = model(images)
    if hasattr(outputs, "logits"):
        return outputs.logits, module(images)
    return outputs.last_hidden_state, module.forward_features(images)


@pytest.mark.parametrize(("model_class", "config"), CASES)
@torch.no_grad()
def test_the_output_is_the_same_and_comes_back(model_class: type[PreTrainedModel], config: Any, tmp_path: Path) -> None:
    model = seeded(model_class, config)
    size = config.image_size if isinstance(config.image_size, list) else [config.image_size] * 2
    images = torch.randn(2, config.num_channels, *size)
    save_timm(conversion_to_timm(model), tmp_path)
    module = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    ours, theirs = answers(model, module, images)
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)
    back = convert_from_timm(tmp_path)
    assert type(back) is model_class
    torch.testing.assert_close(answers(back, module, images)[0], ours, atol=1e-5, rtol=1e-5)


def test_classes_and_preprocessing_go_along(tmp_path: Path) -> None:
    config = ViTConfig(**TINY, layer_norm_eps=1e-6, id2label=dict(enumerate(["ape", "bee", "cat", "dog", "eel"])))
    model = seeded(ViTForImageClassification, config)
    give_companions(
        model, [ViTImageProcessorPil(size={"height": 16, "width": 16}, image_mean=[0.1] * 3, image_std=[0.2] * 3)]
    )
    done = conversion_to_timm(model)
    data = timm.data.resolve_model_data_config(done.model)
    assert data["input_size"] == (3, 16, 16)
    assert (data["mean"], data["std"], data["interpolation"]) == ((0.1,) * 3, (0.2,) * 3, "bilinear")
    save_timm(done, tmp_path)
    again: Any = convert_from_timm(tmp_path)
    assert again.config.id2label == config.id2label
    assert [*again.companions[0].image_mean] == [0.1] * 3


def test_nothing_is_said_of_weights_that_somebody_else_published() -> None:
    settings = convert_to_timm(seeded(ViTForImageClassification, ViTConfig(**TINY))).pretrained_cfg  # type: ignore[index]
    assert not any(settings.get(key) for key in ("tag", "license", "hf_hub_id", "url"))


def test_what_is_left_out_is_said() -> None:
    remarks = " ".join(conversion_to_timm(seeded(ViTModel, ViTConfig(**TINY))).remarks)
    assert "pooler" in remarks
    assert "no image processor" in remarks


@pytest.mark.parametrize(
    ("model_class", "config", "said"),
    [
        (Dinov2ForImageClassification, Dinov2Config(**DINO), "not converted to timm"),
        (Dinov2Model, Dinov2Config(**DINO, use_swiglu_ffn=True), "gated"),
        (ViTForImageClassification, ViTConfig(**TINY, hidden_act="relu"), "relu"),
        (ViTForImageClassification, ViTConfig(**TINY, layer_norm_eps=0.1), "eps"),
    ],
)
def test_what_timm_cannot_express_is_refused(model_class: type[PreTrainedModel], config: Any, said: str) -> None:
    with pytest.raises(UnsupportedModelError, match=said):
        convert_to_timm(seeded(model_class, config))


def test_a_compressed_model_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="to_dense"):
        convert_to_timm(factored())


@torch.no_grad()
def test_the_real_model_is_the_same(assets: Path) -> None:
    done = conversion_to_timm(assets / "vit-s14-cifar10")
    assert done.difference <= 1e-5
    assert done.model.pretrained_cfg["label_names"][9] == "truck"
    assert done.remarks == ()
