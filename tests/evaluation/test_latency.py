"""How two things are timed against each other."""

import pytest
import torch
from transformers import ViTForImageClassification

from hf_vitcompress.evaluation.latency import alternate_latency, latency_row, measure_latency
from support.models import seeded, tiny_config
from support.zoo import HEADS


def test_turns_alternate_and_those_that_warm_up_do_not_count() -> None:
    turns: list[str] = []

    def large() -> float:
        turns.append("large")
        return 0.2 if len(turns) > 4 else 60.0

    def small() -> float:
        turns.append("small")
        return 0.1 if len(turns) > 4 else 60.0

    latency = alternate_latency(large, small, batch_size=4, rounds=6)
    assert turns == ["large", "small"] * 8
    assert (latency.dense, latency.compressed, latency.ratio) == (0.2, 0.1, 0.5)
    assert (latency.ratio_low, latency.ratio_high) == (0.5, 0.5)
    assert (latency.batch_size, latency.rounds, latency.threads) == (4, 6, torch.get_num_threads())


def test_median_and_quartiles_are_those_of_the_pairs() -> None:
    seconds = iter([1.0, 1.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    latency = alternate_latency(lambda: 1.0, lambda: next(seconds), batch_size=1, rounds=5)
    assert latency.ratio == 0.3
    assert latency.ratio_low == pytest.approx(0.15)
    assert latency.ratio_high == pytest.approx(0.45)


def test_a_row_has_milliseconds_and_the_ratio_with_its_quartiles() -> None:
    seconds = iter([1.0, 1.0, 0.01, 0.02, 0.03])
    latency = alternate_latency(lambda: 0.04, lambda: next(seconds), batch_size=32, rounds=3)
    assert latency_row(latency) == ("latency, batch 32", "40.0 ms", "20.0 ms", "0.50 × (0.25 to 0.75)")


def test_models_keep_mode_and_dtype() -> None:
    dense = seeded(ViTForImageClassification, tiny_config()).train()
    small = seeded(ViTForImageClassification, tiny_config(num_hidden_layers=1)).to(torch.bfloat16)
    latency = measure_latency(dense, small, batch_size=2, rounds=2)
    assert dense.training
    assert not small.training
    assert (dense.dtype, small.dtype) == (torch.float32, torch.bfloat16)
    assert min(latency.dense, latency.compressed) > 0
    assert "thread" in latency.device


@pytest.mark.parametrize("name", ["Siglip2VisionModel", "ViTMAEModel", "DepthAnythingForDepthEstimation"])
def test_models_that_take_more_than_images_are_timed(name: str) -> None:
    head = next(head for head in HEADS if head.name == name)
    assert measure_latency(head.dense(), head.dense(), batch_size=2, rounds=2).dense > 0


def test_images_of_the_given_shape_are_timed() -> None:
    head = next(head for head in HEADS if head.name == "Dinov2ForImageClassification")
    dense, shapes = head.dense(), []
    dense.register_forward_pre_hook(lambda _, __, kwargs: shapes.append(kwargs["pixel_values"].shape), with_kwargs=True)
    measure_latency(dense, dense, batch_size=2, rounds=2, shape=(3, 8, 12))
    assert set(shapes) == {(2, 3, 8, 12)}
