"""Budgets of time for models of every kind; all seconds are made up."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    PreTrainedModel,
    SwinConfig,
    SwinForImageClassification,
    ViTForImageClassification,
)

from hf_vitcompress import CompressionConfig, ViTCompressor
from hf_vitcompress.errors import ConfigError
from hf_vitcompress.evaluation.costs import count_costs
from hf_vitcompress.evaluation.latency import Latency
from hf_vitcompress.planning import latency, profiles
from hf_vitcompress.profiling import measuring
from hf_vitcompress.profiling.operations import Merge, Operation
from support.models import seeded, tiny_config
from support.profiles import even_profile, even_seconds


def swin() -> PreTrainedModel:
    sizes = {
        "image_size": 32,
        "patch_size": 4,
        "embed_dim": 16,
        "depths": [1, 1],
        "num_heads": [2, 4],
        "window_size": 4,
    }
    return seeded(SwinForImageClassification, SwinConfig(**sizes))


def clip() -> PreTrainedModel:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {**sizes, "vocab_size": 50, "max_position_embeddings": 8}
    vision = {**sizes, "image_size": 32, "patch_size": 8}
    return seeded(CLIPModel, CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))


def eager() -> PreTrainedModel:
    model = seeded(ViTForImageClassification, tiny_config())
    model.set_attn_implementation("eager")
    return model


def vit() -> PreTrainedModel:
    return seeded(ViTForImageClassification, tiny_config())


CASES: dict[str, tuple[Callable[[], PreTrainedModel], dict[str, Any]]] = {
    "a ViT": (vit, {}),
    "eager attention": (eager, {}),
    "half precision": (lambda: vit().to(torch.bfloat16), {}),
    "pruned heads": (vit, {"attention": "prune"}),
    "low rank": (vit, {"attention": "low_rank", "mlp": "low_rank"}),
    "multiples of 8": (vit, {"rank_multiple": 8}),
    "windows of several sizes": (swin, {}),
    "a tower": (clip, {"target": "vision_model"}),
}


@pytest.fixture(autouse=True)
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(_: object, operation: Operation) -> float:
        return 1e-6 if isinstance(operation, Merge) else even_seconds(operation)

    def alternate(
        dense: functools.partial[float], compressed: functools.partial[float], batch_size: int, *_: Any
    ) -> Latency:
        large, small = (count_costs(one.args[0]).macs for one in (dense, compressed))
        ratio = 0.1 + 0.9 * small / large
        return Latency(1e-3, 1e-3 * ratio, ratio, ratio, ratio, batch_size, 15, 1, "a CPU (1 thread)")

    monkeypatch.setattr(measuring, "time_operation", seconds)
    monkeypatch.setattr(latency, "alternate_latency", alternate)


def compressor(**settings: Any) -> ViTCompressor:
    plain = {"precision": "float32", "num_images": 8, "measuring_images": 0, "rank_multiple": 2, "tokens": "none"}
    return ViTCompressor(CompressionConfig(**{"speedup": 1.2, **plain, **settings}), progress=False)


def images_for(model: PreTrainedModel) -> torch.Tensor:
    config = getattr(model.config, "vision_config", model.config)
    generator = torch.Generator().manual_seed(0)
    return torch.rand(8, 3, config.image_size, config.image_size, generator=generator, dtype=torch.float32)


@pytest.mark.parametrize("case", CASES)
def test_a_speed_up_of_any_model(case: str) -> None:
    make, settings = CASES[case]
    model, own = make(), compressor(**settings)
    small = own.compress(model, images_for(model))
    assert own.report is not None
    timed = own.report.timed
    assert timed is not None
    assert timed.excess <= latency.EXCEEDED
    assert small.dtype == model.dtype
    assert own.profile is not None
    assert own.profile.conditions.precision == str(model.dtype).removeprefix("torch.")
    assert own.profile.conditions.attention == ("eager" if case == "eager attention" else "sdpa")
    assert len(own.profile.products) == (2 if case.startswith("windows") else 1)


def test_a_profile_is_measured_once_for_a_model_and_anew_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    own, taken = compressor(), []
    whole = profiles.take_profile

    def counted(*given: Any, **settings: Any) -> Any:
        taken.append(None)
        return whole(*given, **settings)

    monkeypatch.setattr(profiles, "take_profile", counted)
    model = vit()
    own.compress(model, images_for(model))
    assert own.statistics is not None
    own.plan(model, own.statistics)
    assert len(taken) == 1
    windows = swin()
    own.compress(windows, images_for(windows))
    assert len(taken) == 2


def test_a_profile_of_another_model_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"precision": "float32", "num_images": 8}
    own = ViTCompressor(CompressionConfig(speedup=1.2, **settings), progress=False, profile=even_profile([17]))
    monkeypatch.setattr(own, "calibrate", lambda *_, **__: pytest.fail("calibrated"))
    model = vit()
    with pytest.raises(ConfigError, match="latency profile was measured for the device"):
        own.compress(model, images_for(model))


def test_no_profile_is_taken_for_other_budgets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiles, "take_profile", lambda *_, **__: pytest.fail("profiled"))
    own, model = compressor(speedup=None, keep_ratio=0.7), vit()
    own.compress(model, images_for(model))
    assert own.profile is None
    assert own.report is not None
    assert own.report.timed is None


def test_a_given_plan_is_built_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    own, model = compressor(), vit()
    own.compress(model, images_for(model))
    assert own.report is not None
    assert own.statistics is not None
    plan = own.plan(model, own.statistics)
    monkeypatch.setattr(profiles, "take_profile", lambda *_, **__: pytest.fail("profiled"))
    again = compressor()
    small = again.compress(model, statistics=own.statistics, plan=plan)
    assert small.config.compression["layers"] == plan.layers
    assert again.report is not None
