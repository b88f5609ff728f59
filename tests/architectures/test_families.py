"""Which layers of a model are compressed, and what is known about each of them."""

import pytest
from transformers import (
    BertConfig,
    BertModel,
    ConvNextConfig,
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTForMaskedImageModeling,
    DeiTModel,
    PreTrainedConfig,
    ResNetConfig,
    ResNetForImageClassification,
    SegformerConfig,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTModel,
)

from hf_vitcompress.architectures.families import FAMILIES, row_of, supported, supported_model_types
from hf_vitcompress.architectures.layers import LayerInfo, find_layers, linear_layer
from hf_vitcompress.configuration_factored import factored_config_class
from hf_vitcompress.errors import ConfigError, UnsupportedModelError
from hf_vitcompress.modeling_factored import factored_model_class
from support.models import TINY, seeded, tiny_config

ROLES = ["q", "k", "v", "o", "fc1", "fc2"]
MODELS = [
    (ViTModel, ""),
    (ViTForImageClassification, "vit."),
    (ViTForMaskedImageModeling, "vit."),
    (DeiTModel, ""),
    (DeiTForImageClassification, "deit."),
    (DeiTForImageClassificationWithTeacher, "deit."),
    (DeiTForMaskedImageModeling, "deit."),
]


def tiny(dense, **changes):
    return seeded(dense, dense.config_class(**{**TINY, "encoder_stride": 4, **changes}))


@pytest.mark.parametrize(("dense", "prefix"), MODELS, ids=[dense.__name__ for dense, _ in MODELS])
def test_every_head_has_six_layers_in_each_block(dense, prefix):
    layers = find_layers(tiny(dense, num_hidden_layers=3))
    paths = ["attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj", "mlp.fc1", "mlp.fc2"]
    assert [layer.name for layer in layers] == [f"{prefix}layers.{i}.{path}" for i in range(3) for path in paths]
    assert [layer.role for layer in layers] == ROLES * 3
    assert [layer.block for layer in layers] == [i for i in range(3) for _ in ROLES]


def test_shapes_are_those_of_the_weights(vit):
    for layer in find_layers(vit):
        assert tuple(linear_layer(vit, layer.name).weight.shape) == (layer.out_features, layer.in_features)
    shapes = {layer.role: (layer.out_features, layer.in_features) for layer in find_layers(vit)}
    assert shapes == {**dict.fromkeys("qkvo", (32, 32)), "fc1": (96, 32), "fc2": (32, 96)}


def test_blocks_with_two_digits_are_found():
    layers = find_layers(tiny(ViTForImageClassification, num_hidden_layers=11))
    assert len(layers) == 66
    assert layers[-1].block == 10


def test_query_key_and_value_share_their_input_and_nothing_else_does(vit):
    layers = find_layers(vit)
    inputs = {(layer.block, layer.role): layer.input_name for layer in layers}
    for block in range(2):
        assert inputs[block, "q"] == inputs[block, "k"] == inputs[block, "v"]
    assert len(set(inputs.values())) == 2 * 4


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["fc1"], ["0.mlp.fc1", "1.mlp.fc1"]),
        (["mlp.fc?"], ["0.mlp.fc1", "0.mlp.fc2", "1.mlp.fc1", "1.mlp.fc2"]),
        (["layers.1.mlp.*"], ["1.mlp.fc1", "1.mlp.fc2"]),
        (["vit.layers.0.mlp.fc2"], ["0.mlp.fc2"]),
        (["fc2", "layers.0.attention.q_proj"], ["0.attention.q_proj", "0.mlp.fc2", "1.mlp.fc2"]),
        (["*.0.*_proj"], [f"0.attention.{letter}_proj" for letter in "qkvo"]),
        (["mlp"], ["0.mlp.fc1", "0.mlp.fc2", "1.mlp.fc1", "1.mlp.fc2"]),
        (["layers.1.mlp"], ["1.mlp.fc1", "1.mlp.fc2"]),
        (["vit.layers.0.attention"], [f"0.attention.{letter}_proj" for letter in "qkvo"]),
        (["layers.[1-9].m?p"], ["1.mlp.fc1", "1.mlp.fc2"]),
        (["*1"], ["0.mlp.fc1", "1.mlp.fc1"]),
    ],
)
def test_target_modules_choose_layers_in_the_order_of_the_model(vit, patterns, expected):
    assert [layer.name for layer in find_layers(vit, patterns)] == [f"vit.layers.{name}" for name in expected]


def test_skip_modules_leave_layers_out(vit):
    names = [layer.name for layer in find_layers(vit, skip_modules=["layers.0.*", "fc2"])]
    assert names == [layer.name for layer in find_layers(vit, skip_modules=["layers.0", "fc2"])]
    assert names == [*(f"vit.layers.1.attention.{letter}_proj" for letter in "qkvo"), "vit.layers.1.mlp.fc1"]


def test_skip_modules_win_over_target_modules(vit):
    names = [layer.name for layer in find_layers(vit, ["fc1", "fc2"], ["layers.0.*"])]
    assert names == ["vit.layers.1.mlp.fc1", "vit.layers.1.mlp.fc2"]


@pytest.mark.parametrize("setting", ["target_modules", "skip_modules"])
@pytest.mark.parametrize("pattern", ["fc3", "layers.2.*", "layers.2", "c1", "classifier", "ml"])
def test_a_pattern_that_matches_no_layer_is_refused(vit, setting, pattern):
    with pytest.raises(ConfigError, match=rf"{setting}.*matches no layer") as caught:
        find_layers(vit, **{setting: ["fc1", pattern]})
    assert repr(pattern) in str(caught.value)
    assert "vit.layers.0.attention.q_proj" in str(caught.value)


@pytest.mark.parametrize(
    "settings", [{"skip_modules": ["*"]}, {"target_modules": []}, {"target_modules": ["fc1"], "skip_modules": ["fc1"]}]
)
def test_patterns_that_leave_nothing_are_refused(vit, settings):
    with pytest.raises(ConfigError, match="leave none of the 12 layers"):
        find_layers(vit, **settings)


def test_the_module_of_a_layer_must_be_linear(vit):
    with pytest.raises(ConfigError, match=r"layers\.0\.mlp.*ViTMLP"):
        linear_layer(vit, "vit.layers.0.mlp")


def test_a_row_belongs_to_dense_and_compressed_models_alike():
    model = tiny(ViTModel)
    small = factored_model_class(ViTModel)(factored_config_class("vit")(**TINY))
    assert row_of(model) is row_of(small) is FAMILIES["vit"]


def resnet():
    return ResNetForImageClassification(ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1]))


def bert():
    return BertModel(BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2))


@pytest.mark.parametrize("make", [resnet, bert])
def test_another_architecture_is_refused_with_the_supported_ones(make):
    model = make()
    with pytest.raises(UnsupportedModelError, match="Supported model types: beit, clip") as caught:
        find_layers(model)
    assert type(model).__name__ in str(caught.value)
    assert repr(model.config.model_type) in str(caught.value)


def test_a_class_that_has_no_factored_form_is_refused_with_those_that_have():
    class ViTForSomethingElse(ViTForImageClassification):
        pass

    with pytest.raises(UnsupportedModelError, match=r"ViTForSomethingElse.*ViTForImageClassification"):
        find_layers(ViTForSomethingElse(tiny_config()))


@pytest.mark.parametrize("dense", [ViTForImageClassification, DeiTForImageClassification])
def test_a_compressed_model_is_not_compressed_again(dense):
    model_type = dense.config_class.model_type
    config = factored_config_class(model_type)(**TINY, compression={"layers": {"layers.0.mlp.fc1": {"rank": 4}}})
    with pytest.raises(UnsupportedModelError, match="compressed already"):
        find_layers(factored_model_class(dense)(config))


@pytest.mark.parametrize(
    ("out_features", "in_features", "break_even"),
    [(32, 32, 16), (96, 32, 24), (32, 96, 24), (384, 384, 192), (1536, 384, 308), (5, 7, 3), (1, 1, 1)],
)
def test_the_break_even_rank_is_the_first_that_saves_nothing(out_features, in_features, break_even):
    layer = LayerInfo("x", "fc1", 0, "x", in_features, out_features)
    assert layer.break_even_rank == break_even
    assert layer.parameters == out_features * in_features
    assert layer.break_even_rank * layer.parameters_per_rank >= layer.parameters
    assert (layer.break_even_rank - 1) * layer.parameters_per_rank < layer.parameters
    assert layer.full_rank == min(out_features, in_features)


def test_deit_configs_are_found_by_their_own_type():
    assert len(find_layers(tiny(DeiTForImageClassification))) == 12
    assert DeiTConfig().model_type in supported_model_types()


@pytest.mark.parametrize(
    ("config", "registrable"),
    [(ResNetConfig(), False), (ConvNextConfig(), False), (BertConfig(), False), (SegformerConfig(), True)],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_only_a_vision_transformer_is_told_how_to_be_registered(config: PreTrainedConfig, registrable: bool) -> None:
    sentence = supported(config)
    assert ("register_family" in sentence) == registrable
    assert ("It is no vision transformer" in sentence) == (not registrable)
    assert "Supported model types: beit, clip" in sentence
