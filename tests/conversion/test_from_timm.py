"""Models of timm become models of transformers with the same output, or are refused."""

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification

from hf_vitcompress import convert_from_timm
from hf_vitcompress.conversion.from_timm import conversion_from_timm
from hf_vitcompress.errors import UnsupportedModelError
from hf_vitcompress.model.loading import load_image_processor, load_model
from support.timm_models import tiny_timm

pytest.importorskip("timm", reason="timm is not installed here; `make test-torchvision` has it")

HEADLESS = {"num_classes": 0}
ROUNDING = 5e-6
"""Of outputs about 1; most are the same to the last bit, on most machines."""

CASES = [
    ("vit_tiny_patch16_224", {}, "ViTForImageClassification"),
    ("vit_tiny_patch16_224", HEADLESS, "ViTModel"),
    ("vit_tiny_patch16_224", {"qkv_bias": False, "in_chans": 1, "act_layer": "gelu_tanh"}, "ViTForImageClassification"),
    ("vit_tiny_patch16_224", {"img_size": (32, 48), "patch_size": (16, 8)}, "ViTForImageClassification"),
    ("vit_tiny_patch16_224", {"dynamic_img_size": True}, "ViTForImageClassification"),
    ("vit_tiny_patch16_224", {"no_embed_class": True}, "ViTForImageClassification"),
    ("vit_tiny_patch16_224", {"global_pool": "avg"}, "BeitForImageClassification"),
    ("vit_tiny_patch16_224", {"global_pool": "avg", **HEADLESS}, "BeitModel"),
    ("vit_tiny_patch16_224", {"global_pool": "avg", "fc_norm": False}, "Dinov2ForImageClassification"),
    ("vit_medium_patch16_gap_256", {}, "IJepaForImageClassification"),
    ("vit_base_patch16_siglip_gap_224", HEADLESS, "IJepaModel"),
    ("deit_tiny_distilled_patch16_224", {}, "DeiTForImageClassificationWithTeacher"),
    ("deit_tiny_distilled_patch16_224", HEADLESS, "DeiTModel"),
    ("deit3_small_patch16_224", {}, "ViTForImageClassification"),
    ("vit_small_patch14_dinov2", {"img_size": 28, **HEADLESS}, "Dinov2Model"),
    ("vit_giant_patch14_dinov2", {"img_size": 28, "embed_dim": 48, **HEADLESS}, "Dinov2Model"),
    ("vit_small_patch14_reg4_dinov2", {"img_size": 28, **HEADLESS}, "Dinov2WithRegistersModel"),
    ("vit_small_patch14_reg4_dinov2", {"img_size": 28}, "Dinov2WithRegistersForImageClassification"),
    (
        "vit_small_patch14_reg4_dinov2",
        {"img_size": 28, "no_embed_class": False},
        "Dinov2WithRegistersForImageClassification",
    ),
    ("vit_small_patch16_dinov3", HEADLESS, "DINOv3ViTModel"),
    ("vit_small_plus_patch16_dinov3_qkvb", HEADLESS, "DINOv3ViTModel"),
    ("vit_base_patch16_clip_quickgelu_224", HEADLESS, "CLIPVisionModel"),
    ("vit_base_patch16_siglip_224", HEADLESS, "SiglipVisionModel"),
    ("beit_base_patch16_224", {}, "BeitForImageClassification"),
    ("beitv2_base_patch16_224", HEADLESS, "BeitModel"),
    ("beit_base_patch16_224", {"global_pool": "token"}, "BeitForImageClassification"),
    (
        "beit_base_patch16_224",
        {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True},
        "BeitForImageClassification",
    ),
    ("vit_tiny_patch16_224", {"pos_embed": "none"}, "BeitForImageClassification"),
    ("eva_giant_patch14_224", {"img_size": 28}, "BeitForImageClassification"),
    ("swin_tiny_patch4_window7_224", {}, "SwinForImageClassification"),
    ("swin_tiny_patch4_window7_224", HEADLESS, "SwinModel"),
    ("swinv2_tiny_window8_256", {"img_size": 64}, "Swinv2ForImageClassification"),
]


def answer(model: Any, images: torch.Tensor) -> torch.Tensor:
    outputs = model(images)
    return outputs.logits if hasattr(outputs, "logits") else outputs.last_hidden_state


@pytest.mark.parametrize(("name", "arguments", "kind"), CASES)
@torch.no_grad()
def test_the_output_is_the_same(name: str, arguments: dict[str, Any], kind: str) -> None:
    module = tiny_timm(name, **arguments)
    done = conversion_from_timm(module)
    assert type(done.model).__name__ == kind
    assert done.difference <= ROUNDING
    images = torch.randn(3, module.patch_embed.proj.in_channels, *module.patch_embed.img_size)
    theirs = module(images) if module.num_classes else module.forward_features(images)
    ours = answer(done.model, images).reshape(theirs.shape)
    if kind == "CLIPVisionModel":  # its hidden states are those before the last norm
        ours, theirs = done.model(images).pooler_output, module(images)
    torch.testing.assert_close(ours, theirs, atol=ROUNDING, rtol=ROUNDING)
    assert theirs.std() > 0.1


@torch.no_grad()
def test_the_head_of_a_clip_tower_is_its_projection() -> None:
    module = tiny_timm("vit_base_patch16_clip_224", num_classes=8)
    module.head.bias.zero_()
    done, images = conversion_from_timm(module), torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(done.model(images).image_embeds, module(images), atol=ROUNDING, rtol=ROUNDING)
    assert any("image_embeds" in remark for remark in done.remarks)


REFUSED = [
    ("vit_tiny_patch16_224", {"qk_norm": True}, "normalization of queries and keys"),
    ("vit_tiny_patch16_224", {"global_pool": "map"}, "global_pool='map'"),
    ("vit_tiny_patch16_224", {"global_pool": "max"}, "other than the normalized mean"),
    ("vit_tiny_patch16_224", {"global_pool": ""}, "global_pool=''"),
    (
        "vit_tiny_patch16_224",
        {"pos_embed": "none", "class_token": False, "global_pool": "avg"},
        "the lack of a class token",
    ),
    ("vit_tiny_patch16_224", {"norm_layer": "rmsnorm"}, "RmsNorm"),
    ("vit_tiny_patch16_224", {"reg_tokens": 2, "global_pool": "avg"}, "normalized after the pooling"),
    ("vit_base_patch16_clip_224", {}, "classifier with biases"),
    ("vit_base_patch16_siglip_224", {}, "a classifier"),
    ("vit_base_patch16_rope_reg1_gap_256", {}, "RotaryEmbeddingCat"),
    ("eva02_tiny_patch14_224", {"img_size": 28}, "RotaryEmbeddingCat"),
]


@pytest.mark.parametrize(("name", "arguments", "said"), REFUSED)
def test_what_cannot_be_expressed_is_refused_in_one_sentence(name: str, arguments: dict[str, Any], said: str) -> None:
    module = tiny_timm(name, **arguments)
    with pytest.raises(UnsupportedModelError) as refused:
        convert_from_timm(module)
    assert said in str(refused.value)
    assert str(refused.value).endswith("directly, without this conversion.")


def test_other_models_of_timm_are_refused() -> None:
    module = tiny_timm("xcit_nano_12_p16_224", img_size=32, depth=1)
    with pytest.raises(UnsupportedModelError, match="Xcit"):
        convert_from_timm(module)


def test_a_model_that_computes_something_else_than_its_class_is_refused() -> None:
    module = tiny_timm("vit_tiny_patch16_224")
    module.norm.forward = lambda x: 1.01 * torch.nn.functional.layer_norm(x, x.shape[-1:])
    with pytest.raises(UnsupportedModelError, match="differs by"):
        convert_from_timm(module)


def test_an_untrained_head_of_zeros_proves_nothing() -> None:
    module = tiny_timm("vit_tiny_patch16_224")
    torch.nn.init.zeros_(module.head.weight)
    convert_from_timm(module)
    module.norm.forward = lambda x: 1.01 * torch.nn.functional.layer_norm(x, x.shape[-1:])
    with pytest.raises(UnsupportedModelError, match="differs by"):
        convert_from_timm(module)


def test_weights_that_are_no_numbers_are_refused() -> None:
    module = tiny_timm("vit_tiny_patch16_224")
    torch.nn.init.constant_(module.blocks[1].mlp.fc2.bias, float("nan"))
    with pytest.raises(UnsupportedModelError, match="infinite or no number"):
        convert_from_timm(module)


def test_a_difference_that_float64_does_not_have_is_rounding() -> None:
    """A large number that all features share, and that the last norm takes away again, takes most digits with it."""
    module = tiny_timm("deit3_small_patch16_224")
    with torch.no_grad():
        module.blocks[-1].mlp.fc2.bias.add_(1000 / module.blocks[-1].ls2.gamma)
    assert conversion_from_timm(module).difference > 1e-5


def test_the_callers_model_and_random_states_stay_as_they_were() -> None:
    module = tiny_timm("deit3_small_patch16_224").train()
    before, states = copy.deepcopy(module.state_dict()), (random.getstate(), torch.get_rng_state())
    convert_from_timm(module)
    assert all(part.training for part in module.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])


def test_a_model_without_blocks_or_that_cannot_be_run_is_named() -> None:
    module = tiny_timm("vit_tiny_patch16_224")
    module.patch_embed.proj = torch.nn.Conv2d(3, 32, 16, stride=8)
    with pytest.raises(UnsupportedModelError, match=r"vit_tiny_patch16_224 cannot be run on images of 3 × 32 × 32"):
        convert_from_timm(module)
    module.blocks = torch.nn.Sequential()
    with pytest.raises(UnsupportedModelError, match="no blocks"):
        convert_from_timm(module)


def test_a_model_that_says_nothing_of_its_images() -> None:
    module = tiny_timm("vit_tiny_patch16_224")
    module.pretrained_cfg = {}
    done = conversion_from_timm(module)
    assert any("is a guess" in remark for remark in done.remarks)
    assert done.model.companions[0].image_mean[0] == 0.485


def test_a_head_that_was_replaced() -> None:
    module = tiny_timm("vit_tiny_patch16_224", num_classes=1000)
    module.head = torch.nn.Linear(32, 3)
    config: Any = convert_from_timm(module).config
    assert config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    module.head = torch.nn.Sequential(torch.nn.Linear(32, 8), torch.nn.GELU(), torch.nn.Linear(8, 3))
    with pytest.raises(UnsupportedModelError, match="a head like Sequential"):
        convert_from_timm(module)


def test_it_can_be_trained_where_the_caller_has_switched_gradients_off() -> None:
    module = tiny_timm("vit_tiny_patch16_224")
    with torch.inference_mode():
        model = convert_from_timm(module)
    assert all(parameter.requires_grad and not parameter.is_inference() for parameter in model.parameters())


def test_weights_keep_their_type() -> None:
    model: Any = convert_from_timm(tiny_timm("vit_tiny_patch16_224").bfloat16())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.config.dtype == torch.bfloat16


def test_classes_are_called_what_timm_calls_them() -> None:
    named = tiny_timm("vit_tiny_patch16_224")
    named.pretrained_cfg["label_names"] = [f"n{index}" for index in range(5)]
    named.pretrained_cfg["label_descriptions"] = {"n3": "owl"}
    config: Any = convert_from_timm(named).config
    assert [config.id2label[index] for index in range(5)] == ["n0", "n1", "n2", "owl", "n4"]
    of_imagenet: Any = convert_from_timm(tiny_timm("vit_tiny_patch16_224", num_classes=1000)).config
    assert of_imagenet.id2label[0] == "tench, Tinca tinca"


def test_it_is_saved_with_its_image_processor_and_loads_by_itself(tmp_path: Path) -> None:
    module = tiny_timm("vit_tiny_patch16_224")
    model: Any = convert_from_timm(module)
    assert load_image_processor(model).crop_size["height"] == 32
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(images).logits, module(images))
    assert AutoImageProcessor.from_pretrained(tmp_path).size["shortest_edge"] == 35, "floor(32 / 0.9)"


def test_a_headless_one_is_loaded_for_compression(tmp_path: Path) -> None:
    module = tiny_timm("vit_tiny_patch16_224", num_classes=0)
    convert_from_timm(module).save_pretrained(tmp_path)
    images = torch.randn(2, 3, 32, 32)
    loaded: Any = load_model(tmp_path)
    assert torch.equal(loaded(images).last_hidden_state, module.forward_features(images))
    assert type(loaded) is type(AutoModel.from_pretrained(tmp_path))


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("vit_tiny_patch16_224", {"dynamic_img_size": True}, "dynamic_img_size"),
        ("vit_tiny_patch16_224", {"in_chans": 4}, "4 channels"),
        ("vit_tiny_patch16_224", {"drop_path_rate": 0.1}, "no stochastic depth"),
        ("vit_tiny_patch16_224", {"global_pool": "avg", "fc_norm": False}, "class token, with weights of 0"),
        ("vit_small_patch16_dinov3", HEADLESS, "last_hidden_state[:, 5:].mean(1)"),
        ("vit_base_patch16_siglip_gap_224", HEADLESS, "last_hidden_state.mean(1)"),
        ("deit_tiny_distilled_patch16_224", HEADLESS, "last_hidden_state[:, :2].mean(1)"),
        ("swin_tiny_patch4_window7_224", {**HEADLESS, "global_pool": "max"}, "global_pool='max'"),
    ],
)
def test_what_is_different_to_use_is_said(name: str, arguments: dict[str, Any], said: str) -> None:
    remarks = conversion_from_timm(tiny_timm(name, **arguments)).remarks
    assert any(said in remark for remark in remarks)
    assert all(remark.endswith(".") for remark in remarks)
