"""An architecture from outside: one call, and it is compressed, saved, loaded and multiplied out like any other."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from hf_vitcompress import (
    CompressionConfig,
    ViTCompressor,
    configuration_factored,
    layers_factored,
    modeling_factored,
    to_dense,
)
from hf_vitcompress.architectures.families import FAMILIES, register_family
from hf_vitcompress.architectures.layers import find_layers, may_prune_heads
from hf_vitcompress.architectures.registration import register_configs
from hf_vitcompress.configuration_factored import factored_config_class
from hf_vitcompress.errors import ConfigError, UnsupportedModelError
from hf_vitcompress.layers_factored import ATTENTIONS
from hf_vitcompress.modeling_factored import factored_model_class
from support import flat, outside
from support.models import seeded
from support.processes import environment


@pytest.fixture(scope="module", autouse=True)
def registered() -> object:
    families, attentions = dict(FAMILIES), dict(ATTENTIONS)
    outside.register()
    yield
    for table, before in ((FAMILIES, families), (ATTENTIONS, attentions)):
        for name in table.keys() - before.keys():
            del table[name]


@pytest.fixture
def model() -> PreTrainedModel:
    config = outside.OutsideConfig(num_labels=5, num_hidden_layers=4)
    return seeded(outside.OutsideForImageClassification, config)


def compressed(model: PreTrainedModel, pixels: Tensor, **settings: object) -> PreTrainedModel:
    values = {"keep_ratio": 0.6, "rank_multiple": 1, "precision": "float32", "measuring_images": 0, **settings}
    return ViTCompressor(CompressionConfig(**values), progress=False).compress(model, pixels)


def answers(model: PreTrainedModel, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(pixel_values=pixels[:8]).logits


def test_its_layers_have_roles(model: PreTrainedModel) -> None:
    roles = [[layer.role for layer in find_layers(model) if layer.block == block] for block in range(4)]
    assert roles == [["qkv", "o", "fc1", "fc2"]] * 2 + [["q", "k", "v", "o", "fc1", "fc2"]] * 2
    assert may_prune_heads(model, "trunk.blocks.2.attn")
    assert not may_prune_heads(model, "trunk.blocks.0.attn")


@pytest.mark.parametrize(
    "way", [{}, {"attention": "low_rank", "mlp": "low_rank"}, {"attention": "none", "mlp": "prune"}]
)
def test_it_comes_back_through_the_auto_classes(
    way: dict[str, str], model: PreTrainedModel, pixels: Tensor, tmp_path: Path
) -> None:
    small = compressed(model, pixels, **{"keep_ratio": 0.8, **way})
    small.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(loaded).__name__ == "FactoredOutsideForImageClassification"
    assert torch.equal(answers(loaded, pixels), answers(small, pixels))
    assert type(AutoModel.from_pretrained(tmp_path)).__name__ == "FactoredOutsideModel"
    wide = to_dense(loaded)
    assert type(wide) is outside.OutsideForImageClassification
    torch.testing.assert_close(answers(wide, pixels), answers(small, pixels), rtol=1e-4, atol=1e-4)


def test_the_first_config_of_a_type_registers_its_models() -> None:
    """Importing the package registers configs alone, because models take seconds to import."""
    _, model = same_name("Late", "late")
    register_configs("late")
    config_class = factored_config_class("late")
    assert AutoConfig.for_model("vitcompress_late").__class__ is config_class
    assert AutoModel._model_mapping[config_class] is factored_model_class(model)


def test_before_the_first_config_no_model_is_made() -> None:
    _, model = same_name("Later", "later")
    register_configs("later")
    assert factored_config_class("later") not in AutoModel._model_mapping
    assert model not in configuration_factored.FACTORED


def test_joint_attention_needs_the_names_and_takes_them(model: PreTrainedModel, pixels: Tensor) -> None:
    small = compressed(model, pixels)
    assert {key for shape in small.config.compression["layers"].values() for key in shape} >= {"qk_rank"}
    plans = compressed(model, pixels, attention="low_rank").config.compression["layers"]
    assert any(name.endswith("qkv") for name in plans)


def test_all_heads_of_fused_attention_stay(model: PreTrainedModel, pixels: Tensor) -> None:
    with pytest.raises(ConfigError, match=r"FusedAttention|qkv"):
        compressed(model, pixels, attention="prune")


def test_a_type_that_transformers_does_not_know_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"AutoConfig\.register\('never_heard_of'"):
        register_family("never_heard_of", outside.OUTSIDE)


def test_without_the_call_it_is_refused_and_the_call_named() -> None:
    code = (
        "from support import outside; from transformers import AutoConfig, AutoModel\n"
        "AutoConfig.register('outside', outside.OutsideConfig)\n"
        "AutoModel.register(outside.OutsideConfig, outside.OutsideModel)\n"
        "from hf_vitcompress.architectures.layers import find_layers\n"
        "find_layers(outside.OutsideModel(outside.OutsideConfig()))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
    assert done.returncode != 0
    assert UnsupportedModelError.__name__ in done.stderr
    assert "register_family" in done.stderr


# ---- names that others have already


def same_name(name: str, model_type: str, **body: object) -> tuple[type[PreTrainedConfig], type[PreTrainedModel]]:
    """A config and a model class of an architecture from outside, called `name` and `name` without "Config"."""
    own = {"model_type": model_type, "__annotations__": {"initializer_range": float}, "initializer_range": 0.02}
    config = type(f"{name}Config", (PreTrainedConfig,), own)
    model = type(f"{name}Model", (outside.OutsideModel,), {"config_class": config, **body})
    AutoConfig.register(model_type, config, exist_ok=True)
    AutoModel.register(config, model, exist_ok=True)
    return config, model


def test_a_class_with_the_name_of_one_of_transformers_is_refused_and_nothing_registered() -> None:
    same_name("ViT", "usual_name")
    with pytest.raises(ConfigError, match=r"test_registration\.ViTConfig and transformers.*FactoredViTConfig.*Rename"):
        register_family("usual_name", outside.OUTSIDE)
    assert "usual_name" not in FAMILIES
    assert transformers.ViTConfig in factored_config_class("vit").__mro__


def test_a_model_class_with_such_a_name_is_refused_before_any_work() -> None:
    _, model = same_name("Own", "own_name")
    model.__name__ = model.__qualname__ = "ViTModel"
    with pytest.raises(ConfigError, match=r"test_registration\.ViTModel and transformers.*Rename the class ViTModel"):
        register_family("own_name", outside.OUTSIDE)
    with pytest.raises(ValueError, match="Rename the class ViTModel"):
        factored_model_class(model)


def test_two_classes_of_one_name_from_outside_are_not_taken_for_each_other() -> None:
    _, first = same_name("Twin", "twin", __module__="one")
    _, second = same_name("Twin", "other_twin", __module__="two")
    factored_model_class(first)
    with pytest.raises(ValueError, match=r"two\.TwinModel and one\.TwinModel"):
        factored_model_class(second)


def test_a_class_that_is_defined_again_takes_the_place_of_the_former() -> None:
    for _ in range(2):
        config, model = same_name("Again", "again")
        assert issubclass(factored_model_class(model), model)
        assert issubclass(factored_config_class("again"), config)
        assert modeling_factored.FactoredAgainModel is factored_model_class(model)


def test_attention_of_a_usual_name_is_not_that_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = type("ViTAttention", (outside.PlainAttention,), {"__module__": outside.__name__})
    monkeypatch.setattr(outside, "ViTAttention", usual, raising=False)
    monkeypatch.setitem(ATTENTIONS, f"{outside.__name__}.ViTAttention", outside.NAMES)
    ours = layers_factored.attention_class(usual, "layer")
    assert issubclass(ours, usual)
    assert issubclass(modeling_factored.FactoredViTAttention, transformers.models.vit.modeling_vit.ViTAttention)
    assert pickle.loads(pickle.dumps(ours)) is ours
    monkeypatch.delitem(configuration_factored.FACTORED, usual)
    monkeypatch.delitem(configuration_factored.PUBLIC, ours.__name__)
    assert issubclass(getattr(modeling_factored, ours.__name__), usual)  # as in another process


def test_factored_attention_from_outside_can_be_pickled(model: PreTrainedModel, pixels: Tensor) -> None:
    small = compressed(model, pixels, attention="joint")
    assert torch.equal(answers(pickle.loads(pickle.dumps(small)), pixels), answers(small, pixels))


def test_a_config_without_any_number_is_refused_before_any_work() -> None:
    class NumberlessConfig(PreTrainedConfig):
        model_type = "numberless"

    class NumberlessModel(outside.OutsideModel):
        config_class = NumberlessConfig

    AutoConfig.register("numberless", NumberlessConfig, exist_ok=True)
    AutoModel.register(NumberlessConfig, NumberlessModel, exist_ok=True)
    register_family("numberless", outside.OUTSIDE)
    values = {name: getattr(outside.OutsideConfig(), name) for name in outside.OutsideConfig.__annotations__}
    with pytest.raises(UnsupportedModelError, match=r"NumberlessConfig declares no number.*initializer_range: float"):
        find_layers(NumberlessModel(NumberlessConfig(**values)))


# ---- layers side by side in a block


@pytest.fixture
def flat_model() -> PreTrainedModel:
    flat.register()
    return seeded(flat.FlatModel, flat.FlatConfig())


def test_no_input_has_the_name_of_a_layer(flat_model: PreTrainedModel) -> None:
    layers = find_layers(flat_model)
    assert not {layer.input_name for layer in layers} & {layer.name for layer in layers}
    assert len({layer.input_name for layer in layers}) == 2 * 4
    assert {layer.block_name for layer in layers} == {"blocks.0", "blocks.1"}


@pytest.mark.parametrize("way", [{"mlp": "prune", "attention": "low_rank"}, {"attention": "none"}, {"mlp": "low_rank"}])
def test_feed_forwards_beside_the_projections_are_compressed(
    way: dict[str, str], flat_model: PreTrainedModel, pixels: Tensor, tmp_path: Path
) -> None:
    small = compressed(flat_model, pixels, **{"keep_ratio": 0.8, **way})
    small.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        ours, theirs, dense = (m(pixel_values=pixels[:8]).last_hidden_state for m in (small, loaded, flat_model))
    assert torch.equal(ours, theirs)
    assert (ours - dense).norm() < 0.6 * dense.norm()


def test_values_of_an_unknown_attention_cannot_be_narrower(flat_model: PreTrainedModel) -> None:
    layers = {"blocks.0.v_proj": {"out_features": 16}, "blocks.0.o": {"in_features": 16}}
    config = factored_config_class("flat").from_dict({**flat_model.config.to_dict(), "compression": {"layers": layers}})
    with pytest.raises(ValueError, match="FlatBlock cannot have"):
        factored_model_class(flat.FlatModel)(config)
