"""Digests of weights: the same for the same weights however they are stored, and for no others."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DeiTConfig, DeiTForImageClassification, PreTrainedModel, ViTForImageClassification, ViTModel

from hf_vitcompress.model.loading import load_model
from hf_vitcompress.runtime.weights import folder_digest, model_digest, weight_files
from support.models import TINY, seeded, tiny_config
from support.students import compressed


@pytest.fixture(params=[torch.float32, torch.bfloat16, torch.float16], ids=str)
def model(request: pytest.FixtureRequest, vit: PreTrainedModel) -> PreTrainedModel:
    return vit.to(request.param)


@pytest.mark.parametrize("shard", ["50GB", "30KB"])
def test_saving_and_loading_keep_the_digest(model: PreTrainedModel, shard: str, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (len(weight_files(tmp_path)) > 1) == (shard == "30KB")
    assert model_digest(model) == folder_digest(tmp_path) == model_digest(load_model(tmp_path))


@pytest.mark.parametrize("dense", [ViTModel, ViTForImageClassification])
def test_compressed_models_keep_theirs(dense: type[PreTrainedModel], tmp_path: Path) -> None:
    student = compressed(seeded(dense, tiny_config())).student()
    student.save_pretrained(tmp_path)
    assert model_digest(student) == folder_digest(tmp_path) == model_digest(load_model(tmp_path))


def test_other_names_are_the_same_weights(tmp_path: Path) -> None:
    model = seeded(DeiTForImageClassification, DeiTConfig(**TINY))
    model.save_pretrained(tmp_path, save_original_format=True)
    stored = load_file(tmp_path / "model.safetensors")
    assert set(stored) != set(model.state_dict())
    assert model_digest(model) == folder_digest(tmp_path)
    renamed = {f"other.{number}": tensor for number, tensor in enumerate(stored.values())}
    save_file(renamed, tmp_path / "model.safetensors")
    assert model_digest(model) == folder_digest(tmp_path)


def test_the_smallest_change_of_one_value_is_another_digest(model: PreTrainedModel, tmp_path: Path) -> None:
    before = model_digest(model)
    weight = model.classifier.bias.data
    kept = weight[0].clone()
    weight.view(torch.int32 if weight.element_size() == 4 else torch.int16)[0] ^= 1
    assert model_digest(model) != before
    weight[0] = kept
    assert model_digest(model) == before


def test_types_and_shapes_count(vit: PreTrainedModel) -> None:
    """But the same numbers in 16 and in 32 bits are the same weights: files are narrower than memory."""
    zeros = torch.nn.Linear(4, 2, bias=False)
    zeros.weight.data.zero_()
    turned = torch.nn.Linear(2, 4, bias=False)
    turned.weight.data.zero_()
    digests = {model_digest(zeros), model_digest(turned), model_digest(copy.deepcopy(zeros).double())}
    assert len(digests) == 3
    same = {model_digest(zeros), model_digest(zeros.half()), model_digest(zeros.bfloat16())}
    assert len(same) == 1
    layer = torch.nn.Linear(4, 2, bias=False)
    assert model_digest(copy.deepcopy(layer).half()) != model_digest(layer)


def test_equal_tensors_are_counted() -> None:
    """A layer more is another model, though its weights are there already."""
    layers = [torch.nn.Linear(2, 2) for _ in range(3)]
    for layer in layers:
        layer.load_state_dict(layers[0].state_dict())
    assert model_digest(torch.nn.Sequential(*layers[:2])) != model_digest(torch.nn.Sequential(*layers))


def test_scalars_and_empty_tensors_have_digests() -> None:
    module = torch.nn.Module()
    module.register_buffer("scale", torch.tensor(2.0))
    module.register_buffer("nothing", torch.empty(0, 3))
    assert model_digest(module) != model_digest(torch.nn.Module())


def test_views_that_are_not_contiguous_are_their_values() -> None:
    module, other = torch.nn.Module(), torch.nn.Module()
    values = torch.arange(6.0).reshape(2, 3)
    module.register_buffer("turned", values.T)
    other.register_buffer("turned", values.T.contiguous())
    assert model_digest(module) == model_digest(other)


def test_other_files_in_the_folder_do_not_count(vit: PreTrainedModel, tmp_path: Path) -> None:
    vit.save_pretrained(tmp_path)
    for name in ("model_ema.safetensors", "model-old.safetensors", "adapter_model.safetensors"):
        save_file({"weight": torch.ones(2)}, tmp_path / name)
    assert folder_digest(tmp_path) == model_digest(vit)


def test_a_folder_without_weights_has_none(tmp_path: Path) -> None:
    assert folder_digest(tmp_path) is None
