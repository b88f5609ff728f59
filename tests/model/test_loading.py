"""Models and image processors from folders."""

import importlib.util
import json

import pytest
import torch
import transformers
from accelerate import Accelerator
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTForMaskedImageModeling,
    DeiTModel,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTModel,
)

from hf_vitcompress.configuration_factored import factored_config_class
from hf_vitcompress.configuration_timm import ARCHITECTURE
from hf_vitcompress.errors import UnsupportedModelError
from hf_vitcompress.model.loading import load_dense_model, load_image_processor, load_model
from hf_vitcompress.modeling_factored import factored_model_class
from support.models import TINY, seeded

HEADS = [
    ViTModel,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    DeiTModel,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTForMaskedImageModeling,
]


def tiny(dense, factored):
    if not factored:
        return seeded(dense, dense.config_class(**TINY, encoder_stride=4))
    config_class = factored_config_class(dense.config_class.model_type)
    config = config_class(**TINY, encoder_stride=4, compression={"layers": {"layers.0.mlp.fc1": {"rank": 4}}})
    return seeded(factored_model_class(dense), config)


@pytest.mark.parametrize("factored", [False, True], ids=["dense", "factored"])
@pytest.mark.parametrize("dense", HEADS)
def test_a_model_comes_back_with_its_own_head(dense, factored, pixels, tmp_path):
    model = tiny(dense, factored).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path, Accelerator(cpu=True))
    assert type(loaded) is type(model)
    assert loaded.dtype == torch.bfloat16
    assert not loaded.training
    with torch.no_grad():
        assert torch.equal(loaded(pixels[:4].bfloat16())[0], model(pixels[:4].bfloat16())[0])


def test_a_dense_checkpoint_in_the_key_layout_of_transformers_4_loads(vit, pixels, tmp_path):
    vit.save_pretrained(tmp_path, save_original_format=True)
    with torch.no_grad():
        assert torch.equal(load_model(str(tmp_path), Accelerator(cpu=True))(pixels[:4]).logits, vit(pixels[:4]).logits)


def test_a_config_that_names_no_class_gives_the_backbone(vit, tmp_path):
    vit.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace("ViTForImageClassification", "ViTForSomethingElse"))
    assert type(load_model(tmp_path, Accelerator(cpu=True))) is ViTModel


def test_a_loaded_model_is_taken_as_it_is(vit):
    vit.train()
    assert load_dense_model(vit) is vit
    assert vit.training


@pytest.mark.parametrize("what", [torch.nn.Linear(2, 2), 3, None])
def test_what_is_no_model_is_refused_with_the_supported_types(what):
    with pytest.raises(UnsupportedModelError, match=rf"{type(what).__name__}.*beit, clip"):
        load_dense_model(what)


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(UnsupportedModelError, match=r"^There is no folder '[^']+nowhere'\.$"):
        load_model(tmp_path / "nowhere")


def test_another_architecture_is_refused_with_the_supported_ones(tmp_path):
    BertModel(BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)).save_pretrained(
        tmp_path
    )
    with pytest.raises(UnsupportedModelError, match=r"bert.*Supported model types: beit, clip"):
        load_model(tmp_path)


def test_an_unknown_architecture_is_refused_with_the_supported_ones(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "never_heard_of"}')
    with pytest.raises(UnsupportedModelError, match="Supported model types: beit, clip"):
        load_model(tmp_path)


def test_a_tower_comes_out_of_a_compressed_checkpoint_with_projection(pixels, tmp_path):
    """As AutoModel takes it out of a dense one."""
    values = {name: value for name, value in TINY.items() if name != "num_labels"}
    layers = {
        "vision_model.encoder.layers.0.mlp.fc1": {"rank": 4},
        "vision_model.encoder.layers.1.self_attn": {"qk_rank": 5},
    }
    config = factored_config_class("clip_vision_model")(**values, projection_dim=8, compression={"layers": layers})
    model = seeded(factored_model_class(transformers.CLIPVisionModelWithProjection), config)
    model.save_pretrained(tmp_path)
    tower, info = transformers.AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(tower).__name__ == "FactoredCLIPVisionModel"
    assert not info["missing_keys"]
    with torch.no_grad():
        expected = model(pixels[:4]).last_hidden_state
        assert torch.equal(tower(pixels[:4]).last_hidden_state, expected)


@pytest.mark.parametrize("missing", [("timm", "torchvision"), ("torchvision",)], ids=["both", "torchvision"])
@pytest.mark.parametrize(
    "content",
    [
        '{"architecture": "vit_base_patch16_224", "pretrained_cfg": {"tag": "x"}}',
        '{"model_type": "timm_wrapper"}',
        '{"model_type": "vitcompress_timm_vit"}',
    ],
    ids=["as timm publishes it", "as transformers saves it", "compressed"],
)
def test_a_model_of_timm_needs_timm_and_says_so(content, missing, tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(content)
    found = importlib.util.find_spec
    present = lambda name, *rest: None if name in missing else "it" if name == "timm" else found(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", present)
    named = " and ".join(missing)
    with pytest.raises(UnsupportedModelError, match=rf"timm, and {named} .* missing.*hf-vitcompress\[timm\]"):
        load_model(tmp_path)
    config = factored_config_class("timm_vit")(compression={"layers": {}})
    with pytest.raises(UnsupportedModelError, match=rf"timm, and {named} .* missing"):
        AutoModel.from_config(config)


@pytest.mark.parametrize("content", [None, b"", b"not safetensors at all"], ids=["missing", "empty", "garbage"])
@pytest.mark.parametrize("factored", [False, True], ids=["dense", "factored"])
def test_a_checkpoint_without_usable_weights_is_named(content, factored, tmp_path):
    tiny(ViTForImageClassification, factored).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UnsupportedModelError, match=f"{tmp_path.name}.*cannot be loaded"):
        load_model(tmp_path)


def test_a_truncated_checkpoint_is_named(vit, tmp_path):
    vit.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UnsupportedModelError, match=f"{tmp_path.name}.*cannot be loaded"):
        load_model(tmp_path)


def test_the_image_processor_beside_a_model_is_found(vit, processor, tmp_path):
    vit.save_pretrained(tmp_path)
    assert load_image_processor(tmp_path) is None
    processor.save_pretrained(tmp_path)
    for where in (tmp_path, str(tmp_path), load_model(tmp_path, Accelerator(cpu=True))):
        assert load_image_processor(where).size == processor.size


def test_a_model_from_nowhere_has_no_image_processor(vit):
    assert load_image_processor(vit) is None


@pytest.mark.parametrize("name", ["local-dir:/photos/small", "hf-hub:me/small", "hf_hub:me/small"])
def test_timms_way_to_write_a_name_is_explained(name):
    with pytest.raises(UnsupportedModelError, match=rf"without it: '{name.partition(':')[2]}'"):
        load_model(name)


def test_a_compressed_folder_in_timms_format_says_what_opens_it(tmp_path):
    content = {"architecture": ARCHITECTURE, "pretrained_cfg": {"tag": "x"}, "model_args": {"compressed": {}}}
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(UnsupportedModelError, match=r"import hf_vitcompress\.timm.*local-dir:"):
        load_model(tmp_path)
