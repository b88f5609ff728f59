"""Weights that are not there, or are no plain numbers, are refused before anything is computed with them."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from accelerate import cpu_offload
from torch import nn
from transformers import PreTrainedModel, ViTForImageClassification

from hf_vitcompress.errors import UnsupportedModelError
from hf_vitcompress.model.loading import check_model, load_dense_model
from hf_vitcompress.model.subject import open_subject
from support.models import seeded, tiny_config


@pytest.fixture
def model() -> PreTrainedModel:
    return seeded(ViTForImageClassification, tiny_config())


def offloaded(model: PreTrainedModel) -> None:
    cpu_offload(model, execution_device=torch.device("cpu"))


def without_a_block(model: PreTrainedModel) -> None:
    model.vit.layers[1].to("meta")


def lazy(model: PreTrainedModel) -> None:
    model.classifier = nn.LazyLinear(5)


def float8(model: PreTrainedModel) -> None:
    model.classifier.weight = nn.Parameter(torch.zeros(5, 32).to(torch.float8_e4m3fn), requires_grad=False)


def int8(model: PreTrainedModel) -> None:
    model.classifier.weight = nn.Parameter(torch.zeros(5, 32, dtype=torch.int8), requires_grad=False)


def as_bitsandbytes(model: PreTrainedModel) -> None:
    kind = type("Params4bit", (nn.Parameter,), {})
    model.classifier.weight = kind(torch.zeros(5, 32))


def by_torchao(model: PreTrainedModel) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(model, Int8WeightOnlyConfig())


class QuantizedLinear(nn.Module):
    """Its weights are in no parameter."""

    __module__ = "torch.ao.nn.quantized.dynamic.modules.linear"


def by_torch(model: PreTrainedModel) -> None:
    model.classifier = QuantizedLinear()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (offloaded, r"are offloaded to the CPU or to disk \(vit\..*without device_map"),
        (without_a_block, r"has no weights: vit\.layers\.1\..* is on the device `meta`. Load it with from_pretrained"),
        (lazy, r"classifier\.weight .* has no shape yet"),
        (float8, r"quantized already \(classifier\.weight is float8_e4m3fn\)"),
        (int8, r"quantized already \(classifier\.weight is int8\)"),
        (as_bitsandbytes, r"quantized already \(classifier\.weight is Params4bit\)"),
        (by_torchao, r"quantized already \(vit\.layers\.0\.attention\.q_proj\.weight is Int8Tensor\)"),
        (by_torch, r"quantized already \(classifier is torch\.ao\.nn\.quantized\."),
    ],
)
def test_weights_that_are_absent_or_not_plain_are_refused_by_name(
    model: PreTrainedModel, change: Callable[[PreTrainedModel], None], sentence: str
) -> None:
    change(model)
    with pytest.raises(UnsupportedModelError, match=sentence):
        check_model(model)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_every_floating_point_type_is_plain(model: PreTrainedModel, dtype: torch.dtype) -> None:
    check_model(model.to(dtype))


@pytest.mark.parametrize("wrap", [partial(torch.compile, backend="eager"), nn.DataParallel])
def test_a_wrapped_model_is_taken_out(model: PreTrainedModel, wrap: Callable[[nn.Module], nn.Module]) -> None:
    assert load_dense_model(wrap(model)) is model


def test_weights_of_inference_mode_are_copied_into_ones_that_can_be_differentiated() -> None:
    with torch.inference_mode():
        model = seeded(ViTForImageClassification, tiny_config())
        opened = open_subject(model).model
    assert all(parameter.is_inference() for parameter in model.parameters())
    assert not any(parameter.is_inference() for parameter in opened.parameters())
    for mine, theirs in zip(opened.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
