"""From a dense model, a plan and factorizations to a factored model."""

import pytest
import torch
import transformers
from conftest import TINY, seeded
from transformers import (
    AutoModelForImageClassification,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTForMaskedImageModeling,
    DeiTModel,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTModel,
)

from hf_vitcompress import CompressionConfig, FactoredLinear, ViTCompressor
from hf_vitcompress.building import approximated, build_model
from hf_vitcompress.errors import ConfigError
from hf_vitcompress.factorization import Factorization, factorize
from hf_vitcompress.families import find_layers, linear_layer
from hf_vitcompress.planning import CompressionPlan

transformers.utils.logging.disable_progress_bar()

HEADS = [
    ViTModel,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    DeiTModel,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTForMaskedImageModeling,
]


def tiny(dense=ViTForImageClassification, **changes):
    return seeded(dense, dense.config_class(**{**TINY, "encoder_stride": 4, **changes}))


def svd(model, mean=False):
    """Factorizations of every layer by the SVD of its weight; with `mean`, for inputs whose mean is not zero."""
    generator = torch.Generator().manual_seed(4)
    found = {}
    for layer in find_layers(model):
        left, values, right = torch.linalg.svd(
            linear_layer(model, layer.name).weight.detach().double(), full_matrices=False
        )
        errors = torch.cat([values.square().flip(0).cumsum(0).flip(0) / 2, torch.zeros(1)])
        centre = torch.randn(layer.in_features, generator=generator, dtype=torch.float64) if mean else None
        found[layer.name] = Factorization((left * values).float(), right.float(), errors, centre)
    return found


def full_ranks(model):
    return {layer.name: layer.full_rank for layer in find_layers(model)}


def low_ranks(model):
    return {layer.name: 8 if layer.role == "fc1" else 5 for layer in find_layers(model) if layer.role in ("q", "fc1")}


def build(model, ranks, **options):
    return build_model(model, CompressionPlan(ranks), svd(model, **options))


def output(model, pixels):
    with torch.no_grad():
        return model(pixels[:8].to(model.dtype))[0]


def assert_close(found, expected, tolerance=1e-4):
    assert found.shape == expected.shape
    assert (found - expected).norm() < tolerance * expected.norm()


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_unchanged(model, before):
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("dense", HEADS)
def test_full_rank_factors_reproduce_every_kind_of_model(dense, pixels):
    model = tiny(dense)
    small = build(model, full_ranks(model))
    assert type(small).__name__ == f"Factored{dense.__name__}"
    assert sum(isinstance(module, FactoredLinear) for module in small.modules()) == 12
    assert_close(output(small, pixels), output(model, pixels))


@pytest.mark.parametrize("correct_bias", [True, False])
@pytest.mark.parametrize("metric", ["weight", "diagonal", "activation", "row_fisher", "fisher"])
def test_full_rank_factors_of_every_metric_reproduce_the_dense_model(metric, correct_bias, vit, pixels):
    config = CompressionConfig(
        metric=metric, correct_bias=correct_bias, correct_curves=False, num_images=64, fisher_probes=1
    )
    statistics = ViTCompressor(config, progress=False).calibrate(vit, pixels)
    factorizations = {
        layer.name: factorize(layer, linear_layer(vit, layer.name), statistics, config) for layer in find_layers(vit)
    }
    small = build_model(vit, CompressionPlan(full_ranks(vit)), factorizations)
    assert_close(output(small, pixels), output(vit, pixels))


@pytest.mark.parametrize("dense", HEADS)
def test_ranks_and_parameters_are_those_of_the_plan(dense):
    model = tiny(dense)
    ranks = low_ranks(model)
    small = build(model, ranks)
    assert {n: m.rank for n, m in small.named_modules() if isinstance(m, FactoredLinear)} == ranks
    saved = sum(layer.parameters - ranks[layer.name] * layer.parameters_per_rank for layer in find_layers(model, ranks))
    assert small.num_parameters() == model.num_parameters() - saved
    assert small.config.compression == {"layers": {name: {"rank": rank} for name, rank in ranks.items()}}


def test_the_factored_layers_hold_the_truncated_product(vit):
    small = build(vit, low_ranks(vit))
    for name, rank in low_ranks(vit).items():
        weight = linear_layer(vit, name).weight.detach()
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        layer = small.get_submodule(name)
        product = layer.up.weight @ layer.down.weight
        torch.testing.assert_close(product, (left * values)[:, :rank] @ right[:rank], rtol=1e-4, atol=1e-5)
        assert torch.equal(layer.up.bias, linear_layer(vit, name).bias)


def test_the_bias_takes_up_the_mean_of_the_error(vit):
    factorizations = svd(vit, mean=True)
    small = build_model(vit, CompressionPlan(low_ranks(vit)), factorizations)
    for name in low_ranks(vit):
        mean = factorizations[name].mean.float()[None]
        torch.testing.assert_close(small.get_submodule(name)(mean), linear_layer(vit, name)(mean), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_layers_without_a_bias_stay_without(qkv_bias, pixels):
    model = tiny(qkv_bias=qkv_bias)
    small = build(model, full_ranks(model))
    assert (small.vit.layers[0].attention.q_proj.up.bias is not None) == qkv_bias
    assert_close(output(small, pixels), output(model, pixels))


def test_an_empty_plan_copies_the_model(vit, pixels):
    assert torch.equal(output(build(vit, {}), pixels), output(vit, pixels))


@pytest.mark.parametrize("dense", HEADS)
def test_the_result_shares_no_memory_with_the_dense_model(dense):
    model = tiny(dense)
    small = build(model, low_ranks(model))

    def storages(module):
        tensors = [*module.parameters(), *module.buffers()]
        return {tensor.untyped_storage().data_ptr() for tensor in tensors}

    assert not storages(model) & storages(small)
    assert not any(tensor.is_meta for tensor in [*small.parameters(), *small.buffers()])


def test_each_tensor_of_the_result_is_as_large_as_it_says(vit):
    for parameter in build(vit, low_ranks(vit)).parameters():
        assert parameter.untyped_storage().nbytes() == parameter.numel() * parameter.element_size()


@pytest.mark.parametrize("dense", HEADS)
def test_the_dense_model_is_left_as_it_was(dense, pixels):
    model = tiny(dense)
    before, config, logits = snapshot(model), model.config.to_dict(), output(model, pixels)
    small = build(model, low_ranks(model))
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.zero_()
    assert_unchanged(model, before)
    assert model.config.to_dict() == config
    assert not model.training
    assert torch.equal(output(model, pixels), logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_dtype_is_kept(dtype, pixels, tmp_path):
    model = tiny().to(dtype)
    small = build(model, full_ranks(model))
    assert {parameter.dtype for parameter in small.parameters()} == {dtype}
    assert_close(output(small, pixels).float(), output(model, pixels).float(), 1e-4 if dtype == torch.float32 else 0.05)
    small.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert loaded.dtype == dtype
    assert torch.equal(output(loaded, pixels), output(small, pixels))


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_kept(training, vit):
    vit.train(training)
    small = build(vit, low_ranks(vit))
    assert {module.training for module in small.modules()} == {training}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_attention_implementation_is_kept(attention):
    model = ViTForImageClassification._from_config(tiny().config, attn_implementation=attention)
    assert build(model, low_ranks(model)).config._attn_implementation == attention


def test_the_labels_of_the_config_are_kept(vit):
    vit.config.id2label = {i: f"class {i}" for i in range(5)}
    vit.config.label2id = {f"class {i}": i for i in range(5)}
    config = build(vit, low_ranks(vit)).config
    assert (config.id2label, config.label2id) == (vit.config.id2label, vit.config.label2id)


def test_the_result_can_be_trained_even_if_the_dense_model_was_frozen(vit):
    vit.requires_grad_(False)
    assert all(parameter.requires_grad for parameter in build(vit, low_ranks(vit)).parameters())
    assert not any(parameter.requires_grad for parameter in vit.parameters())


@pytest.mark.parametrize("dense", [ViTModel, DeiTModel])
@pytest.mark.parametrize("pooler", [True, False])
@pytest.mark.parametrize("mask", [True, False])
def test_options_of_the_constructor_are_kept(dense, pooler, mask, pixels):
    model = dense(dense.config_class(**TINY), add_pooling_layer=pooler, use_mask_token=mask).eval()
    small = build(model, full_ranks(model))
    assert (small.pooler is not None) == pooler
    assert (small.embeddings.mask_token is not None) == mask
    assert_close(output(small, pixels), output(model, pixels))


def test_a_saved_result_comes_back_identical(vit, pixels, tmp_path):
    small = build(vit, low_ranks(vit), mean=True)
    small.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(loaded) is type(small)
    assert torch.equal(output(loaded, pixels), output(small, pixels))


@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("dense", HEADS)
def test_an_approximated_model_computes_what_the_built_one_does(dense, mean, pixels):
    model = tiny(dense)
    factorizations, ranks = svd(model, mean), low_ranks(model)
    small = build_model(model, CompressionPlan(ranks), factorizations)
    with approximated(model, ranks, factorizations):
        found = output(model, pixels)
    assert_close(found, output(small, pixels))
    assert not torch.allclose(found, output(model, pixels), rtol=1e-2)


@pytest.mark.parametrize("mean", [True, False])
def test_the_weights_are_restored_exactly(mean, vit, pixels):
    before, logits = snapshot(vit), output(vit, pixels)
    pointers = {name: parameter.data_ptr() for name, parameter in vit.named_parameters()}
    with approximated(vit, low_ranks(vit), svd(vit, mean)):
        assert not torch.equal(output(vit, pixels), logits)
    assert_unchanged(vit, before)
    assert {name: parameter.data_ptr() for name, parameter in vit.named_parameters()} == pointers
    assert torch.equal(output(vit, pixels), logits)


def test_the_weights_are_restored_after_an_exception_in_the_block(vit):
    before = snapshot(vit)
    with pytest.raises(RuntimeError, match="in the block"), approximated(vit, low_ranks(vit), svd(vit, mean=True)):
        raise RuntimeError("in the block")
    assert_unchanged(vit, before)


@pytest.mark.parametrize("wrong", ["vit.layers.1.mlp", "vit.layers.1.mlp.fc1"])
def test_the_weights_are_restored_after_an_exception_on_the_way_in(wrong, vit):
    before = snapshot(vit)
    factorizations = svd(vit, mean=True)
    del factorizations["vit.layers.1.mlp.fc1"]
    with (
        pytest.raises((ConfigError, KeyError)),
        approximated(vit, {"vit.layers.0.mlp.fc1": 4, wrong: 4}, factorizations),
    ):
        pytest.fail("must not get here")
    assert_unchanged(vit, before)
