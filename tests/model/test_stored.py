"""Weights are stored in the type of the checkpoint that they were made of."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForImageClassification, PreTrainedModel

from hf_vitcompress.model.stored import round_weights, stored_dtype
from hf_vitcompress.model.subject import open_subject
from hf_vitcompress.modeling_factored import narrowed_state
from hf_vitcompress.runtime.weights import folder_digest, model_digest, stored_dtypes
from support.digits import CALIBRATION, new
from support.factored import formed
from support.models import DIGITS

FORM = "factored"


@pytest.fixture
def rounded() -> PreTrainedModel:
    model = formed(FORM)
    round_weights(model, torch.float16)
    return model


def test_a_model_of_a_half_precision_file_is_stored_like_it(tmp_path: Path) -> None:
    """The config of the model of digits says float32, and its file holds float16."""
    compressor = new(metric="weight", measuring_images=0, num_images=32)
    small = compressor.compress(DIGITS / "model", CALIBRATION)
    small.save_pretrained(tmp_path)
    assert compressor.report is not None
    assert small.dtype == torch.float32
    assert stored_dtypes(tmp_path) == stored_dtypes(DIGITS / "model") == ["F16"]
    assert compressor.report.weights == model_digest(small) == folder_digest(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert again.dtype == torch.float32
    assert model_digest(again) == model_digest(small)


def test_a_model_that_was_loaded_keeps_its_own_type(vit: PreTrainedModel) -> None:
    assert open_subject(vit).stored is None
    assert open_subject(DIGITS / "model").stored == torch.float16


def test_saving_again_stores_the_same_and_training_stores_all(rounded: PreTrainedModel, tmp_path: Path) -> None:
    rounded.save_pretrained(tmp_path / "small")
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "small")
    again.save_pretrained(tmp_path / "again")
    assert stored_dtypes(tmp_path / "again") == ["F16"]
    with torch.no_grad():
        again.classifier.bias += 1e-6
    again.save_pretrained(tmp_path / "trained")
    assert stored_dtypes(tmp_path / "trained") == ["F32"]
    assert torch.equal(
        AutoModelForImageClassification.from_pretrained(tmp_path / "trained").classifier.bias, again.classifier.bias
    )


def test_wider_files_change_nothing() -> None:
    model = formed(FORM, dtype=torch.float16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    round_weights(model, torch.float32)
    assert all(tensor.dtype == torch.float16 and tensor.equal(before[name]) for name, tensor in _named(model))
    assert all(tensor.dtype == torch.float16 for tensor in narrowed_state(before, torch.float32).values())


def test_weights_too_large_for_the_type_stay(caplog: pytest.LogCaptureFixture) -> None:
    model = formed(FORM)
    with torch.no_grad():
        model.classifier.bias[0] = 1e6
    round_weights(model, torch.float16)
    assert model.stored_dtype is None
    assert model.classifier.bias[0] == 1e6
    assert "too large for torch.float16" in caplog.text


def test_shared_tensors_stay_shared() -> None:
    shared = torch.ones(4, 4)
    narrowed = narrowed_state({"a": shared, "b": shared, "steps": torch.tensor(3)}, torch.float16)
    assert narrowed["a"].data_ptr() == narrowed["b"].data_ptr()
    assert [tensor.dtype for tensor in narrowed.values()] == [torch.float16, torch.float16, torch.int64]


FILES: dict[str, tuple[dict[str, Tensor], torch.dtype | None]] = {
    "mixed": ({"a": torch.ones(100).half(), "b": torch.ones(10)}, torch.float16),
    "bfloat16": ({"a": torch.ones(4, dtype=torch.bfloat16)}, torch.bfloat16),
    "integers": ({"a": torch.ones(100, dtype=torch.int8), "b": torch.ones(4)}, None),
}


@pytest.mark.parametrize("case", FILES)
@pytest.mark.parametrize("pickled", [False, True])
def test_the_type_of_most_values_counts(case: str, pickled: bool, tmp_path: Path) -> None:
    tensors, expected = FILES[case]
    if pickled:
        torch.save(tensors, tmp_path / "pytorch_model.bin")
    else:
        save_file(tensors, tmp_path / "model.safetensors")
        assert load_file(tmp_path / "model.safetensors").keys() == tensors.keys()
    assert stored_dtype(tmp_path) == expected


@pytest.mark.parametrize("name", ["nobody/nothing", "absent/folder/of/models", ""])
def test_where_there_are_no_files_nothing_is_known(name: str, tmp_path: Path) -> None:
    assert stored_dtype(name) is None
    assert stored_dtype(tmp_path) is None
    (tmp_path / "pytorch_model.bin").write_bytes(b"damaged")
    assert stored_dtype(tmp_path) is None


def _named(model: PreTrainedModel) -> list[tuple[str, Tensor]]:
    return list(model.state_dict().items())
