"""State dicts and training of models of which whole modules are removed."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, ViTForImageClassification

from hf_vitcompress import layers_factored
from hf_vitcompress.compensation.distillation import trained_parameters
from hf_vitcompress.layers_factored import Constant, Removed
from hf_vitcompress.model.restructure import adopt, carry_optimizer, follow_layout, parameter_roles
from hf_vitcompress.model.shapes import layout_of
from hf_vitcompress.modeling_factored import compressed_modules
from support.factored import formed
from support.models import seeded, tiny_config

FORMS = ["removed feed-forward", "removed attention"]
REMAINS = {"removed feed-forward": "vit.layers.0.mlp.fc2", "removed attention": "vit.layers.1.attention.o_proj"}
every_form = pytest.mark.parametrize("form", FORMS)


def dense(seed: int = 0) -> PreTrainedModel:
    return seeded(ViTForImageClassification, tiny_config(), seed)


def logits(model: PreTrainedModel, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(pixels[:4]).logits


@every_form
def test_what_is_left_are_no_linear_layers_and_one_bias(form: str) -> None:
    model = formed(form)
    kinds = [type(model.get_submodule(name)) for name in compressed_modules(model)]
    assert kinds == [Removed] * (len(kinds) - 1) + [Constant]
    owned = [name for name in model.state_dict() if name.startswith(tuple(f"{n}." for n in compressed_modules(model)))]
    assert owned == [f"{REMAINS[form]}.bias"]
    assert owned[0] in trained_parameters(model)


@every_form
def test_a_model_takes_the_layout_of_a_state_dict_and_gives_it_up_again(form: str, pixels: Tensor) -> None:
    model, removed, whole = dense(), formed(form), dense(seed=3)
    follow_layout(model)
    model.load_state_dict(removed.state_dict())
    assert torch.equal(logits(model, pixels), logits(removed, pixels))
    model.load_state_dict(whole.state_dict())
    assert torch.equal(logits(model, pixels), logits(whole, pixels))


@every_form
def test_a_part_of_a_state_dict_says_nothing_of_the_rest(form: str, pixels: Tensor) -> None:
    removed = formed(form)
    follow_layout(removed)
    layout = layout_of(removed)
    removed.load_state_dict({"classifier.bias": torch.ones(5)}, strict=False)
    assert layout_of(removed) == layout


@pytest.mark.parametrize("names", ["bias", "mlp.fc2.bias"])
def test_biases_alone_remove_nothing(names: str, pixels: Tensor) -> None:
    model, other = dense(), dense(seed=3)
    follow_layout(model)
    model.load_state_dict({n: t for n, t in other.state_dict().items() if n.endswith(names)}, strict=False)
    assert type(model) is ViTForImageClassification
    assert torch.equal(model.vit.layers[0].mlp.fc2.bias, other.vit.layers[0].mlp.fc2.bias)


@every_form
def test_an_optimizer_goes_on_with_the_bias_that_is_left(form: str, pixels: Tensor) -> None:
    model, removed = dense().train(), formed(form)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(pixels[:4], labels=torch.arange(4)).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    bias, before = model.get_submodule(REMAINS[form]).bias, parameter_roles(model)
    adopt(model, copy.deepcopy(removed))
    carry_optimizer(optimizer, before, model)
    assert torch.equal(logits(model, pixels), logits(removed, pixels))
    assert model.get_submodule(REMAINS[form]).bias is bias
    assert optimizer.param_groups[0]["params"] == list(model.parameters())
    old = bias.detach().clone()
    model.train()(pixels[:4], labels=torch.arange(4)).loss.backward()
    optimizer.step()
    assert not torch.equal(bias, old)
    adopt(model, formed("factored"))
    assert not [module for module in model.modules() if isinstance(module, Removed | Constant)]


def test_a_bias_that_a_checkpoint_lacks_starts_at_zero(tmp_path: Path) -> None:
    model = formed("removed feed-forward")
    name = f"{REMAINS['removed feed-forward']}.bias"
    with torch.no_grad():
        model.get_parameter(name).fill_(3.0)
    state = {own: tensor for own, tensor in model.state_dict().items() if own != name}
    model.save_pretrained(tmp_path, state_dict=state)
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == {name}
    assert torch.equal(loaded.get_parameter(name), torch.zeros(32))
    model.save_pretrained(tmp_path)
    whole = type(model).from_pretrained(tmp_path)
    whole.init_weights()
    assert torch.equal(whole.get_parameter(name), torch.full((32,), 3.0))


@pytest.mark.parametrize("left", ["q_proj", "v_proj", "o_proj"])
def test_a_part_of_attention_is_not_removed(left: str) -> None:
    model = formed("removed attention")
    values = model.config.to_dict()
    layers = {name: shape for name, shape in values["compression"]["layers"].items() if not name.endswith(left)}
    config = type(model.config).from_dict({**values, "compression": {"layers": layers}})
    with pytest.raises(ValueError, match=r"removes a part of 'vit\.layers\.1\.attention'"):
        type(model)(config)


def test_attention_outside_the_table_cannot_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers_factored, "ATTENTIONS", {})
    with pytest.raises(ValueError, match=r"'layers\.1\.attention.*ViTAttention cannot have"):
        formed("removed attention")
