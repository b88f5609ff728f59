"""Factored models: their classes, configs, parameters and checkpoints."""

import copy
import json
import pickle

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, ViTForImageClassification, ViTModel

import hf_vitcompress
from hf_vitcompress import FactoredLinear, modeling_factored
from hf_vitcompress.configuration_factored import GUARD_FIELDS, GUARD_TEXT, TRAVELLING_FILES
from hf_vitcompress.modeling_factored import factored_model_class
from support.factored import (
    RANKS,
    assert_same_outputs,
    compression,
    every_form,
    every_head,
    factored,
    factored_config,
    files_of,
    formed,
)
from support.models import REPOSITORY, TINY, seeded

# Weight entries of q_proj (32, 32), fc1 (96, 32) and fc2 (32, 96), before and after.
DENSE_ENTRIES = 32 * 32 + 96 * 32 + 32 * 96
FACTORED_ENTRIES = 4 * (32 + 32) + 8 * (96 + 32) + 6 * (32 + 96)


@every_head
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_saved_model_comes_back_as_its_own_class_with_identical_outputs(dense, auto, dtype, pixels, tmp_path):
    model = factored(dense, dtype)
    model.save_pretrained(tmp_path)
    loaded, info = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is type(model)
    assert type(loaded).__name__ == f"Factored{dense.__name__}"
    assert isinstance(loaded, dense)
    assert loaded.dtype == dtype
    assert not any(info.values())
    assert_same_outputs(model, loaded, pixels)


@every_head
def test_a_sharded_checkpoint_comes_back_identical(dense, auto, pixels, tmp_path):
    model = factored(dense)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 1
    assert_same_outputs(model, auto.from_pretrained(tmp_path), pixels)


@every_head
def test_only_the_named_layers_are_factored(dense, auto):
    model = factored(dense)
    found = {name: module.rank for name, module in model.named_modules() if isinstance(module, FactoredLinear)}
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    assert found == {prefix + name: rank for name, rank in RANKS.items()}


@every_head
def test_the_parameter_count_is_the_dense_one_less_what_the_factors_save(dense, auto):
    dense_model = seeded(dense, dense.config_class(**TINY, encoder_stride=4))
    assert factored(dense).num_parameters() == dense_model.num_parameters() - DENSE_ENTRIES + FACTORED_ENTRIES


def test_the_parameter_count_equals_a_hand_count():
    embeddings = 32 + 17 * 32 + (32 * 3 * 4 * 4 + 32)
    block = 4 * (32 * 32 + 32) + (96 * 32 + 96) + (32 * 96 + 32) + 4 * 32
    rest = 2 * 32 + (5 * 32 + 5)
    assert factored().num_parameters() == embeddings + 2 * block + rest - DENSE_ENTRIES + FACTORED_ENTRIES


@every_head
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_file_holds_the_parameters_under_their_in_memory_names_and_nothing_else(dense, auto, dtype, tmp_path):
    model = factored(dense, dtype)
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    with safe_open(path, "pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert shapes == {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    assert path.stat().st_size == header + model.num_parameters() * dtype.itemsize
    assert header < 160 * len(shapes)


@every_head
def test_a_checkpoint_in_the_key_layout_of_transformers_4_loads_too(dense, auto, pixels, tmp_path):
    model = factored(dense)
    model.save_pretrained(tmp_path, save_original_format=True)
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert f"{prefix}encoder.layer.1.attention.attention.query.weight" in file.keys()  # noqa: SIM118
    assert_same_outputs(model, auto.from_pretrained(tmp_path), pixels)


@every_head
def test_a_model_from_its_config_alone_has_the_same_shapes(dense, auto):
    model = factored(dense)
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    built = auto.from_config(config)
    assert type(built) is type(model)
    assert {n: p.shape for n, p in built.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}


def test_factors_made_from_a_config_are_initialised_like_other_layers():
    model = AutoModelForImageClassification.from_config(factored_config(initializer_range=0.01))
    layer = model.vit.layers[0].mlp.fc1
    assert 0.005 < layer.down.weight.std() < 0.015
    assert 0.005 < layer.up.weight.std() < 0.015
    assert not layer.up.bias.any()


def test_a_config_without_compression_makes_a_dense_model(pixels):
    dense = seeded(ViTForImageClassification, ViTForImageClassification.config_class(**TINY))
    model = factored(ranks={}).eval()
    model.load_state_dict(dense.state_dict())
    assert_same_outputs(dense, model, pixels)


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_the_bias_of_a_layer_stays_where_it_was(qkv_bias, pixels, tmp_path):
    model = factored(qkv_bias=qkv_bias)
    layer = model.vit.layers[0].attention.q_proj
    assert (layer.up.bias is not None) == qkv_bias
    assert layer.down.bias is None
    model.save_pretrained(tmp_path)
    assert_same_outputs(model, AutoModelForImageClassification.from_pretrained(tmp_path), pixels)


@pytest.mark.parametrize("prefix", ["", "vit."])
@pytest.mark.parametrize("dense", [ViTModel, ViTForImageClassification])
def test_layer_names_may_have_the_prefix_of_the_base_model_or_not(dense, prefix):
    model = factored(dense, prefix=prefix)
    assert model.base_model.layers[0].mlp.fc1.rank == 8
    assert model.base_model.layers[1].mlp.fc2.rank == 6


@pytest.mark.parametrize("prefix", ["", "vit."])
def test_the_backbone_of_a_headed_checkpoint_has_its_exact_hidden_states(prefix, pixels, tmp_path):
    model = factored(prefix=prefix)
    model.save_pretrained(tmp_path)
    backbone = AutoModel.from_pretrained(tmp_path)
    assert type(backbone).__name__ == "FactoredViTModel"
    with torch.no_grad():
        expected = model.vit(pixels[:4]).last_hidden_state
        assert torch.equal(backbone(pixels[:4]).last_hidden_state, expected)


@pytest.mark.parametrize("prefix", ["", "vit."])
def test_a_headless_checkpoint_loads_under_a_new_head(prefix, pixels, tmp_path):
    backbone = factored(ViTModel, prefix=prefix)
    backbone.save_pretrained(tmp_path)
    model = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(model).__name__ == "FactoredViTForImageClassification"
    with torch.no_grad():
        expected = backbone(pixels[:4]).last_hidden_state
        assert torch.equal(model.vit(pixels[:4]).last_hidden_state, expected)


def test_a_checkpoint_loads_under_a_classifier_for_other_classes(pixels, tmp_path):
    model = factored()
    model.save_pretrained(tmp_path)
    other = AutoModelForImageClassification.from_pretrained(tmp_path, num_labels=3, ignore_mismatched_sizes=True)
    with torch.no_grad():
        assert other(pixels[:4]).logits.shape == (4, 3)
        assert torch.equal(other.vit(pixels[:4]).last_hidden_state, model.vit(pixels[:4]).last_hidden_state)


def test_the_config_on_disk_is_guarded_and_comes_back_whole(tmp_path):
    config = factored_config(initializer_range=0.0125)
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())[GUARD_FIELDS[0]] == GUARD_TEXT
    for loaded in (AutoConfig.from_pretrained(tmp_path), type(config).from_pretrained(tmp_path)):
        assert type(loaded) is type(config)
        assert loaded.compression == compression()
        assert loaded.initializer_range == 0.0125
        assert loaded.hidden_size == 32


def test_saving_a_loaded_model_again_writes_the_same_files(tmp_path):
    factored().save_pretrained(tmp_path / "first")
    AutoModelForImageClassification.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    assert files_of(tmp_path / "first") == files_of(tmp_path / "second")


@pytest.mark.parametrize("name", TRAVELLING_FILES)
def test_the_files_with_the_code_are_copied_beside_the_weights(tmp_path, name):
    factored().save_pretrained(tmp_path)
    assert (tmp_path / name).read_bytes() == (REPOSITORY / "hf_vitcompress" / name).read_bytes()


@every_head
def test_the_classes_can_be_imported_by_name(dense, auto):
    assert getattr(modeling_factored, f"Factored{dense.__name__}") is factored_model_class(dense)


@pytest.mark.parametrize("name", ["FactoredNothing", "FactoredViT", "NoSuchThing"])
def test_names_that_do_not_exist_are_attribute_errors(name):
    with pytest.raises(AttributeError, match=name):
        getattr(modeling_factored, name)


@every_form
def test_models_can_be_pickled_and_copied(form, pixels):
    model = formed(form)
    assert_same_outputs(model, pickle.loads(pickle.dumps(model)), pixels)
    assert_same_outputs(model, copy.deepcopy(model), pixels)


def test_registering_again_changes_nothing(pixels, tmp_path):
    model = factored()
    hf_vitcompress.register()
    model.save_pretrained(tmp_path)
    assert type(AutoModelForImageClassification.from_pretrained(tmp_path)) is type(model)
