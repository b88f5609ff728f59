"""The `Factored…` classes: what transformers promises of a model must hold for them, on disk and in memory."""

import copy
import json
import os
import pickle
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors import safe_open
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTForMaskedImageModeling,
    DeiTModel,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTModel,
    pipeline,
)

import hf_vitcompress
from hf_vitcompress import FactoredLinear, layers_factored, modeling_factored
from hf_vitcompress.configuration_factored import (
    GUARD_FIELDS,
    GUARD_TEXT,
    TRAVELLING_FILES,
    factored_config_class,
)
from hf_vitcompress.modeling_factored import factored_model_class
from support.clean_interpreter import run_script
from support.models import REPOSITORY, TINY, seeded

transformers.utils.logging.disable_progress_bar()

HEADS = [
    (ViTModel, AutoModel),
    (ViTForImageClassification, AutoModelForImageClassification),
    (ViTForMaskedImageModeling, AutoModelForMaskedImageModeling),
    (DeiTModel, AutoModel),
    (DeiTForImageClassification, AutoModelForImageClassification),
    (DeiTForImageClassificationWithTeacher, AutoModelForImageClassification),
    (DeiTForMaskedImageModeling, AutoModelForMaskedImageModeling),
]
every_head = pytest.mark.parametrize(("dense", "auto"), HEADS, ids=[dense.__name__ for dense, _ in HEADS])

RANKS = {"layers.0.attention.q_proj": 4, "layers.0.mlp.fc1": 8, "layers.1.mlp.fc2": 6}
# Weight entries of q_proj (32, 32), fc1 (96, 32) and fc2 (32, 96), before and after.
DENSE_ENTRIES = 32 * 32 + 96 * 32 + 32 * 96
FACTORED_ENTRIES = 4 * (32 + 32) + 8 * (96 + 32) + 6 * (32 + 96)


HEADS_LEFT = {f"layers.0.attention.{letter}_proj": {"out_features": 24} for letter in "qkv"}
FORMS = {
    "factored": {name: {"rank": rank} for name, rank in RANKS.items()},
    "narrow hidden layer": {"layers.0.mlp.fc1": {"out_features": 40}, "layers.0.mlp.fc2": {"in_features": 40}},
    "narrow factored hidden layer": {
        "layers.0.mlp.fc1": {"out_features": 40, "rank": 7},
        "layers.0.mlp.fc2": {"in_features": 40, "rank": 6},
    },
    "shared down": {"layers.0.attention": {"qk_rank": 6}, "layers.1.attention": {"qk_rank": 32}},
    "narrow values": {
        "layers.0.attention.v_proj": {"out_features": 12},
        "layers.0.attention.o_proj": {"in_features": 12},
    },
    "fewer heads": {**HEADS_LEFT, "layers.0.attention.o_proj": {"in_features": 24}},
    "fewer heads of narrow values on a shared down": {
        "layers.0.attention": {"qk_rank": 5},
        **{name: shape for name, shape in HEADS_LEFT.items() if "v_proj" not in name},
        "layers.0.attention.v_proj": {"out_features": 9, "rank": 4},
        "layers.0.attention.o_proj": {"in_features": 9},
    },
    "all at once": {
        "layers.0.attention": {"qk_rank": 6},
        "layers.0.attention.v_proj": {"out_features": 20, "rank": 8},
        "layers.0.attention.o_proj": {"in_features": 20, "rank": 9},
        "layers.0.mlp.fc1": {"out_features": 40, "rank": 7},
        "layers.0.mlp.fc2": {"in_features": 40},
        "layers.1.attention.v_proj": {"rank": 3},
        "layers.1.mlp.fc1": {"rank": 8},
    },
}
"""Shapes by what they are."""
every_form = pytest.mark.parametrize("form", FORMS)


def compression(ranks=RANKS, prefix=""):
    return {"layers": {prefix + name: {"rank": rank} for name, rank in ranks.items()}}


def factored_config(model_type="vit", ranks=RANKS, prefix="", layers=None, **changes):
    shapes = compression(ranks, prefix) if layers is None else {"layers": layers}
    values = {**TINY, "encoder_stride": 4, "compression": shapes, **changes}
    return factored_config_class(model_type)(**values)


def formed(form, dense=ViTForImageClassification, dtype=torch.float32, **changes):
    """A model of one of the forms."""
    return factored(dense, dtype, layers=FORMS[form], **changes)


def factored(dense=ViTForImageClassification, dtype=torch.float32, **changes):
    model_type = "deit" if dense.__name__.startswith("DeiT") else "vit"
    return seeded(factored_model_class(dense), factored_config(model_type, **changes)).to(dtype)


def outputs(model, pixels):
    with torch.no_grad():
        result = model(pixels[:4].to(model.dtype))
    return [value for value in result.to_tuple() if value is not None]


def assert_same_outputs(first, second, pixels):
    ours, theirs = outputs(first, pixels), outputs(second, pixels)
    assert len(ours) == len(theirs) > 0
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


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


# Shapes of every form


@every_head
@every_form
def test_every_form_comes_back_with_identical_outputs(form, dense, auto, pixels, tmp_path):
    model = formed(form, dense)
    model.save_pretrained(tmp_path)
    loaded, info = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is type(model)
    assert loaded.config.compression == model.config.compression == {"layers": FORMS[form]}
    assert not any(info.values())
    assert_same_outputs(model, loaded, pixels)


@every_form
@pytest.mark.parametrize("prefix", ["", "vit."])
def test_every_form_survives_the_config_file_under_either_name(form, prefix, pixels, tmp_path):
    config = factored_config(layers={prefix + name: shape for name, shape in FORMS[form].items()})
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert loaded.compression == config.compression
    assert json.loads((tmp_path / "config.json").read_text())["compression"]["layers"] == config.compression["layers"]
    plain, prefixed = formed(form), seeded(factored_model_class(ViTForImageClassification), loaded)
    assert_same_outputs(plain, prefixed, pixels)


@every_form
def test_every_form_has_the_shapes_that_it_says(form):
    model = formed(form, ViTModel)
    for name, shape in FORMS[form].items():
        module = model.get_submodule(name)
        found = {key: module.qk_down.out_features if key == "qk_rank" else getattr(module, key) for key in shape}
        assert found == shape
        assert isinstance(module, FactoredLinear) is ("rank" in shape)
    dense = seeded(ViTModel, ViTModel.config_class(**TINY))
    touched = {name.rpartition(".")[0] if "_proj" in name else name for name in FORMS[form]}
    for name, module in dense.named_modules():
        if isinstance(module, nn.Linear) and not name.startswith(tuple(touched)):
            assert model.get_submodule(name).weight.shape == module.weight.shape


@every_form
@pytest.mark.parametrize("dense", [ViTForImageClassification, DeiTForImageClassification])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_form_computes_the_same_in_eager_and_sdpa_attention(form, dense, dtype, pixels, tmp_path):
    formed(form, dense, dtype).save_pretrained(tmp_path)
    models = [
        AutoModelForImageClassification.from_pretrained(tmp_path, attn_implementation=kind)
        for kind in ("eager", "sdpa")
    ]
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05}
    eager, sdpa = (outputs(model, pixels)[0] for model in models)
    assert eager.dtype == dtype
    torch.testing.assert_close(eager, sdpa, **tolerance)


@every_form
def test_every_form_shows_its_hidden_states_and_attentions(form, pixels):
    model = formed(form)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        result = model(pixels[:4], output_hidden_states=True, output_attentions=True)
        plain = model(pixels[:4])
    assert torch.equal(result.logits, plain.logits)
    assert [tuple(hidden.shape) for hidden in result.hidden_states] == [(4, 17, 32)] * 3
    heads = [3 if "heads" in form else 4, 4]
    assert [tuple(weights.shape) for weights in result.attentions] == [(4, count, 17, 17) for count in heads]
    for weights in result.attentions:
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))


@every_form
def test_every_form_compiles(form, pixels):
    torch._dynamo.reset()
    model = formed(form)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(pixels[:4]).logits, model(pixels[:4]).logits)


@every_form
def test_gradients_reach_every_parameter_of_every_form(form, pixels):
    model = formed(form).train()
    model(pixels[:4], labels=torch.arange(4)).loss.backward()
    missing = {name for name, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()}
    assert not missing
    still = {name for name, p in model.named_parameters() if not p.grad.any()}
    assert all(name.endswith(("k_proj.bias", "k_proj.up.bias")) for name in still)


@every_form
def test_gradient_checkpointing_of_every_form_gives_the_same_gradients(form, pixels):
    found = []
    for checkpointed in (False, True):
        model = formed(form).train()
        if checkpointed:
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        model(pixels[:4], labels=torch.arange(4)).loss.backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    torch.testing.assert_close(found[0], found[1])


@every_form
def test_the_attention_of_every_form_is_its_definition(form, pixels):
    """In float64: softmax(Q Kᵀ / √d) V for each head, whatever number of values the heads have."""
    model = formed(form, ViTModel).double()
    attention, seen = model.layers[0].attention, {}
    attention.register_forward_hook(lambda _, args, kwargs, out: seen.update(x=args[0], y=out[0]), with_kwargs=True)
    outputs(model, pixels)
    x = seen["x"]
    matched = attention.qk_down(x) if hasattr(attention, "qk_down") else x
    query, key = attention.q_proj(matched), attention.k_proj(matched)
    heads = query.shape[-1] // 8
    query, key, value = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (query, key, attention.v_proj(x)))
    mixed = (query @ key.transpose(-1, -2) / 8**0.5).softmax(-1) @ value
    torch.testing.assert_close(attention.o_proj(mixed.transpose(1, 2).flatten(2)), seen["y"])


def test_the_trainer_trains_every_kind_of_layer_and_its_checkpoint_reloads(pixels, tmp_path):
    model = formed("all at once")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    result = Trainer(model, training_arguments(tmp_path), train_dataset=Labelled(pixels[:8])).train()
    assert result.global_step == 2
    now = dict(model.named_parameters())
    still = {name for name in before if torch.equal(before[name], now[name])}
    assert all(name.endswith("k_proj.bias") for name in still)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "checkpoint-2")
    assert_same_outputs(model.eval(), loaded, pixels)


@every_form
def test_the_pipeline_runs_on_every_form(form, pictures, processor, tmp_path):
    model = formed(form)
    model.companions.append(processor)
    model.save_pretrained(tmp_path)
    classify = pipeline("image-classification", model=str(tmp_path), device="cpu")
    assert sum(entry["score"] for entry in classify(pictures[0], top_k=5)) == pytest.approx(1, abs=1e-4)


# With the rest of transformers


def training_arguments(folder):
    return TrainingArguments(
        output_dir=folder,
        max_steps=2,
        save_steps=2,
        logging_steps=1,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


class Labelled(torch.utils.data.Dataset):
    def __init__(self, pixels):
        self.pixels = pixels

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, index):
        return {"pixel_values": self.pixels[index], "labels": index % 5}


def test_the_trainer_trains_the_factors_and_its_checkpoint_reloads(pixels, tmp_path):
    model = factored()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    result = Trainer(model, training_arguments(tmp_path), train_dataset=Labelled(pixels[:8])).train()
    assert result.global_step == 2
    assert torch.isfinite(torch.tensor(result.training_loss))
    factors = [name for name in before if ".up." in name or ".down." in name]
    assert len(factors) == 3 * 3
    now = dict(model.named_parameters())
    assert not any(torch.equal(before[name], now[name]) for name in factors)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "checkpoint-2")
    assert_same_outputs(model.eval(), loaded, pixels)


def test_the_image_classification_pipeline_runs_on_a_saved_folder(pictures, processor, tmp_path):
    model = factored()
    model.companions.append(processor)
    model.save_pretrained(tmp_path)
    classify = pipeline("image-classification", model=str(tmp_path), device="cpu")
    scores = {entry["label"]: entry["score"] for entry in classify(pictures[0], top_k=5)}
    with torch.no_grad():
        expected = model(**processor(pictures[0], return_tensors="pt")).logits.softmax(-1)[0]
    assert scores == pytest.approx({f"LABEL_{i}": float(p) for i, p in enumerate(expected)}, abs=1e-5)


def test_a_compiled_model_has_the_same_logits(pixels):
    torch._dynamo.reset()
    model = factored()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(pixels[:4]).logits, model(pixels[:4]).logits)


def gradients(model, pixels):
    """Gradients by name, and how often the forward pass of one factored layer ran."""
    calls = []
    model.vit.layers[0].mlp.fc1.register_forward_hook(lambda *_: calls.append(1))
    model.train()(pixels[:4], labels=torch.arange(4)).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, len(calls)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(reentrant, pixels):
    expected, once = gradients(factored(), pixels)
    model = factored()
    # The name before transformers 5.23 warns since then.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": reentrant})
    found, twice = gradients(model, pixels)
    assert (once, twice) == (1, 2)
    assert "vit.layers.0.mlp.fc1.down.weight" in found
    assert found.keys() == expected.keys()
    torch.testing.assert_close(found, expected)


@every_head
def test_eager_and_sdpa_attention_agree(dense, auto, pixels, tmp_path):
    factored(dense).save_pretrained(tmp_path)
    models = {kind: auto.from_pretrained(tmp_path, attn_implementation=kind) for kind in ("eager", "sdpa")}
    assert all(model.config._attn_implementation == kind for kind, model in models.items())
    eager, sdpa = (outputs(model, pixels) for model in models.values())
    for a, b in zip(eager, sdpa, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_device_map_auto_loads_the_same_model(pixels, tmp_path):
    model = factored()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path, device_map="auto")
    assert not any(parameter.is_meta for parameter in loaded.parameters())
    assert torch.allclose(outputs(loaded, pixels)[0].cpu(), outputs(model, pixels)[0], rtol=1e-4, atol=1e-4)


def test_layers_can_be_offloaded_to_disk(pixels, tmp_path):
    model = factored()
    model.save_pretrained(tmp_path / "model")
    where = {"vit.embeddings": "cpu", "vit.layers": "disk", "vit.layernorm": "cpu", "classifier": "cpu"}
    loaded = AutoModelForImageClassification.from_pretrained(
        tmp_path / "model", device_map=where, offload_folder=tmp_path / "offload"
    )
    assert loaded.vit.layers[0].mlp.fc1.down.weight.is_meta
    assert_same_outputs(model, loaded, pixels)


def test_a_dtype_can_be_chosen_when_loading(pixels, tmp_path):
    model = factored()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert_same_outputs(model.to(torch.bfloat16), loaded, pixels)


# Wrong configs


@pytest.mark.parametrize("name", ["layers.2.mlp.fc1", "vit.layers.0.mlp.fc3", "nonsense"])
def test_a_layer_that_does_not_exist_is_refused_by_name(name):
    with pytest.raises(ValueError, match=name):
        factored(ranks={name: 4})


@pytest.mark.parametrize(("name", "kind"), [("layers.0.layernorm_before", "LayerNorm"), ("layers.0.mlp", "ViTMLP")])
def test_only_linear_layers_can_be_named(name, kind):
    with pytest.raises(ValueError, match=rf"{name}.*{kind}"):
        factored(ranks={name: 4})


def test_a_layer_cannot_be_named_twice():
    with pytest.raises(ValueError, match="FactoredLinear"):
        factored(ranks={"layers.0.mlp.fc1": 4, "vit.layers.0.mlp.fc1": 8})


def test_weights_of_another_rank_than_the_config_says_are_refused(tmp_path):
    factored().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["compression"]["layers"]["layers.0.mlp.fc1"]["rank"] = 7
    path.write_text(json.dumps(config))
    with pytest.raises(RuntimeError, match="mismatch"):
        AutoModelForImageClassification.from_pretrained(tmp_path)


@pytest.mark.parametrize("rank", [0, -1])
def test_a_rank_below_one_is_refused(rank):
    with pytest.raises(ValueError, match=f"rank of at least 1, not {rank}"):
        factored(ranks={"layers.0.mlp.fc1": rank})


FC1, ATTENTION = "layers.0.mlp.fc1", "layers.0.attention"


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({FC1: {}}, "the shape {}"),
        ({FC1: {"ranks": 4}}, "the shape {'ranks': 4}"),
        ({FC1: {"qk_rank": 4}}, "'layers.0.mlp.fc1', a Linear in FactoredViTModel, the shape {'qk_rank': 4}"),
        ({FC1: 4}, "'layers.0.mlp.fc1'"),
        ({ATTENTION: {"rank": 4}}, "'layers.0.attention', a ViTAttention"),
        ({ATTENTION: {"qk_rank": 4, "rank": 3}}, "'layers.0.attention'"),
        ({"layers.0.mlp": {"qk_rank": 4}}, "'layers.0.mlp', a ViTMLP"),
        ({FC1: {"out_features": 97}}, "'layers.0.mlp.fc1' 97 × 32"),
        ({FC1: {"in_features": 33}}, "'layers.0.mlp.fc1' 96 × 33"),
        ({FC1: {"out_features": -1}}, "'layers.0.mlp.fc1' -1 × 32"),
        ({FC1: {"out_features": 0}}, "'layers.0.mlp.fc1' 0 × 32"),
        ({ATTENTION: {"qk_rank": 0}}, "'layers.0.attention'"),
        ({ATTENTION: {"qk_rank": -3}}, "'layers.0.attention'"),
        ({f"{ATTENTION}.q_proj": {"rank": 4}, ATTENTION: {"qk_rank": 4}}, "'layers.0.attention"),
    ],
)
def test_shapes_that_cannot_be_are_refused_by_the_name_of_the_layer(layers, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        factored(ViTModel, layers=layers)


@pytest.mark.parametrize("form", ["shared down", "narrow values"])
def test_attention_that_is_not_the_known_one_is_refused(form, monkeypatch):
    monkeypatch.setattr(layers_factored, "ATTENTIONS", {})
    with pytest.raises(ValueError, match=r"'layers\.0\.attention.*ViTAttention cannot have"):
        formed(form, ViTModel)


def test_a_factored_layer_is_the_product_of_its_factors():
    layer = FactoredLinear(6, 4, 3)
    inputs = torch.randn(2, 5, 6)
    expected = inputs @ (layer.up.weight @ layer.down.weight).T + layer.up.bias
    torch.testing.assert_close(layer(inputs), expected)
    assert (layer.in_features, layer.out_features, layer.rank) == (6, 4, 3)
    assert "rank=3" in repr(layer)


# Saving


class Broken:
    """A companion that writes a little and then finds the disk full."""

    def save_pretrained(self, folder):
        Path(folder, "half").write_text("half")
        raise OSError("No space left on device")


def break_weights(monkeypatch):
    def save(self, folder, *args, **kwargs):
        Path(folder, "model.safetensors").write_text("half")
        raise OSError("No space left on device")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", save)


@pytest.mark.parametrize("broken", ["weights", "companion"])
def test_a_failure_while_saving_leaves_the_old_checkpoint_as_it_was(broken, pixels, monkeypatch, tmp_path):
    good, other = factored(), factored(intermediate_size=64)
    good.save_pretrained(tmp_path)
    before = files_of(tmp_path)
    if broken == "companion":
        other.companions.append(Broken())
    else:
        break_weights(monkeypatch)
    with pytest.raises(OSError, match="No space left"):
        other.save_pretrained(tmp_path)
    assert files_of(tmp_path) == before
    assert_same_outputs(good, AutoModelForImageClassification.from_pretrained(tmp_path), pixels)


def test_an_interruption_before_the_first_file_is_moved_in_leaves_the_old_checkpoint(monkeypatch, tmp_path):
    def interrupt(source, target):
        raise KeyboardInterrupt

    good = factored()
    good.save_pretrained(tmp_path)
    before = files_of(tmp_path)
    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        factored(intermediate_size=64).save_pretrained(tmp_path)
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("broken", ["weights", "companion"])
def test_a_failure_while_saving_to_a_new_folder_leaves_no_files(broken, monkeypatch, tmp_path):
    model = factored()
    if broken == "companion":
        model.companions.append(Broken())
    else:
        break_weights(monkeypatch)
    with pytest.raises(OSError, match="No space left"):
        model.save_pretrained(tmp_path / "new")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert list((tmp_path / "new").glob("*")) == []


@pytest.mark.parametrize("sizes", [("20KB", "1GB"), ("1GB", "20KB"), ("10KB", "40KB")], ids="-then-".join)
def test_saving_over_a_checkpoint_leaves_no_shards_of_the_old_one(sizes, pixels, tmp_path):
    seeded(type(model := factored()), model.config, seed=1).save_pretrained(tmp_path / "over", max_shard_size=sizes[0])
    model.save_pretrained(tmp_path / "over", max_shard_size=sizes[1])
    model.save_pretrained(tmp_path / "fresh", max_shard_size=sizes[1])
    assert files_of(tmp_path / "over") == files_of(tmp_path / "fresh")
    assert_same_outputs(model, AutoModelForImageClassification.from_pretrained(tmp_path / "over"), pixels)


def test_saving_leaves_other_files_of_the_folder_alone(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    factored().save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_a_companion_with_a_folder_of_its_own_can_be_saved_twice(pixels, tmp_path):
    class Nested:
        def save_pretrained(self, folder):
            Path(folder, "extra").mkdir()
            Path(folder, "extra", "notes.txt").write_text("notes")

    model = factored()
    model.companions.append(Nested())
    model.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "extra" / "notes.txt").read_text() == "notes"
    assert_same_outputs(model, AutoModelForImageClassification.from_pretrained(tmp_path), pixels)


def test_a_path_that_is_a_file_is_refused(tmp_path):
    path = tmp_path / "taken"
    path.write_text("something else")
    with pytest.raises(NotADirectoryError, match="taken"):
        factored().save_pretrained(path)
    assert path.read_text() == "something else"


# Where the package is not imported


@pytest.mark.parametrize(("dense", "auto"), HEADS, ids=[dense.__name__ for dense, _ in HEADS])
def test_a_dense_class_refuses_a_factored_checkpoint(dense, auto, tmp_path):
    factored(dense).save_pretrained(tmp_path)
    with pytest.raises(Exception, match="pip install hf-vitcompress"):
        dense.from_pretrained(tmp_path)
    with pytest.raises(Exception, match="pip install hf-vitcompress"):
        dense.config_class.from_pretrained(tmp_path)


CLEAN_SCRIPT = """
import json, sys, warnings
import torch
from transformers import (
    AutoModel, AutoModelForImageClassification, DeiTForImageClassificationWithTeacher, ViTForImageClassification
)

def error_of(load):
    try:
        load()
    except Exception as error:
        return f"{type(error).__name__}: {error}"

pixels = torch.load("pixels.pt")
results = {
    "dense class": error_of(lambda: ViTForImageClassification.from_pretrained("vit")),
    "dense class with teacher": error_of(lambda: DeiTForImageClassificationWithTeacher.from_pretrained("teacher")),
    "Auto class": error_of(lambda: AutoModelForImageClassification.from_pretrained("vit")),
    "Auto backbone": error_of(lambda: AutoModel.from_pretrained("vit")),
}
tensors = {}
for folder in ("vit", "teacher", "joint", "heads"):
    model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True)
    results[f"class of {folder}"] = type(model).__name__
    tensors[folder] = model(pixels).logits
    model.save_pretrained(f"{folder}-again")
again = AutoModelForImageClassification.from_pretrained("vit-again", trust_remote_code=True)
tensors["vit, saved again"] = again(pixels).logits
tensors["backbone"] = AutoModel.from_pretrained("vit", trust_remote_code=True)(pixels).last_hidden_state
results["package imported"] = any(name.split(".")[0] == "hf_vitcompress" for name in sys.modules)
torch.save(tensors, "tensors.pt")
json.dump(results, open("results.json", "w"))
"""


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """What a fresh interpreter without the package makes of two checkpoints."""
    folder = tmp_path_factory.mktemp("clean")
    models = {
        "vit": factored(),
        "teacher": factored(DeiTForImageClassificationWithTeacher),
        "joint": formed("all at once"),
        "heads": formed("fewer heads of narrow values on a shared down", DeiTForImageClassification),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
    pixels = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    torch.save(pixels, folder / "pixels.pt")
    run_script(CLEAN_SCRIPT, folder, {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(folder / "modules")})
    results = json.loads((folder / "results.json").read_text())
    assert results.pop("package imported") is False
    return folder, models, pixels, results, torch.load(folder / "tensors.pt")


@pytest.mark.parametrize("what", ["dense class", "dense class with teacher"])
def test_without_the_package_a_dense_class_says_what_to_install(clean, what):
    assert "pip install hf-vitcompress" in clean[3][what]


@pytest.mark.parametrize("what", ["Auto class", "Auto backbone"])
def test_without_the_package_an_auto_class_asks_for_trust_remote_code(clean, what):
    assert "trust_remote_code" in clean[3][what]


@pytest.mark.parametrize("name", ["vit", "teacher", "joint", "heads"])
def test_without_the_package_trusted_code_gives_identical_logits(clean, name):
    _, models, pixels, results, tensors = clean
    assert results[f"class of {name}"] == type(models[name]).__name__
    with torch.no_grad():
        assert torch.equal(tensors[name], models[name](pixels).logits)


def test_without_the_package_trusted_code_gives_the_backbone_of_a_headed_checkpoint(clean):
    _, models, pixels, _, tensors = clean
    with torch.no_grad():
        assert torch.equal(tensors["backbone"], models["vit"].vit(pixels).last_hidden_state)


@pytest.mark.parametrize("name", ["vit", "teacher", "joint", "heads"])
def test_what_trusted_code_saves_is_a_checkpoint_like_any_other(clean, name):
    folder, models, pixels, _, tensors = clean
    loaded = AutoModelForImageClassification.from_pretrained(folder / f"{name}-again")
    assert type(loaded) is type(models[name])
    assert_same_outputs(models[name], loaded, pixels)
    assert torch.equal(tensors["vit, saved again"], tensors["vit"])
    for file in TRAVELLING_FILES:
        assert (folder / f"{name}-again" / file).read_bytes() == (folder / name / file).read_bytes()


@pytest.mark.parametrize("name", TRAVELLING_FILES)
def test_the_code_files_need_nothing_but_torch_and_transformers_and_one_another(tmp_path, name):
    path = shutil.copy(REPOSITORY / "hf_vitcompress" / name, tmp_path / name)
    needed = set(transformers.dynamic_module_utils.get_imports(path)) - set(sys.stdlib_module_names)
    assert needed <= {"torch", "transformers"}
    relative = {f"{module}.py" for module in transformers.dynamic_module_utils.get_relative_imports(path)}
    assert relative <= set(TRAVELLING_FILES) - {name}


def test_no_dense_layer_is_left_beside_its_factors():
    model = factored()
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    assert not any(name.endswith(tuple(RANKS)) for name in names)
    assert not any(name.endswith(("fc1.weight", "fc1.bias")) and "layers.0" in name for name in model.state_dict())
