"""An architecture from outside: one call, and it is compressed, saved, loaded and multiplied out like any other."""

import subprocess
import sys
from pathlib import Path

import outside
import pytest
import torch
import transformers
from conftest import seeded
from torch import Tensor
from transformers import AutoModel, AutoModelForImageClassification, PreTrainedModel

from hf_vitcompress import CompressionConfig, ViTCompressor, to_dense
from hf_vitcompress.errors import ConfigError, UnsupportedModelError
from hf_vitcompress.families import FAMILIES, register_family
from hf_vitcompress.layers import find_layers, may_prune_heads
from hf_vitcompress.modeling_factored import ATTENTIONS

transformers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="module", autouse=True)
def registered() -> object:
    outside.register()
    yield
    FAMILIES.pop("outside", None)
    ATTENTIONS.pop("outside.PlainAttention", None)


@pytest.fixture
def model() -> PreTrainedModel:
    config = outside.OutsideConfig(num_labels=5, num_hidden_layers=4)
    return seeded(outside.OutsideForImageClassification, config)


def compressed(model: PreTrainedModel, pixels: Tensor, **settings: object) -> PreTrainedModel:
    values = {"keep_ratio": 0.6, "rank_multiple": 1, "precision": "float32", "correct_curves": False, **settings}
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
        "import sys, outside; from transformers import AutoConfig, AutoModel\n"
        "AutoConfig.register('outside', outside.OutsideConfig)\n"
        "AutoModel.register(outside.OutsideConfig, outside.OutsideModel)\n"
        "from hf_vitcompress.layers import find_layers\n"
        "find_layers(outside.OutsideModel(outside.OutsideConfig()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert done.returncode != 0
    assert UnsupportedModelError.__name__ in done.stderr
    assert "register_family" in done.stderr
