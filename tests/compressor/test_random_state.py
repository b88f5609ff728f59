"""No stage changes the random states of its caller, or depends on what torch takes for its default type."""

import random
from collections.abc import Iterator
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, ViTImageProcessorPil

from hf_vitcompress import CompressionConfig, ViTCompressor
from hf_vitcompress.runtime.random_state import unchanged_random_state
from support.compensated import RECIPE
from support.students import lively, random_images


def states() -> tuple[Any, ...]:
    """Of Python, numpy and torch."""
    name, keys, *rest = numpy.random.get_state()
    return random.getstate(), (name, tuple(keys), *rest), tuple(torch.get_rng_state().tolist())


@pytest.fixture(autouse=True)
def unchanged() -> Iterator[None]:
    before = states()
    yield
    assert states() == before


@pytest.fixture(scope="module")
def dense() -> PreTrainedModel:
    with unchanged_random_state():
        return lively()


def new(processor: Any = None, **changes: Any) -> ViTCompressor:
    brief = {"compensation_duration": "1 epochs", "gate_duration": "1 epochs"}
    return ViTCompressor(CompressionConfig(**{**RECIPE, **brief, **changes}), processor, progress=False)


def draw() -> None:
    """What a careless library does."""
    random.random()
    numpy.random.rand()
    torch.rand(1)


@pytest.mark.parametrize("compensation", ["none", "residual", "distill", "both"])
def test_compression_with_any_compensation(dense: PreTrainedModel, compensation: str) -> None:
    new(compensation=compensation, measuring_images=16, metric="fisher").compress(dense, random_images(60))


def test_compression_by_learned_scores(dense: PreTrainedModel) -> None:
    new(compensation="none", criterion="gates", mlp="prune").compress(dense, random_images(60))


def test_the_default_type_of_torch_does_not_matter(dense: PreTrainedModel) -> None:
    images, recipe = random_images(60), {"compensation": "both", "measuring_images": 16, "metric": "fisher"}
    expected = new(**recipe).compress(dense, images).state_dict()
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        found = new(**recipe).compress(dense, images).state_dict()
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(before)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_search(dense: PreTrainedModel) -> None:
    new(keep_ratio=None, max_accuracy_drop=0.5, compensation="residual").compress(dense, random_images(80))


def test_every_stage_by_itself_where_images_draw(dense: PreTrainedModel) -> None:
    class Drawing(ViTImageProcessorPil):
        def __call__(self, *arguments: Any, **settings: Any) -> Any:
            draw()
            return super().__call__(*arguments, **settings)

    with unchanged_random_state():
        pictures = [Image.effect_noise((16, 16), 90).convert("RGB") for _ in range(60)]
    compressor = new(Drawing(size={"height": 16, "width": 16}), compensation="both")
    subject = compressor.open(dense)
    statistics = compressor.calibrate(subject, pictures)
    plan = compressor.plan(subject, statistics)
    small = compressor.build(subject, statistics, plan)
    compressor.compensate(small, subject, statistics, plan, pictures)


def test_a_loader_that_shuffles_and_a_data_set_that_augments(dense: PreTrainedModel) -> None:
    class Augmented(torch.utils.data.Dataset[Tensor]):
        def __len__(self) -> int:
            return 40

        def __getitem__(self, index: int) -> Tensor:
            draw()
            return torch.randn(3, 16, 16)

    new(compensation="none").compress(dense, DataLoader(Augmented(), 8, shuffle=True))


def test_a_block_that_fails_leaves_them_too() -> None:
    def fail() -> None:
        draw()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), unchanged_random_state():
        fail()
