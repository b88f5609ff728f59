"""The benchmark of timm's families: they take over what they have a place for of a plain ViT's weights."""

from dataclasses import replace

import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification

from support.models import TINY, seeded

pytest.importorskip("timm", reason="timm is not installed here; `make test-torchvision` has it")

import timm_training

PLAIN = {"use_rot_pos_emb": False}


@pytest.mark.parametrize(("name", "activation"), [("ROPE-ViT", "gelu"), ("EVA-02", "quick_gelu")])
@torch.no_grad()
def test_without_what_differs_a_family_computes_what_the_vit_does(name: str, activation: str) -> None:
    vit = seeded(ViTForImageClassification, ViTConfig(**TINY, layer_norm_eps=1e-6, hidden_act=activation))
    family = timm_training.FAMILIES[name]
    pixels = torch.randn(2, 3, 16, 16)
    wanted = vit(pixels).logits

    plain = timm_training.taking_over(replace(family, arguments={**family.arguments, **PLAIN}), vit).eval()
    hidden = TINY["intermediate_size"]
    for layer in (block.mlp.fc1 for block in plain.blocks):
        layer.weight[hidden:] = 0  # the random part of gated feed-forwards; others have no such rows
    torch.testing.assert_close(plain(pixels), wanted, atol=1e-5, rtol=1e-5)

    whole = timm_training.taking_over(family, vit).eval()
    assert (whole(pixels) - wanted).abs().max() > 1e-4
