"""Every form that a layer or attention can have: loaded, computed, compiled, trained."""

import json

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    DeiTForImageClassification,
    Trainer,
    ViTForImageClassification,
    ViTModel,
    pipeline,
)

from hf_vitcompress import FactoredLinear
from hf_vitcompress.modeling_factored import factored_model_class
from support.factored import (
    FORMS,
    Labelled,
    assert_same_outputs,
    every_form,
    every_head,
    factored_config,
    formed,
    outputs,
    training_arguments,
)
from support.models import TINY, seeded


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
    for index, weights in enumerate(result.attentions):
        total = 0.0 if form == "removed attention" and index == 1 else 1.0  # it attends to nothing
        torch.testing.assert_close(weights.sum(-1), torch.full(weights.shape[:-1], total))


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
    # What nothing reads any more: the norm before a removed module.
    norms = {
        "removed feed-forward": "vit.layers.0.layernorm_after",
        "removed attention": "vit.layers.1.layernorm_before",
    }
    assert missing == {f"{norms[form]}.{name}" for name in ("weight", "bias") if form in norms}
    still = {name for name, p in model.named_parameters() if name not in missing and not p.grad.any()}
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
