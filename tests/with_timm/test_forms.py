"""A timm model in its forms: fused as in timm, split, compressed, and fused again; in memory and on disk."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    TimmWrapperForImageClassification,
    TimmWrapperModel,
)

from hf_vitcompress import to_dense
from hf_vitcompress.model.assembly import is_factored
from hf_vitcompress.model.restructure import adopt, follow_layout
from hf_vitcompress.model.timm import split_form
from hf_vitcompress.model.timm_forms import split_in_place

pytest.importorskip("timm", reason="timm is not installed here; `make test-torchvision` runs this part")

import timm

from support.timm_models import ARGUMENTS, VIT, factored, images, logits, wrapper

every_family = pytest.mark.parametrize("name", ARGUMENTS)


@every_family
def test_a_compressed_model_becomes_a_wrapper_around_a_module_of_timm(name: str) -> None:
    small = factored(name)
    dense, pixels = to_dense(small), images(small)
    assert type(dense) is TimmWrapperForImageClassification
    torch.testing.assert_close(logits(dense, pixels), logits(small, pixels), rtol=1e-4, atol=1e-5)
    plain = timm.create_model(name, num_classes=10, **ARGUMENTS[name]).eval()
    plain.load_state_dict(dense.timm_model.state_dict())
    assert torch.equal(logits(plain, pixels), logits(dense, pixels))


@every_family
def test_a_dense_wrapper_is_copied(name: str) -> None:
    whole = wrapper(name)
    copied, pixels = to_dense(whole), images(whole)
    assert type(copied) is TimmWrapperForImageClassification
    assert torch.equal(logits(copied, pixels), logits(whole, pixels))
    assert not {p.data_ptr() for p in copied.parameters()} & {p.data_ptr() for p in whole.parameters()}


def test_the_wrapper_keeps_labels_and_what_timm_says_of_the_weights(tmp_path: Path) -> None:
    small = factored()
    small.config.id2label = {i: f"class {i}" for i in range(10)}
    small.config.label2id = {name: i for i, name in small.config.id2label.items()}
    small.config.pretrained_cfg["mean"] = [0.1, 0.2, 0.3]
    dense = to_dense(small)
    assert dense.timm_model.pretrained_cfg["mean"] == [0.1, 0.2, 0.3]
    dense.save_pretrained(tmp_path)
    reloaded = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    assert reloaded.config.id2label == small.config.id2label
    assert reloaded.config.pretrained_cfg["mean"] == [0.1, 0.2, 0.3]
    assert torch.equal(logits(reloaded, images(small)), logits(dense, images(small)))


def test_a_headless_model_comes_back_headless(tmp_path: Path) -> None:
    small = factored(classes=0)
    dense, pixels = to_dense(small), images(small)
    assert type(dense) is TimmWrapperModel
    dense.save_pretrained(tmp_path)
    reloaded = AutoModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected, found = small(pixels).pooler_output, reloaded(pixels).pooler_output
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@every_family
def test_a_split_model_is_saved_as_timm_has_it(name: str, tmp_path: Path) -> None:
    whole = wrapper(name)
    split_form(whole).save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    assert (content["architecture"], content["num_classes"]) == (name, 10)
    assert "model_type" not in content or content["model_type"] == "timm_wrapper"
    reloaded = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    assert type(reloaded) is TimmWrapperForImageClassification
    assert torch.equal(logits(reloaded, images(whole)), logits(whole, images(whole)))


@every_family
def test_a_wrapper_is_split_in_place(name: str) -> None:
    whole = wrapper(name)
    expected, before = logits(whole, images(whole)), dict(whole.named_parameters())
    split_in_place(whole)
    assert type(whole).__name__ == "TimmViTForImageClassification"
    assert torch.equal(logits(whole, images(whole)), expected)
    after = set(whole.parameters())
    gone = [n for n, parameter in before.items() if parameter not in after]
    assert gone, "fused layers are parts now"
    assert all("qkv" in n or "fc1" in n for n in gone)


@every_family
def test_any_state_dict_brings_its_form(name: str) -> None:
    """Loaded one after the other, as a Trainer does with checkpoints of before and after the compression."""
    model, pixels = wrapper(name), images(wrapper(name))
    follow_layout(model)
    sources: list[Any] = [wrapper(name, 1), factored(name, 2), wrapper(name, 3), split_form(wrapper(name, 4))]
    compressed = []
    for source in sources:
        model.load_state_dict(source.state_dict())
        assert torch.equal(logits(model, pixels), logits(source, pixels))
        compressed.append(is_factored(model))
    assert compressed == [False, True, False, False]
    model.load_state_dict(sources[0].timm_model.state_dict())  # by timm's own names
    assert torch.equal(logits(model, pixels), logits(sources[0], pixels))


def test_a_wrapper_stays_one_while_it_loads_its_own_names() -> None:
    model = wrapper(VIT)
    follow_layout(model)
    model.load_state_dict(wrapper(VIT, 1).state_dict())
    assert type(model) is TimmWrapperForImageClassification


@every_family
def test_a_wrapper_becomes_a_compressed_model_in_place(name: str) -> None:
    model, small = wrapper(name), factored(name, 1)
    expected = logits(small, images(small))
    adopt(model, small)
    assert is_factored(model)
    assert torch.equal(logits(model, images(model)), expected)
    model.train()(images(model), labels=torch.arange(8)).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
