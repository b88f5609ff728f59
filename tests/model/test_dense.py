"""A compressed model and its dense form compute the same; a state dict tells its layout."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import DeiTConfig, DeiTForImageClassification, PreTrainedModel, ViTForImageClassification, ViTModel

from hf_vitcompress.errors import UnsupportedModelError
from hf_vitcompress.model.assembly import empty_model, is_factored
from hf_vitcompress.model.dense import dense_state_dict, to_dense
from hf_vitcompress.model.shapes import infer_layers, layout_of, shapes_of
from support.models import TINY, seeded, tiny_config
from support.students import METHODS, compressed, lively, logits, random_images

State = dict[str, Tensor]
BLOCK = "vit.layers.0"
HEADS, HEAD_DIM, WIDTH, HIDDEN = 4, 8, 32, 96


def narrow_hidden_layer(state: State) -> dict[str, dict[str, int]]:
    """56 of 96 hidden units are left."""
    state[f"{BLOCK}.mlp.fc1.weight"] = state[f"{BLOCK}.mlp.fc1.weight"][:56]
    state[f"{BLOCK}.mlp.fc1.bias"] = state[f"{BLOCK}.mlp.fc1.bias"][:56]
    state[f"{BLOCK}.mlp.fc2.weight"] = state[f"{BLOCK}.mlp.fc2.weight"][:, :56]
    return {f"{BLOCK}.mlp.fc1": {"out_features": 56}, f"{BLOCK}.mlp.fc2": {"in_features": 56}}


def narrow_factored_hidden_layer(state: State) -> dict[str, dict[str, int]]:
    narrow_hidden_layer(state)
    for child, rank in (("fc1", 5), ("fc2", 6)):
        weight, bias = (state.pop(f"{BLOCK}.mlp.{child}.{key}") for key in ("weight", "bias"))
        state[f"{BLOCK}.mlp.{child}.up.weight"] = weight[:, :rank].clone()
        state[f"{BLOCK}.mlp.{child}.down.weight"] = torch.randn(rank, weight.shape[1])
        state[f"{BLOCK}.mlp.{child}.up.bias"] = bias
    return {f"{BLOCK}.mlp.fc1": {"rank": 5, "out_features": 56}, f"{BLOCK}.mlp.fc2": {"rank": 6, "in_features": 56}}


def shared_query_key(state: State) -> dict[str, dict[str, int]]:
    attention = f"{BLOCK}.attention"
    state[f"{attention}.qk_down.weight"] = torch.randn(6, WIDTH)
    for child in ("q_proj", "k_proj"):
        state[f"{attention}.{child}.weight"] = torch.randn(WIDTH, 6)
    return {attention: {"qk_rank": 6}}


def narrow_values(state: State) -> dict[str, dict[str, int]]:
    """The first 3 of each head's 8 values are left."""
    attention = f"{BLOCK}.attention"
    kept = torch.arange(HEADS * HEAD_DIM).view(HEADS, HEAD_DIM)[:, :3].flatten()
    state[f"{attention}.v_proj.weight"] = state[f"{attention}.v_proj.weight"][kept]
    state[f"{attention}.v_proj.bias"] = state[f"{attention}.v_proj.bias"][kept]
    state[f"{attention}.o_proj.weight"] = state[f"{attention}.o_proj.weight"][:, kept]
    return {f"{attention}.v_proj": {"out_features": 12}, f"{attention}.o_proj": {"in_features": 12}}


def fewer_heads(state: State) -> dict[str, dict[str, int]]:
    """The first 3 of 4 heads are left."""
    attention, size = f"{BLOCK}.attention", 3 * HEAD_DIM
    for child in ("q_proj", "k_proj", "v_proj"):
        state[f"{attention}.{child}.weight"] = state[f"{attention}.{child}.weight"][:size]
        state[f"{attention}.{child}.bias"] = state[f"{attention}.{child}.bias"][:size]
    state[f"{attention}.o_proj.weight"] = state[f"{attention}.o_proj.weight"][:, :size]
    layers = {f"{attention}.{child}": {"out_features": size} for child in ("q_proj", "k_proj", "v_proj")}
    return {**layers, f"{attention}.o_proj": {"in_features": size}}


def fewer_heads_of_narrow_values(state: State) -> dict[str, dict[str, int]]:
    attention, size = f"{BLOCK}.attention", 3 * 3
    narrow_values(state)
    for child in ("q_proj", "k_proj"):
        for key in ("weight", "bias"):
            state[f"{attention}.{child}.{key}"] = state[f"{attention}.{child}.{key}"][: 3 * HEAD_DIM]
    for key in ("weight", "bias"):
        state[f"{attention}.v_proj.{key}"] = state[f"{attention}.v_proj.{key}"][:size]
    state[f"{attention}.o_proj.weight"] = state[f"{attention}.o_proj.weight"][:, :size]
    layers = {f"{attention}.{child}": {"out_features": 3 * HEAD_DIM} for child in ("q_proj", "k_proj")}
    return {**layers, f"{attention}.v_proj": {"out_features": size}, f"{attention}.o_proj": {"in_features": size}}


FORMS = [
    narrow_hidden_layer,
    narrow_factored_hidden_layer,
    shared_query_key,
    narrow_values,
    fewer_heads,
    fewer_heads_of_narrow_values,
]

form = pytest.mark.parametrize("prune", FORMS)


def pruned(prune: Callable[[State], object]) -> tuple[State, object]:
    state = {name: tensor.clone() for name, tensor in lively().state_dict().items()}
    return state, prune(state)


@form
def test_a_state_dict_tells_its_layout(prune: Callable[[State], object]) -> None:
    state, layers = pruned(prune)
    assert infer_layers(shapes_of(state), lively()) == layers


@form
def test_every_layout_fits_into_the_dense_model(prune: Callable[[State], object]) -> None:
    state, _ = pruned(prune)
    dense = dense_state_dict(state, lively())
    assert shapes_of(dense) == shapes_of(lively().state_dict())
    assert all(tensor.data_ptr() != state[name].data_ptr() for name, tensor in dense.items() if name in state)


def attention_of(state: State, hidden: Tensor, head_dim: int, value_dim: int) -> Tensor:
    """`hidden (tokens, width)` through a block's attention, as its definition says."""
    attention = f"{BLOCK}.attention"

    def project(child: str, size: int) -> Tensor:
        weight, bias = (state[f"{attention}.{child}.{key}"] for key in ("weight", "bias"))
        return (hidden @ weight.T + bias).unflatten(-1, (-1, size)).transpose(0, 1)

    query, key, value = project("q_proj", head_dim), project("k_proj", head_dim), project("v_proj", value_dim)
    mixed = (query @ key.transpose(1, 2) * head_dim**-0.5).softmax(-1) @ value
    return mixed.transpose(0, 1).flatten(1) @ state[f"{attention}.o_proj.weight"].T


@pytest.mark.parametrize(
    ("prune", "value_dim"), [(narrow_values, 3), (fewer_heads, HEAD_DIM), (fewer_heads_of_narrow_values, 3)]
)
def test_pruned_attention_computes_the_same_when_dense(prune: Callable[[State], object], value_dim: int) -> None:
    state, _ = pruned(prune)
    hidden = torch.randn(17, WIDTH)
    small = attention_of(state, hidden, HEAD_DIM, value_dim)
    torch.testing.assert_close(attention_of(dense_state_dict(state, lively()), hidden, HEAD_DIM, HEAD_DIM), small)


def test_pruned_hidden_units_are_zero_when_dense() -> None:
    state, _ = pruned(narrow_hidden_layer)
    dense = dense_state_dict(state, lively())
    assert not dense[f"{BLOCK}.mlp.fc1.weight"][56:].any()
    assert not dense[f"{BLOCK}.mlp.fc1.bias"][56:].any()
    assert not dense[f"{BLOCK}.mlp.fc2.weight"][:, 56:].any()
    assert torch.equal(dense[f"{BLOCK}.mlp.fc2.weight"][:, :56], state[f"{BLOCK}.mlp.fc2.weight"])


def test_products_are_multiplied_out() -> None:
    state, _ = pruned(shared_query_key)
    dense = dense_state_dict(state, lively())
    for child in ("q_proj", "k_proj"):
        weight, down = state[f"{BLOCK}.attention.{child}.weight"], state[f"{BLOCK}.attention.qk_down.weight"]
        torch.testing.assert_close(dense[f"{BLOCK}.attention.{child}.weight"], weight @ down)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model_class", [ViTForImageClassification, DeiTForImageClassification])
def test_a_compressed_model_and_its_dense_form_agree(model_class: type[PreTrainedModel], method: str) -> None:
    config = tiny_config() if model_class is ViTForImageClassification else DeiTConfig(**TINY)
    case = compressed(lively(model_class, config), **METHODS[method])
    small = case.student().train()
    small.config.name_or_path = "somewhere"
    dense = to_dense(small)
    assert type(dense) is model_class
    assert type(dense.config) is type(config)
    assert dense.config.name_or_path == "somewhere"
    assert not hasattr(dense.config, "compression")
    assert dense.training
    assert dense.num_parameters() == case.dense.num_parameters()
    pixels = random_images(16)
    torch.testing.assert_close(logits(dense, pixels), logits(small, pixels), rtol=1e-4, atol=1e-4)


def test_a_compressed_model_gives_its_dense_form() -> None:
    small = compressed(**METHODS["default"]).student()
    dense = small.to_dense()
    assert type(dense) is ViTForImageClassification
    pixels = random_images(4)
    torch.testing.assert_close(logits(dense, pixels), logits(small, pixels), rtol=1e-4, atol=1e-4)


def test_the_dense_form_of_a_dense_model_is_a_copy() -> None:
    model = lively()
    copy = to_dense(model)
    pixels = random_images(8)
    assert torch.equal(logits(copy, pixels), logits(model, pixels))
    before = logits(model, pixels)
    with torch.no_grad():
        copy.vit.layers[0].mlp.fc1.weight.zero_()
    assert torch.equal(logits(model, pixels), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_dense_form_keeps_the_dtype(dtype: torch.dtype) -> None:
    small = compressed().student().to(dtype)
    assert {parameter.dtype for parameter in to_dense(small).parameters()} == {dtype}


def test_a_model_without_pooler_has_none_when_dense() -> None:
    model = seeded(lambda config: ViTModel(config, add_pooling_layer=False), tiny_config())  # type: ignore[arg-type]
    assert shapes_of(to_dense(model).state_dict()) == shapes_of(model.state_dict())
    small = empty_model(model, {"layers.0.mlp.fc1": {"rank": 3}})
    assert is_factored(small)
    assert small.pooler is None
    assert empty_model(small, {}).pooler is None


@pytest.mark.parametrize("method", METHODS)
def test_a_model_tells_its_layout(method: str) -> None:
    case = compressed(**METHODS[method])
    assert case.plan.layers
    assert layout_of(case.student()) == case.plan.layers
    assert layout_of(case.dense) == {}


def without_up(state: State) -> None:
    narrow_factored_hidden_layer(state)
    del state[f"{BLOCK}.mlp.fc1.up.weight"]


def wider(state: State) -> None:
    state[f"{BLOCK}.mlp.fc1.weight"] = torch.zeros(HIDDEN + 1, WIDTH)


def half_a_head(state: State) -> None:
    for child, rows in (("q_proj", 12), ("v_proj", 16)):
        state[f"{BLOCK}.attention.{child}.weight"] = torch.zeros(rows, WIDTH)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_up, "'vit.layers.0.mlp.fc1' do not fit: up has the shape None"),
        (wider, "'vit.layers.0.mlp.fc1' has out_features=97 in the state dict and only 96"),
        (half_a_head, "'vit.layers.0.attention' has 12 query rows and 16 value rows, which is no whole number"),
    ],
)
def test_a_state_dict_of_no_layout_is_refused(damage: Callable[[State], None], message: str) -> None:
    state, _ = pruned(damage)
    with pytest.raises(UnsupportedModelError, match=message):
        infer_layers(shapes_of(state), lively())


@pytest.mark.parametrize(("name", "shape"), [("vit.layernorm.weight", (WIDTH + 1,)), ("classifier.weight", (WIDTH,))])
def test_a_tensor_that_does_not_fit_is_named(name: str, shape: tuple[int, ...]) -> None:
    state = lively().state_dict()
    with pytest.raises(UnsupportedModelError, match=f"'{name}' has the shape"):
        dense_state_dict({**state, name: torch.zeros(shape)}, lively())


def test_a_missing_tensor_is_named() -> None:
    state = lively().state_dict()
    del state["vit.layernorm.weight"]
    with pytest.raises(UnsupportedModelError, match=r"no tensor 'vit\.layernorm\.weight'"):
        dense_state_dict(state, lively())
