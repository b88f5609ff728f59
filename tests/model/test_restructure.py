"""A model that changes its structure in place, and who goes on with it."""

import copy
import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModelForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    PreTrainedModel,
    ViTForImageClassification,
    ViTModel,
)
from transformers.core_model_loading import Chunk

from hf_vitcompress import CompressionConfig
from hf_vitcompress.errors import UnsupportedModelError
from hf_vitcompress.importance.gates import attach_gates, follow_gates
from hf_vitcompress.model.assembly import is_factored
from hf_vitcompress.model.restructure import adopt, carry_optimizer, follow_layout, parameter_roles, take_layout
from hf_vitcompress.model.shapes import layout_of
from support.models import seeded, tiny_config
from support.students import METHODS, compressed, lively, logits, random_images

PIXELS = random_images(16)
FC1 = "vit.layers.0.mlp.fc1"
RANKS = {FC1: 10, "vit.layers.1.attention.k_proj": 4}
FEWER = {FC1: 10, "vit.layers.1.attention.k_proj": 3, "vit.layers.1.mlp.fc2": 12}


def small_model(ranks: dict[str, int] | None = None, seed: int = 0) -> PreTrainedModel:
    return compressed(lively(seed=seed), ranks=ranks or RANKS).student()


def groups_of(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[list[str]]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [[names[parameter] for parameter in group["params"]] for group in optimizer.param_groups]


def new_optimizer(model: nn.Module) -> torch.optim.AdamW:
    """Two groups, as a Trainer makes them."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    plain = ("bias", "layernorm")
    decayed = [parameter for name, parameter in named if not any(part in name for part in plain)]
    others = [parameter for name, parameter in named if any(part in name for part in plain)]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-2)


def step(model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> None:
    model(pixel_values=PIXELS, labels=torch.arange(16) % 5).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


# ---- structure


def test_a_model_becomes_another() -> None:
    model, source = lively(seed=3).train(), small_model()
    expected, config, companion = logits(source, PIXELS), source.config, object()
    source.companions = [companion]
    adopt(model, source)
    assert type(model).__name__ == "FactoredViTForImageClassification"
    assert model.config is config
    assert model.vit.layers[0].mlp.config is config
    assert model.companions == [companion]
    assert all(module.training for module in model.modules())
    assert torch.equal(logits(model, PIXELS), expected)


def test_a_model_becomes_dense_again() -> None:
    model, dense = small_model(), lively(seed=3)
    expected = logits(dense, PIXELS)
    adopt(model, dense)
    assert type(model) is ViTForImageClassification
    assert not hasattr(model, "companions")
    assert torch.equal(logits(model, PIXELS), expected)


def test_what_stays_remains_the_same_object() -> None:
    model = lively()
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    adopt(model, small_model())
    for name, module in model.named_modules():
        factored = name.startswith(tuple(f"{layer}." for layer in RANKS)) or name in RANKS
        assert (modules.get(name) is module) is not factored, name
    for name, parameter in model.named_parameters():
        old = parameters.get(name.replace(".up.bias", ".bias"))
        assert (old is parameter) is not name.endswith(("down.weight", "up.weight")), name


def test_factors_in_another_basis_are_new_objects() -> None:
    model = small_model()
    before = dict(model.named_parameters())
    same = small_model()
    adopt(model, same)
    assert {n: p for n, p in model.named_parameters() if before[n] is not p} == {}
    adopt(model, small_model(seed=1))
    fresh = {n for n, p in model.named_parameters() if before[n] is not p}
    assert fresh == {f"{layer}.{factor}.weight" for layer in RANKS for factor in ("up", "down")}


def test_what_was_set_on_the_model_remains() -> None:
    model, calls = lively(), []
    model.register_forward_pre_hook(lambda *_: calls.append("hook"))
    forward = model.forward
    model.forward = lambda *args, **kwargs: calls.append("forward") or forward(*args, **kwargs)
    model.vit.layers[0].gradient_checkpointing = True
    adopt(model, small_model())
    logits(model, PIXELS)
    assert calls == ["hook", "forward"]
    assert model.vit.layers[0].gradient_checkpointing


def test_the_config_of_other_models_stays() -> None:
    config = tiny_config()
    model, other = lively(config=config), lively(config=config)
    adopt(model, small_model())
    assert other.config is config
    assert type(config).__name__ == "ViTConfig"


def test_frozen_layers_stay_frozen() -> None:
    model = lively()
    model.vit.requires_grad_(False)
    adopt(model, small_model())
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == {
        "classifier.weight",
        "classifier.bias",
    }


def test_parameters_come_in_the_order_of_a_new_model() -> None:
    model, source = lively(), small_model()
    names = [name for name, _ in source.named_parameters()]
    adopt(model, source)
    assert [name for name, _ in model.named_parameters()] == names


def test_another_class_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="ViTModel cannot become a FactoredViTForImageClassification"):
        adopt(seeded(ViTModel, tiny_config()), small_model())


def test_an_adopted_model_is_saved_and_loaded(tmp_path: Path) -> None:
    model = lively()
    adopt(model, small_model())
    model.save_pretrained(tmp_path)
    reloaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert torch.equal(logits(reloaded, PIXELS), logits(model, PIXELS))


# ---- the optimizer


def test_the_optimizer_goes_on() -> None:
    model = lively()
    optimizer = new_optimizer(model)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5**epoch)
    step(model, optimizer)
    schedule.step()
    states = {id(parameter): state for parameter, state in optimizer.state.items()}
    before, bias = parameter_roles(model), model.get_submodule(FC1).bias
    adopt(model, small_model())
    carry_optimizer(optimizer, before, model)
    assert groups_of(optimizer, model) == groups_of(new_optimizer(model), model)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert set(optimizer.state) == {p for p in model.parameters() if id(p) in states}
    assert all(optimizer.state[p] is states[id(p)] for p in optimizer.state)
    assert model.get_submodule(FC1).up.bias is bias
    assert bias in optimizer.state
    step(model, optimizer)
    schedule.step()
    assert schedule.get_last_lr() == [0.0025, 0.0025]
    assert set(optimizer.state) == set(model.parameters())
    assert optimizer.state[bias]["step"] == 2
    assert optimizer.state[model.get_submodule(FC1).up.weight]["step"] == 1


def test_a_saved_optimizer_fits_a_new_one() -> None:
    model = lively()
    optimizer = new_optimizer(model)
    step(model, optimizer)
    for ranks in (RANKS, FEWER, RANKS):
        before = parameter_roles(model)
        adopt(model, small_model(ranks))
        carry_optimizer(optimizer, before, model)
        step(model, optimizer)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other = small_model(RANKS)
    other.load_state_dict(model.state_dict())
    fresh = new_optimizer(other)
    fresh.load_state_dict(torch.load(file))
    for one, two in ((model, optimizer), (other, fresh)):
        step(one, two)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_frozen_and_foreign_parameters_stay_where_they_were() -> None:
    model, foreign = lively(), nn.Parameter(torch.zeros(2))
    model.vit.layers[0].requires_grad_(False)
    optimizer = new_optimizer(model)
    optimizer.param_groups[0]["params"].append(foreign)
    before = parameter_roles(model)
    adopt(model, small_model())
    carry_optimizer(optimizer, before, model)
    expected = new_optimizer(model)
    assert optimizer.param_groups[0]["params"].pop() is foreign
    assert groups_of(optimizer, model) == groups_of(expected, model)


# ---- pruned and shared layers

V, O = "vit.layers.1.attention.v_proj", "vit.layers.1.attention.o_proj"  # noqa: E741
FC2 = "vit.layers.0.mlp.fc2"
NARROW = {FC1: {"out_features": 40}, FC2: {"in_features": 40}, V: {"out_features": 12}, O: {"in_features": 12}}


@pytest.mark.parametrize("first", METHODS)
@pytest.mark.parametrize("then", METHODS)
def test_a_model_and_its_optimizer_go_from_one_method_to_another(first: str, then: str) -> None:
    model = lively()
    optimizer = new_optimizer(model)
    for method, ratio in ((first, 0.7), (then, 0.5)):
        step(model, optimizer)
        source = compressed(keep_ratio=ratio, **METHODS[method]).student()
        expected, before = logits(source, PIXELS), parameter_roles(model)
        names = [name for name, _ in source.named_parameters()]
        adopt(model, source)
        carry_optimizer(optimizer, before, model)
        assert torch.equal(logits(model, PIXELS), expected)
        assert [name for name, _ in model.named_parameters()] == names
        assert layout_of(model) == model.config.compression["layers"]
        assert groups_of(optimizer, model) == groups_of(new_optimizer(model), model)
    step(model, optimizer)
    assert set(optimizer.state) == {parameter for parameter in model.parameters() if parameter.requires_grad}


def test_layers_of_other_features_are_new_objects() -> None:
    """As many neurons and values as before, but other ones."""
    model = compressed(layers=NARROW).student()
    before = dict(model.named_parameters())
    adopt(model, compressed(layers=NARROW).student())
    assert {name for name, parameter in model.named_parameters() if before[name] is not parameter} == set()
    adopt(model, compressed(lively(seed=1), layers=NARROW).student())
    fresh = {name for name, parameter in model.named_parameters() if before[name] is not parameter}
    assert fresh == {f"{name}.weight" for name in NARROW} | {f"{FC1}.bias", f"{V}.bias"}


@pytest.mark.parametrize("end", METHODS)
@pytest.mark.parametrize("start", [None, "default", "pruned"])
def test_a_model_takes_the_layout_of_every_method(start: str | None, end: str) -> None:
    model = lively() if start is None else compressed(**METHODS[start]).student()
    source = compressed(lively(seed=5), **METHODS[end]).student()
    follow_layout(model)
    assert model.load_state_dict(source.state_dict(), strict=False).missing_keys == []
    assert layout_of(model) == layout_of(source) == model.config.compression["layers"]
    assert torch.equal(logits(model, PIXELS), logits(source, PIXELS))


# ---- loading


@pytest.mark.parametrize("start", [{}, RANKS, FEWER])
@pytest.mark.parametrize("end", [{}, RANKS, FEWER])
def test_a_model_takes_the_layout_of_what_it_loads(start: dict[str, int], end: dict[str, int]) -> None:
    model = small_model(start) if start else lively()
    source = small_model(end, seed=5) if end else lively(seed=5)
    follow_layout(model)
    follow_layout(model)
    parameters = dict(model.named_parameters())
    assert model.load_state_dict(source.state_dict(), strict=False).missing_keys == []
    assert type(model) is type(source)
    assert layout_of(model) == {name: {"rank": rank} for name, rank in end.items()}
    assert (getattr(model.config, "compression", None) or {"layers": {}})["layers"] == layout_of(model)
    assert torch.equal(logits(model, PIXELS), logits(source, PIXELS))
    assert (parameters.keys() == dict(model.named_parameters()).keys()) is (start.keys() == end.keys())


@pytest.mark.parametrize("compress", [True, False])
def test_saved_weights_are_found_again(tmp_path: Path, compress: bool) -> None:
    """`save_pretrained` writes dense weights under older names, which `load_state_dict` alone would ignore."""
    source = small_model(seed=5) if compress else lively(seed=5)
    source.save_pretrained(tmp_path)
    model = lively()
    follow_layout(model)
    result = model.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
    assert result.missing_keys == result.unexpected_keys == []
    assert torch.equal(logits(model, PIXELS), logits(source, PIXELS))


def gated(seed: int) -> PreTrainedModel:
    config = Dinov2Config(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=4,
        mlp_ratio=4,
        use_swiglu_ffn=True,
    )
    return seeded(Dinov2ForImageClassification, config, seed)


@pytest.mark.parametrize("follow", [follow_layout, follow_gates])
def test_old_tensors_that_are_split_now_are_split(follow: Callable[[nn.Module], None], tmp_path: Path) -> None:
    source, model = gated(1), gated(2)
    gate = attach_gates(source, CompressionConfig(mlp="prune"))["dinov2.encoder.layer.1.mlp.down_proj"]
    with torch.no_grad():
        gate.mul_(0.5)
    source.save_pretrained(tmp_path, save_original_format=True)
    state = load_file(tmp_path / "model.safetensors")
    assert "dinov2.encoder.layer.0.mlp.weights_in.weight" in state
    outer = nn.ModuleDict({"inner": model})
    follow(model)
    if follow is follow_layout:
        follow_gates(model)
    found = outer.load_state_dict({f"inner.{name}": tensor for name, tensor in state.items()}, strict=False)
    assert found.missing_keys == found.unexpected_keys == []
    values = model.state_dict()
    assert all(torch.equal(tensor, values[name]) for name, tensor in source.state_dict().items())


def test_an_old_tensor_that_cannot_be_converted_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = gated(2)
    state = {"dinov2.encoder.layer.0.mlp.weights_in.weight": torch.zeros(4, 4)}

    def refuse(*_: object, **__: object) -> None:
        raise ValueError("an odd number")

    monkeypatch.setattr(Chunk, "convert", refuse)
    follow_layout(model)
    with pytest.raises(UnsupportedModelError, match=r"layer\.0\.mlp\.weights_in\.weight.*from_pretrained"):
        model.load_state_dict(state, strict=False)


def test_a_part_of_a_state_dict_changes_only_its_layers() -> None:
    model, source = small_model(), small_model(FEWER, seed=5)
    follow_layout(model)
    part = {name: tensor for name, tensor in source.state_dict().items() if name.startswith("vit.layers.1.")}
    fc1 = model.get_submodule(FC1).up.weight.clone()
    model.load_state_dict(part, strict=False)
    assert layout_of(model) == {name: {"rank": rank} for name, rank in FEWER.items()}
    assert torch.equal(model.get_submodule(FC1).up.weight, fc1)


def test_a_model_inside_another_module_takes_the_layout_too() -> None:
    model, source = lively(), small_model()
    follow_layout(model)
    outer = nn.ModuleDict({"inner": model})
    outer.load_state_dict({f"inner.{name}": tensor for name, tensor in source.state_dict().items()})
    assert is_factored(model)
    assert torch.equal(logits(model, PIXELS), logits(source, PIXELS))


def test_a_copy_follows_too() -> None:
    model, source = lively(), small_model()
    follow_layout(model)
    twin = copy.deepcopy(model)
    twin.load_state_dict(source.state_dict())
    assert is_factored(twin)
    assert not is_factored(model)


def test_a_layout_without_values_is_zero_where_it_is_new() -> None:
    model = lively()
    model.get_submodule(FC1).weight.requires_grad_(False)
    bias = model.get_submodule(FC1).bias
    take_layout(model, {FC1: {"rank": 4}})
    fc1 = model.get_submodule(FC1)
    assert not fc1.up.weight.any()
    assert not fc1.up.weight.requires_grad
    assert fc1.up.bias is bias
    assert model.companions == []
