"""What a plain module of timm was made with: read off it, or what differs is named."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("timm", reason="timm is not installed here; `make test-torchvision` runs this part")

import timm
from torch.nn.utils import prune

from hf_vitcompress.architectures.running import passing
from hf_vitcompress.errors import DataError, UnsupportedModelError
from hf_vitcompress.model.subject import open_subject
from support.timm_models import PLAIN, VIT, wrapper

EVA_02 = "eva02_tiny_patch14_224"


@pytest.fixture(autouse=True)
def without_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with the releases of timm that do not note what a module was made with."""
    monkeypatch.delattr(timm.models, "get_model_args", raising=False)


def made(name: str = VIT, **arguments: Any) -> Any:
    return timm.create_model(name, **{**PLAIN, "num_classes": 10, **arguments}).eval()


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_classes": 0},
        {"img_size": (32, 64)},
        {"img_size": 48, "dynamic_img_size": True},
        {"in_chans": 1},
        {"class_token": False, "global_pool": "avg"},
        {"reg_tokens": 3, "no_embed_class": True},
        {"init_values": 1e-4, "qk_norm": True},
        {"drop_path_rate": 0.1, "drop_rate": 0.2, "patch_drop_rate": 0.3},
        {"mlp_ratio": 3.0, "qkv_bias": False, "proj_bias": False},
        {"fc_norm": True, "pre_norm": True},
        {"act_layer": nn.ReLU},
        *({"global_pool": pool} for pool in ("token", "avg", "map", "max", "avgmax")),
        {"global_pool": "", "num_classes": 0},
    ],
    ids=str,
)
@torch.no_grad()
def test_arguments_are_read_off_a_module(arguments: dict[str, Any]) -> None:
    module = made(**arguments)
    split = open_subject(module).model
    channels, size = split.config.num_channels, split.config.image_size
    images = torch.randn(2, channels, *([size, size] if isinstance(size, int) else size))
    result = split(images)
    assert torch.equal(result.logits if "logits" in result else result.pooler_output, module(images))


def test_the_ratio_of_a_gated_feed_forward_is_the_one_that_was_given() -> None:
    assert open_subject(made(EVA_02, img_size=28)).model.config.model_args["mlp_ratio"] == 85 / 32


def reset(module: Any) -> None:
    module.reset_classifier(37, "avg")


def without_head(module: Any) -> None:
    module.head = nn.Identity()


def other_head(module: Any) -> None:
    module.head = nn.Linear(32, 7)


@pytest.mark.parametrize(("change", "labels"), [(reset, 37), (without_head, 0), (other_head, 7)])
def test_a_changed_classifier_is_taken(change: Callable[[Any], None], labels: int) -> None:
    module = made()
    change(module)
    assert open_subject(module).model.config.num_labels == labels


def test_a_module_in_bfloat16_with_weights_that_are_not_contiguous_is_taken() -> None:
    module = made()
    module.blocks[0].attn.qkv.weight = nn.Parameter(torch.randn(32, 96).T)
    assert open_subject(module.bfloat16()).model.dtype == torch.bfloat16


def masked(module: Any) -> None:
    prune.l1_unstructured(module.blocks[0].attn.qkv, "weight", 0.3)


def tied(module: Any) -> None:
    module.blocks[1].attn.qkv.weight = module.blocks[0].attn.qkv.weight


def deeper_head(module: Any) -> None:
    module.head = nn.Sequential(nn.Linear(32, 7), nn.ReLU(), nn.Linear(7, 3))


def without_origin(module: Any) -> None:
    module.pretrained_cfg = None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (masked, r"blocks.0.attn.qkv is masked: call torch.nn.utils.prune.remove\(module, 'weight'\)"),
        (tied, r"VisionTransformer of timm has one parameter in several places \(blocks.0.attn.qkv.weight, "),
        (
            deeper_head,
            r"timm.create_model\('vit_tiny_patch16_224', .*head is Sequential, timm builds Linear.*model_args",
        ),
        (without_origin, "does not say which architecture it is"),
    ],
)
def test_a_change_that_no_argument_makes_is_named(change: Callable[[Any], None], message: str) -> None:
    module = made()
    change(module)
    with pytest.raises(UnsupportedModelError, match=message):
        open_subject(module)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"global_pool": ""}, "classifies every token and not the image"),
        ({"norm_layer": nn.LayerNorm}, "norm1 is torch.*LayerNorm, timm builds timm.*LayerNorm"),
        ({"mlp_layer": timm.layers.SwiGLU}, "blocks.0.mlp is SwiGLU, timm builds Mlp"),
    ],
)
def test_arguments_that_cannot_be_read_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        open_subject(made(**arguments))


def test_a_wrapper_says_which_setting_fits_its_module() -> None:
    model = wrapper()
    model.timm_model.reset_classifier(37)
    with pytest.raises(UnsupportedModelError, match=r"Set model.config.num_labels=37\.$"):
        open_subject(model)


def test_arguments_that_no_file_holds_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"norm_layer=.*which no config"):
        open_subject(wrapper(norm_layer=nn.LayerNorm))


def test_images_of_another_size_are_refused_in_one_sentence() -> None:
    model, images = open_subject(made()).model, torch.randn(1, 3, 48, 48)
    with (
        pytest.raises(DataError, match="48 × 48 pixels, and TimmViTForImageClassification takes 32 × 32"),
        passing(model, images),
    ):
        model(images)
