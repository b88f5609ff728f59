"""What a plain module of timm was made with: as timm has noted it, as long as that builds the module."""

from typing import Any

import pytest
import torch
from torch import nn

timm = pytest.importorskip("timm", reason="timm is not installed here; `make test-torchvision` runs this part")

from hf_vitcompress.model.subject import open_subject  # noqa: E402
from support.timm_models import EVA, PLAIN, SWIN_TINY, VIT  # noqa: E402

STAGES: dict[str, Any] = {"img_size": 64, "embed_dim": 32, "num_heads": (2, 4), "depths": (1, 2), "window_size": 4}
SMALL: dict[str, dict[str, Any]] = {
    SWIN_TINY: {**STAGES, "mlp_ratio": 2.0, "qkv_bias": False, "head_dim": 8},
    "swinv2_tiny_window8_256": {**STAGES, "mlp_ratio": 3.0},
    "swinv2_cr_tiny_ns_224": STAGES,
    "cait_xxs24_224": {"img_size": 64, "embed_dim": 32, "num_heads": 2, "depth": 2, "depth_token_only": 1},
    "xcit_nano_12_p16_224": {"img_size": 64, "embed_dim": 32, "num_heads": 2, "depth": 2, "cls_attn_layers": 1},
    "pvt_v2_b0": {"embed_dims": (16, 32, 32, 32), "num_heads": (1, 2, 2, 2), "depths": (1, 1, 2, 1)},
    "hiera_tiny_224": {"embed_dim": 16, "num_heads": 2, "stages": (1, 1, 2, 1), "mlp_ratio": 3.0},
}


@pytest.mark.parametrize("noted", [True, False], ids=["noted", "read"])
@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_stages_are_known(name: str, noted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not noted:
        monkeypatch.delattr(timm.models, "get_model_args", raising=False)
    module = timm.create_model(name, num_classes=3, **SMALL[name]).eval()
    split = open_subject(module).model
    images = torch.randn(1, 3, *([224, 224] if "img_size" not in SMALL[name] else [64, 64]))
    assert torch.equal(split(images).logits, module(images))


@pytest.mark.skipif(not hasattr(timm.models, "get_model_args"), reason="this timm does not note the arguments")
def test_what_no_reading_tells_is_noted() -> None:
    module = timm.create_model(EVA, **{**PLAIN, "img_size": 28, "rope_temperature": 50.0})
    assert open_subject(module).model.config.model_args["rope_temperature"] == 50.0


def test_later_changes_count_more_than_what_is_noted() -> None:
    module = timm.create_model(VIT, **{**PLAIN, "depth": 3, "num_classes": 4})
    module.blocks = module.blocks[:2]
    module.reset_classifier(7, "avg")
    config = open_subject(module).model.config
    assert (config.model_args["depth"], config.model_args["global_pool"], config.num_labels) == (2, "avg", 7)


def test_a_module_keeps_the_mode_of_each_part() -> None:
    module = timm.create_model(VIT, **PLAIN).train()
    module.head.eval()
    module.blocks[1].requires_grad_(False)
    tensors = list(module.parameters())
    before = [part.training for part in module.modules()], [tensor.requires_grad for tensor in tensors]
    assert open_subject(module).model.training
    assert ([part.training for part in module.modules()], [tensor.requires_grad for tensor in tensors]) == before
    assert all(new is old for new, old in zip(module.parameters(), tensors, strict=True))
    assert type(module.blocks[0].attn.qkv) is nn.Linear
