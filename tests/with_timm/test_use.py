"""What works on a transformers model works on a compressed one of timm: copies, precision, adapters, integers."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForImageClassification,
    PreTrainedModel,
    TimmWrapperForImageClassification,
    TimmWrapperModel,
    ViTForImageClassification,
)
from transformers.utils import is_torchao_available

from hf_vitcompress import configuration_factored, modeling_factored, quantize, to_dense
from hf_vitcompress.model.assembly import is_factored
from hf_vitcompress.model.loading import load_dense_model
from hf_vitcompress.modeling_factored import compressed_modules

pytest.importorskip("timm", reason="timm is not installed here; `make test-torchvision` runs this part")

from hf_vitcompress.modeling_timm import TimmViTForImageClassification
from support.adapters import require_peft
from support.timm_models import ARGUMENTS, EVA, SWIN_TINY, VIT, factored, images, logits, wrapper

every_family = pytest.mark.parametrize("name", ARGUMENTS)
needs_torchao = pytest.mark.skipif(not is_torchao_available(), reason="torchao is not installed (pip install torchao)")


@every_family
def test_copies_compute_the_same(name: str) -> None:
    small = factored(name)
    expected = logits(small, images(small))
    for copied in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        assert type(copied) is type(small)
        assert torch.equal(logits(copied, images(small)), expected)


def test_a_pickle_finds_its_class_before_anybody_has_made_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for table in ("PUBLIC", "FACTORED"):
        monkeypatch.setattr(configuration_factored, table, {})
        monkeypatch.setattr(modeling_factored, table, getattr(configuration_factored, table))
    found = modeling_factored.FactoredTimmViTForImageClassification
    assert issubclass(found, TimmViTForImageClassification)
    assert not hasattr(modeling_factored, "FactoredTimmViTForPoetry")


@every_family
def test_activations_that_are_computed_again_change_no_gradient(name: str) -> None:
    small = factored(name)
    for module in small.modules():
        if "Drop" in type(module).__name__:
            module.drop_prob = module.p = 0.0

    def gradients() -> dict[str, Any]:
        small.zero_grad()
        small.train()(images(small), labels=torch.arange(8)).loss.backward()
        return {parameter_name: parameter.grad for parameter_name, parameter in small.named_parameters()}

    expected = {parameter_name: grad.clone() for parameter_name, grad in gradients().items()}
    small.timm_model.set_grad_checkpointing(True)
    torch.testing.assert_close(gradients(), expected)


@every_family
def test_narrow_numbers(name: str) -> None:
    small = factored(name)
    pixels, expected = images(small), logits(small, images(small))
    with torch.autocast("cpu", torch.bfloat16):
        assert (logits(small, pixels) - expected).norm() < 0.05 * expected.norm()
    half = small.to(torch.bfloat16)
    assert (logits(half, pixels).float() - expected).norm() < 0.05 * expected.norm()
    assert to_dense(half).dtype == torch.bfloat16


def test_data_parallelism_is_taken_off() -> None:
    small = factored()
    assert load_dense_model(nn.DataParallel(small)) is small


@pytest.mark.parametrize(
    "dense_class",
    [
        TimmWrapperForImageClassification,
        TimmWrapperModel,
        TimmViTForImageClassification,
        ViTForImageClassification,
    ],
)
def test_dense_classes_refuse_a_compressed_folder(dense_class: type[PreTrainedModel], tmp_path: Path) -> None:
    factored().save_pretrained(tmp_path)
    with pytest.raises(Exception, match="factored layers, which a dense model class cannot hold"):
        dense_class.from_pretrained(tmp_path)


# ---- integers


@needs_torchao
@every_family
def test_a_compressed_model_is_quantized(name: str, tmp_path: Path) -> None:
    small = factored(name)
    integers, pixels = quantize(small), images(small)
    assert type(integers) is type(small)
    expected, found = logits(small, pixels), logits(integers, pixels)
    assert 0 < (found - expected).norm() < 0.05 * expected.norm()
    integers.save_pretrained(tmp_path)
    reloaded = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(reloaded, pixels), found)


@needs_torchao
def test_a_dense_layer_whose_biases_stand_beside_it_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("hf_vitcompress.model.loading.logger.warning", said.append)
    whole = wrapper(EVA)
    integers, pixels = quantize(whole), images(whole)
    expected, found = logits(whole, pixels), logits(integers, pixels)
    assert 0 < (found - expected).norm() < 0.05 * expected.norm()
    [sentence] = said
    assert sentence.startswith("2 layers have their biases beside them, which torchao cannot quantize, and stay")


# ---- adapters


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("name", "target"),
    [(VIT, "all-linear"), (VIT, "factors"), (VIT, "compressed"), (EVA, "all-linear"), (SWIN_TINY, "compressed")],
)
def test_an_adapter_is_saved_loaded_and_merged(name: str, target: str, tmp_path: Path) -> None:
    peft, small = require_peft(), factored(name)
    small.save_pretrained(tmp_path / "base")
    layers = [n for n, module in small.named_modules() if isinstance(module, nn.Linear)]
    made = [n for n in layers if any(n == path or n.startswith(f"{path}.") for path in compressed_modules(small))]
    modules = {"factors": ["up", "down"], "compressed": made}.get(target, target)
    adapted = peft.get_peft_model(small, peft.LoraConfig(r=2, target_modules=modules, init_lora_weights=False)).eval()
    pixels, expected = images(small), logits(adapted, images(small))
    adapted.save_pretrained(tmp_path / "adapter")
    base = AutoModelForImageClassification.from_pretrained(tmp_path / "base")
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert torch.equal(logits(loaded, pixels), expected)
    merged = loaded.merge_and_unload()
    assert is_factored(merged)
    torch.testing.assert_close(logits(to_dense(merged), pixels), expected, rtol=1e-3, atol=1e-4)


def test_every_compressed_module_is_there() -> None:
    small = factored(VIT)
    names = compressed_modules(small)
    assert len(names) == 2 * 7  # q, k, their common down, v, o, fc1 and fc2 of each block
    assert all(small.get_submodule(name) is not None for name in names)
