"""From a dense model, a plan and factorizations to a factored model."""

import pytest
import torch
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

from hf_vitcompress import CompressionConfig, FactoredLinear
from hf_vitcompress.architectures.layers import block_names, find_layers, linear_layer
from hf_vitcompress.architectures.subject import Subject
from hf_vitcompress.evaluation.costs import count_costs
from hf_vitcompress.images.sources import open_images
from hf_vitcompress.modeling_factored import compressed_modules
from hf_vitcompress.planning.building import build_model
from hf_vitcompress.planning.plan import CompressionPlan
from hf_vitcompress.planning.planner import make_planner
from hf_vitcompress.statistics.calibration import calibrate
from support.models import TINY, seeded
from support.stages import quiet
from support.students import LOW_RANK, METHODS, random_images

HEADS = [
    ViTModel,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    DeiTModel,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTForMaskedImageModeling,
]
# By form: settings, and a plan with the names of blocks replaced by their numbers.
PRUNED = {f"0.attention.{letter}_proj": {"out_features": 16} for letter in "qkv"}
FORMS = {
    "low rank": (LOW_RANK, {"0.attention.q_proj": {"rank": 5}, "0.mlp.fc1": {"rank": 8}, "1.mlp.fc1": {"rank": 8}}),
    "joint": (
        {},
        {
            "0.attention": {"qk_rank": 6},
            "1.attention.v_proj": {"out_features": 20},
            "1.attention.o_proj": {"in_features": 20, "rank": 5},
            "0.mlp.fc1": {"out_features": 56, "rank": 7},
            "0.mlp.fc2": {"in_features": 56, "rank": 6},
            "1.mlp.fc1": {"rank": 9},
        },
    ),
    "pruned": (
        METHODS["pruned"],
        {
            **PRUNED,
            "0.attention.o_proj": {"in_features": 16},
            "1.mlp.fc1": {"out_features": 40},
            "1.mlp.fc2": {"in_features": 40},
        },
    ),
}
every_form = pytest.mark.parametrize("form", FORMS)


def tiny(dense=ViTForImageClassification, **changes):
    return seeded(dense, dense.config_class(**{**TINY, "encoder_stride": 4, **changes}))


def prepared(model, images=4, **settings):
    """Of the weights' own SVD, unless the settings say otherwise."""
    values = {"metric": "weight", "correct_bias": False, "precision": "float32", **settings}
    config, layers = CompressionConfig(**values), find_layers(model)
    statistics = calibrate(Subject.alone(model), layers, open_images(random_images(images)), quiet(config))
    return make_planner(Subject.alone(model), statistics, quiet(config))


def full_ranks(model):
    return {layer.name: {"rank": layer.full_rank} for layer in find_layers(model)}


def low_ranks(model):
    return planned(model, "low rank")


def planned(model, form):
    blocks = block_names(model)
    return {f"{blocks[int(name[0])]}{name[1:]}": shape for name, shape in FORMS[form][1].items()}


def build(model, layers, **settings):
    groups = prepared(model, **{**LOW_RANK, **settings}).groups
    return build_model(model, CompressionPlan(layers), groups)


def build_form(model, form, **options):
    """The plan of a form, and the parts that it is of."""
    groups = prepared(model, **FORMS[form][0]).groups
    return build_model(model, CompressionPlan(planned(model, form)), groups, **options)


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


def full_shapes(model, attention):
    """Everything factored and nothing lost."""
    layers = full_ranks(model)
    if attention == "low_rank":
        return layers
    shared = {name: shape for name, shape in layers.items() if not name.endswith(("q_proj", "k_proj"))}
    return shared | {f"{block}.attention": {"qk_rank": 32} for block in block_names(model)}


@pytest.mark.parametrize("correct_bias", [True, False])
@pytest.mark.parametrize("metric", ["weight", "activation", "row_fisher", "fisher"])
@pytest.mark.parametrize(("attention", "mlp"), [("low_rank", "low_rank"), ("joint", "auto")])
def test_full_rank_factors_of_every_metric_reproduce_the_dense_model(metric, correct_bias, attention, mlp, vit, pixels):
    layers = full_shapes(vit, attention)
    settings = {"metric": metric, "correct_bias": correct_bias, "attention": attention, "mlp": mlp, "fisher_probes": 1}
    small = build(vit, layers, images=64, **settings)
    assert small.config.compression == {"layers": layers}
    assert_close(output(small, pixels), output(vit, pixels))


@pytest.mark.parametrize("repair", [True, False])
@pytest.mark.parametrize("correct_bias", [True, False])
@pytest.mark.parametrize("metric", ["weight", "activation", "row_fisher", "fisher"])
def test_full_widths_reproduce_the_dense_model_in_every_metric(metric, correct_bias, repair, vit, pixels):
    blocks = block_names(vit)
    values = {f"{block}.attention.v_proj": {"out_features": 32} for block in blocks}
    values |= {f"{block}.attention.o_proj": {"in_features": 32} for block in blocks}
    hidden = {f"{block}.mlp.fc1": {"out_features": 96} for block in blocks}
    hidden |= {f"{block}.mlp.fc2": {"in_features": 96} for block in blocks}
    settings = {"metric": metric, "correct_bias": correct_bias, "repair": repair, "fisher_probes": 1, "images": 64}
    joint = build(vit, values | hidden, attention="joint", mlp="auto", **settings)
    heads = {f"{block}.attention.{letter}_proj": {"out_features": 32} for block in blocks for letter in "qkv"}
    pruned = build(vit, heads | values | hidden, **METHODS["pruned"], **settings)
    for small in (joint, pruned):
        assert_close(output(small, pixels), output(vit, pixels))


@pytest.mark.parametrize("dense", HEADS)
def test_ranks_and_parameters_are_those_of_the_plan(dense):
    model = tiny(dense)
    layers = low_ranks(model)
    ranks = {name: shape["rank"] for name, shape in layers.items()}
    small = build(model, layers)
    assert {n: m.rank for n, m in small.named_modules() if isinstance(m, FactoredLinear)} == ranks
    saved = sum(layer.parameters - ranks[layer.name] * layer.parameters_per_rank for layer in find_layers(model, ranks))
    assert small.num_parameters() == model.num_parameters() - saved
    assert small.config.compression == {"layers": layers}


@every_form
@pytest.mark.parametrize("dense", HEADS)
def test_shapes_and_costs_are_those_of_the_plan(dense, form):
    model = tiny(dense)
    layers, ready = planned(model, form), prepared(model, **FORMS[form][0])
    plan = CompressionPlan(layers)
    small = build_model(model, plan, ready.groups)
    assert small.config.compression == {"layers": layers}
    for name, shape in layers.items():
        module = small.get_submodule(name)
        found = {key: module.qk_down.out_features if key == "qk_rank" else getattr(module, key) for key in shape}
        assert found == shape
    pairs = [(group.choice({}), group.choice(plan.shapes_of(group))) for group in ready.groups]
    costs = count_costs(small)
    saved = sum(full.parameters - chosen.parameters for full, chosen in pairs)
    assert costs.parameters == ready.costs.parameters - saved
    assert costs.macs == ready.costs.macs - sum(full.macs - chosen.macs for full, chosen in pairs)


def test_the_factored_layers_hold_the_truncated_product(vit):
    small = build(vit, low_ranks(vit))
    for name, shape in low_ranks(vit).items():
        rank, weight = shape["rank"], linear_layer(vit, name).weight.detach()
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        layer = small.get_submodule(name)
        product = layer.up.weight @ layer.down.weight
        torch.testing.assert_close(product, (left * values)[:, :rank] @ right[:rank], rtol=1e-4, atol=1e-5)
        assert torch.equal(layer.up.bias, linear_layer(vit, name).bias)


def test_the_bias_takes_up_the_mean_of_the_error(vit):
    ready = prepared(vit, **LOW_RANK, correct_bias=True)
    small = build_model(vit, CompressionPlan(low_ranks(vit)), ready.groups)
    for layer in find_layers(vit, low_ranks(vit)):
        name, mean = layer.name, ready.groups[0].statistics.inputs[layer.input_name].mean.float()[None]
        torch.testing.assert_close(small.get_submodule(name)(mean), linear_layer(vit, name)(mean), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_layers_without_a_bias_stay_without(qkv_bias, pixels):
    model = tiny(qkv_bias=qkv_bias)
    small = build(model, full_ranks(model))
    assert (small.vit.layers[0].attention.q_proj.up.bias is not None) == qkv_bias
    assert_close(output(small, pixels), output(model, pixels))


def test_an_empty_plan_copies_the_model(vit, pixels):
    assert torch.equal(output(build(vit, {}), pixels), output(vit, pixels))


@every_form
@pytest.mark.parametrize("dense", HEADS)
def test_the_result_shares_no_memory_with_the_dense_model(form, dense):
    model = tiny(dense)
    small = build_form(model, form)

    def storages(module):
        tensors = [*module.parameters(), *module.buffers()]
        return {tensor.untyped_storage().data_ptr() for tensor in tensors}

    assert not storages(model) & storages(small)
    assert not any(tensor.is_meta for tensor in [*small.parameters(), *small.buffers()])


@every_form
def test_each_tensor_of_the_result_is_as_large_as_it_says(form, vit):
    for parameter in build_form(vit, form).parameters():
        assert parameter.untyped_storage().nbytes() == parameter.numel() * parameter.element_size()


@every_form
@pytest.mark.parametrize("dense", HEADS)
def test_the_dense_model_is_left_as_it_was(form, dense, pixels):
    model = tiny(dense)
    before, config, logits = snapshot(model), model.config.to_dict(), output(model, pixels)
    small = build_form(model, form)
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
@every_form
def test_the_mode_is_kept(form, training, vit):
    vit.train(training)
    small = build_form(vit, form)
    assert {module.training for module in small.modules()} == {training}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@every_form
def test_the_attention_implementation_is_kept(form, attention):
    model = ViTForImageClassification._from_config(tiny().config, attn_implementation=attention)
    assert build_form(model, form).config._attn_implementation == attention


def test_the_labels_of_the_config_are_kept(vit):
    vit.config.id2label = {i: f"class {i}" for i in range(5)}
    vit.config.label2id = {f"class {i}": i for i in range(5)}
    config = build(vit, low_ranks(vit)).config
    assert (config.id2label, config.label2id) == (vit.config.id2label, vit.config.label2id)


@every_form
def test_the_result_can_be_trained_even_if_the_dense_model_was_frozen(form, vit):
    vit.requires_grad_(False)
    assert all(parameter.requires_grad for parameter in build_form(vit, form).parameters())
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


@every_form
def test_a_saved_result_comes_back_identical(form, vit, pixels, tmp_path):
    small = build_form(vit, form)
    small.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(loaded) is type(small)
    assert torch.equal(output(loaded, pixels), output(small, pixels))


@every_form
@pytest.mark.parametrize("dense", HEADS)
def test_a_model_only_to_be_looked_at_computes_the_same_and_copies_only_what_is_new(form, dense, pixels):
    model = tiny(dense)
    before, logits = snapshot(model), output(model, pixels)
    small, trial = build_form(model, form), build_form(model, form, share_memory=True)
    found = output(trial, pixels)
    assert torch.equal(found, output(small, pixels))
    assert not torch.allclose(found, logits, rtol=1e-2)
    assert_unchanged(model, before)
    own, new = dict(model.named_parameters()), compressed_modules(small)
    for name, parameter in trial.named_parameters():
        shared = name in own and parameter.data_ptr() == own[name].data_ptr()
        assert shared is not name.startswith(tuple(f"{module}." for module in new)), name
