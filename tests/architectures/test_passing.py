"""Why images do not pass through a model, in one sentence: another shape than the config's, or too little memory."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel, ViTForImageClassification, ViTImageProcessorPil

from hf_vitcompress import evaluate_model
from hf_vitcompress.architectures.running import passing
from hf_vitcompress.errors import BudgetError, DataError, UnsupportedModelError
from hf_vitcompress.images.sources import open_images
from support.calibrations import config, run
from support.models import seeded, tiny_config

MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to"),
    RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
    MemoryError(),
)


STAGES: dict[str, Callable[..., Any]] = {
    "calibration": lambda model, images, processor: run(model, images, config(), processor=processor),
    "evaluation": lambda model, images, processor: evaluate_model(model, images, processor, model, progress=False),
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("size", [32, 8])
def test_a_processor_of_another_size_is_named_with_the_model(
    stage: str, size: int, vit: PreTrainedModel, pictures: list[Image.Image]
) -> None:
    processor, images = ViTImageProcessorPil(size={"height": size, "width": size}), open_images(pictures)
    said = rf"arrive with {size} × {size} pixels, and ViTForImageClassification takes 16 × 16.*image processor's size"
    with pytest.raises(DataError, match=said):
        STAGES[stage](vit, images, processor)


def test_other_channels_are_named_with_the_model(pictures: list[Image.Image], processor: ViTImageProcessorPil) -> None:
    grey = seeded(ViTForImageClassification, tiny_config(num_channels=1))
    with pytest.raises(DataError, match=r"with 3 channels, and the config of ViT.*num_channels=1.*\(n, 1, 16, 16\)"):
        run(grey, open_images(pictures), config(), processor=processor)


@pytest.mark.parametrize("error", MEMORY, ids=lambda error: type(error).__name__)
def test_out_of_memory_names_the_setting_to_lower(error: Exception, vit: PreTrainedModel, pixels: Tensor) -> None:
    def fails(*_: Any) -> None:
        raise error

    handle = vit.register_forward_pre_hook(fails)
    said = r"'cpu' has not enough memory for ViT.*batch of 16 images of shape \(3, 16, 16\)\. Lower batch_size\."
    with pytest.raises(DataError, match=said):
        run(vit, pixels, config())
    handle.remove()
    with pytest.raises(DataError, match=r"Lower distill_batch_size\."), passing(vit, pixels, "distill_batch_size"):
        raise error


@pytest.mark.parametrize("error", [ValueError("x"), RuntimeError("y"), BudgetError("z"), KeyError("k")])
def test_other_errors_stay_what_they_are(error: Exception, vit: PreTrainedModel, pixels: Tensor) -> None:
    with pytest.raises(type(error)) as caught, passing(vit, pixels):
        raise error
    assert caught.value is error


def test_errors_of_this_package_stay_what_they_are_on_images_of_another_shape(vit: PreTrainedModel) -> None:
    with pytest.raises(BudgetError, match="z"), passing(vit, torch.zeros(2, 3, 32, 32)):
        raise BudgetError("z")


def test_a_model_whose_layers_compute_in_different_types_is_named(vit: PreTrainedModel) -> None:
    mixed = copy.deepcopy(vit).half()
    mixed.classifier.float()
    images = torch.zeros(1, 3, 16, 16, dtype=torch.float16)
    said = r"several types \(float16, float32\).*model\.float\(\)"
    with pytest.raises(UnsupportedModelError, match=said), passing(mixed, images), torch.no_grad():
        mixed(images)
