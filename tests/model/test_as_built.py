"""Models that were changed after they were built: taken where their config builds them, refused by name elsewhere."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from transformers import PreTrainedModel, ViTForImageClassification

from hf_vitcompress.errors import UnsupportedModelError
from hf_vitcompress.model.as_built import check_as_built
from support.models import seeded, tiny_config

Change = Callable[[PreTrainedModel], object]


@pytest.fixture
def model() -> PreTrainedModel:
    return seeded(ViTForImageClassification, tiny_config())


def new_head(model: PreTrainedModel) -> None:
    model.classifier = nn.Linear(32, 7)


def narrower(model: PreTrainedModel) -> None:
    for layer in model.vit.layers:
        layer.mlp.fc1, layer.mlp.fc2 = nn.Linear(32, 64), nn.Linear(64, 32)


def narrower_with_new_head(model: PreTrainedModel) -> None:
    narrower(model)
    new_head(model)


def one_narrower(model: PreTrainedModel) -> None:
    model.vit.layers[1].mlp.fc1, model.vit.layers[1].mlp.fc2 = nn.Linear(32, 64), nn.Linear(64, 32)


def fewer_blocks(model: PreTrainedModel) -> None:
    model.vit.layers = model.vit.layers[:1]


def without_biases(model: PreTrainedModel) -> None:
    for layer in model.vit.layers:
        for name in ("q_proj", "k_proj", "v_proj"):
            getattr(layer.attention, name).bias = None


def other_activation(model: PreTrainedModel) -> None:
    for layer in model.vit.layers:
        layer.mlp.activation_fn = nn.ReLU()


def other_epsilon(model: PreTrainedModel) -> None:
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-3


def larger_images(model: PreTrainedModel) -> None:
    model.vit.embeddings.position_embeddings = nn.Parameter(torch.zeros(1, 65, 32))


def grey_images(model: PreTrainedModel) -> None:
    model.vit.embeddings.patch_embeddings.projection = nn.Conv2d(1, 32, 4, 4)


def other_head_counts(model: PreTrainedModel) -> None:
    model.config.num_attention_heads = 2


def no_head(model: PreTrainedModel) -> None:
    model.classifier = nn.Identity()


@pytest.mark.parametrize(
    ("change", "what", "settings"),
    [
        (new_head, "classifier.weight is (7, 32), the config builds (5, 32)", {"num_labels": 7}),
        (no_head, "classifier is Identity, the config builds Linear", {"num_labels": 0}),
        (narrower, "vit.layers.0.mlp.fc1.weight is (64, 32), the config builds (96, 32)", {"intermediate_size": 64}),
        (narrower_with_new_head, "(64, 32)", {"intermediate_size": 64, "num_labels": 7}),
        (fewer_blocks, "it has no vit.layers.1.", {"num_hidden_layers": 1}),
        (without_biases, "it has no vit.layers.0.attention.q_proj.bias", {"qkv_bias": False}),
        (other_activation, "activation_fn is ReLU, the config builds GELU", {"hidden_act": "relu"}),
        (other_epsilon, "has eps=0.001, the config builds eps=1e-12", {"layer_norm_eps": 0.001}),
        (larger_images, "position_embeddings is (1, 65, 32), the config builds (1, 17, 32)", {"image_size": 32}),
        (grey_images, "projection.weight is (32, 1, 4, 4), the config builds (32, 3, 4, 4)", {"num_channels": 1}),
        (other_head_counts, "vit.layers.0.attention has head_dim=8", {"num_attention_heads": 4}),
    ],
)
def test_the_setting_that_builds_the_model_is_named_and_is_enough(
    model: PreTrainedModel, change: Change, what: str, settings: dict[str, object]
) -> None:
    change(model)
    with pytest.raises(UnsupportedModelError) as refused:
        check_as_built(model)
    named = " and ".join(f"model.config.{name}={value!r}" for name, value in settings.items())
    assert what in str(refused.value)
    assert str(refused.value).endswith(f"Set {named}.")
    for name, value in settings.items():
        setattr(model.config, name, value)
    check_as_built(model)


def sequential_head(model: PreTrainedModel) -> None:
    model.classifier = nn.Sequential(nn.Dropout(), nn.Linear(32, 5))


def gated(model: PreTrainedModel) -> None:
    model.vit.layers[0].mlp = nn.Bilinear(32, 32, 32)


def second_head(model: PreTrainedModel) -> None:
    model.my_head = nn.Linear(32, 3)


def other_stride(model: PreTrainedModel) -> None:
    model.vit.embeddings.patch_embeddings.projection.stride = (2, 2)


def other_temperature(model: PreTrainedModel) -> None:
    model.vit.layers[0].attention.scaling = 1.0


@pytest.mark.parametrize(
    ("change", "what", "remedy"),
    [
        (sequential_head, "classifier is Sequential, the config builds Linear", "Compress what is inside, model.vit,"),
        (gated, "vit.layers.0.mlp is Bilinear, the config builds ViTMLP", "register_family"),
        (one_narrower, "vit.layers.1.mlp.fc1.weight is (64, 32), the config builds (96, 32)", "as it was before"),
        (second_head, "the config builds no my_head", "(del model.my_head)"),
        (other_stride, "projection has stride=(2, 2), the config builds stride=(4, 4)", "as it was before"),
        (other_temperature, "vit.layers.0.attention has scaling=1.0, the config", "as it was before"),
    ],
)
def test_what_no_config_builds_is_refused_by_name(
    model: PreTrainedModel, change: Change, what: str, remedy: str
) -> None:
    change(model)
    with pytest.raises(UnsupportedModelError) as refused:
        check_as_built(model)
    assert what in str(refused.value)
    assert "No setting of the config builds that" in str(refused.value)
    assert remedy in str(refused.value)


def masked(model: PreTrainedModel) -> None:
    prune.l1_unstructured(model.vit.layers[0].mlp.fc1, "weight", 0.3)


def normed(model: PreTrainedModel) -> None:
    parametrizations.weight_norm(model.classifier)


def spectral(model: PreTrainedModel) -> None:
    nn.utils.spectral_norm(model.classifier)


def adapted(model: PreTrainedModel) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    inject_adapter_in_model(LoraConfig(target_modules=["q_proj"]), model)


def compiled_inside(model: PreTrainedModel) -> None:
    model.vit = torch.compile(model.vit, backend="eager")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (masked, r"fc1 is masked: call torch.nn.utils.prune.remove\(module, 'weight'\)"),
        (normed, r"classifier is parametrized: call .*remove_parametrizations\(module, 'weight'\)"),
        (spectral, r"classifier has a spectral norm: call torch.nn.utils.remove_spectral_norm"),
        (adapted, r"q_proj is that of an adapter: give what `merge_and_unload`"),
        (compiled_inside, r"vit is compiled: give the model as it was before torch.compile"),
    ],
)
def test_what_a_tool_left_behind_is_named_with_what_undoes_it(
    model: PreTrainedModel, change: Change, sentence: str
) -> None:
    change(model)
    with pytest.raises(UnsupportedModelError, match=sentence):
        check_as_built(model)


def test_masks_and_norms_that_are_removed_leave_a_model_as_any_other(model: PreTrainedModel) -> None:
    masked(model)
    prune.remove(model.vit.layers[0].mlp.fc1, "weight")
    normed(model)
    nn.utils.parametrize.remove_parametrizations(model.classifier, "weight")
    check_as_built(model)


@pytest.mark.parametrize("how", ["block", "weight"])
def test_a_parameter_in_two_places_is_refused(model: PreTrainedModel, how: str) -> None:
    first, second = model.vit.layers
    if how == "block":
        model.vit.layers[1] = first
    else:
        second.mlp.fc1.weight = first.mlp.fc1.weight
    with pytest.raises(UnsupportedModelError, match=r"one parameter in several places \(vit.layers.0.*copy.deepcopy"):
        check_as_built(model)


def test_what_changes_nothing_that_a_checkpoint_holds_is_left(model: PreTrainedModel) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    model.vit.layers[0].register_forward_hook(lambda *_: None)
    model.requires_grad_(False).half()
    check_as_built(model)


def test_a_config_that_builds_nothing_is_named(model: PreTrainedModel) -> None:
    model.config.hidden_act = "sine"
    with pytest.raises(
        UnsupportedModelError, match=r"config of this ViTForImageClassification builds no model: .*sine"
    ):
        check_as_built(model)
