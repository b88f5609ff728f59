"""Compressions in threads: what is torch's stays torch's, and a model that several share is run in turns."""

import copy
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedModel,
    SwinConfig,
    SwinForImageClassification,
    ViTForImageClassification,
)

from hf_vitcompress.architectures.running import attention_implementations, evaluation_mode, own_turn
from hf_vitcompress.evaluation.costs import count_macs
from hf_vitcompress.model.dense import to_dense
from hf_vitcompress.model.loading import load_model
from support.digits import identical, small_recipe
from support.models import seeded, tiny_config
from support.zoo import STAGES, VISION

ROUNDS = 2


def in_threads(*jobs: Callable[[], Any]) -> list[Any]:
    """What they return, all started at once."""
    start = threading.Barrier(len(jobs))

    def run(job: Callable[[], Any]) -> Any:
        start.wait()
        return job()

    with ThreadPoolExecutor(len(jobs)) as pool:
        return [future.result() for future in [pool.submit(run, job) for job in jobs]]


def process_state() -> tuple[Any, ...]:
    """What all threads share, and a compression must leave as it is."""
    return (
        nn.Module.register_parameter,
        nn.Module.register_buffer,
        nn.init.normal_,
        torch.linspace,
        PreTrainedModel.tie_weights,
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.get_num_threads(),
        torch.backends.mkldnn.matmul.fp32_precision,  # type: ignore[attr-defined]
        torch.get_rng_state().tolist(),
    )


def state_of(model: PreTrainedModel) -> tuple[Any, ...]:
    modes = [module.training for module in model.modules()]
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    return attention_implementations(model), modes, hooks, [p.requires_grad for p in model.parameters()]


def compressed(model: PreTrainedModel, pixels: Tensor) -> PreTrainedModel:
    return small_recipe(num_images=24, measuring_images=8).compress(model, pixels)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def vit(seed: int) -> PreTrainedModel:
    return seeded(ViTForImageClassification, tiny_config(), seed)


class LayerMaker:
    """A thread that makes a layer every half millisecond, as a training in the same process does."""

    def __enter__(self) -> "LayerMaker":
        self.odd: list[str] = []
        self.made = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def _run(self) -> None:
        while not self._stop.wait(0.0005):
            layer = nn.Linear(3, 2)
            buffers = nn.BatchNorm1d(2)
            self.made += 1
            for tensor in (*layer.parameters(), *buffers.buffers()):
                if tensor.is_meta or tensor.dtype not in (torch.float32, torch.int64):
                    self.odd.append(f"{tensor.device} {tensor.dtype}")

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def test_two_compressions_in_threads_are_those_of_one_after_the_other(images: Tensor) -> None:
    models = [vit(0), vit(1)]
    expected = [compressed(model, images) for model in models]
    before, states = process_state()[:-1], [state_of(model) for model in models]
    for _ in range(ROUNDS):
        with LayerMaker() as maker:
            small = in_threads(*(lambda model=model: compressed(model, images) for model in models))
        assert all(identical(ours, theirs) for ours, theirs in zip(small, expected, strict=True))
        assert maker.made
        assert not maker.odd
    assert process_state()[:-1] == before
    assert [state_of(model) for model in models] == states


def test_a_model_that_two_threads_share_is_compressed_in_turns(images: Tensor) -> None:
    model = vit(0).train()
    model.vit.layers[0].eval()
    before, expected = state_of(model), compressed(model, images)
    assert all(identical(small, expected) for small in in_threads(*[lambda: compressed(model, images)] * 2))
    assert state_of(model) == before


def test_models_that_share_their_config_object_take_turns_too(images: Tensor) -> None:
    config = tiny_config()
    models = [seeded(ViTForImageClassification, config, seed) for seed in (0, 1)]
    before, expected = state_of(models[0]), [compressed(model, images) for model in models]
    small = in_threads(*(lambda model=model: compressed(model, images) for model in models))
    assert all(identical(ours, theirs) for ours, theirs in zip(small, expected, strict=True))
    assert state_of(models[0]) == before


def test_loading_in_threads_leaves_transformers_as_it_was(images: Tensor, tmp_path: Path) -> None:
    vit(0).to(torch.bfloat16).save_pretrained(tmp_path / "half")
    vit(1).save_pretrained(tmp_path / "whole")
    before = process_state()[:-1]
    for _ in range(ROUNDS):
        half, whole = in_threads(*(lambda name=name: load_model(tmp_path / name) for name in ("half", "whole")))
        assert (half.dtype, whole.dtype) == (torch.bfloat16, torch.float32)
    assert process_state()[:-1] == before


def test_a_compression_draws_no_random_number_and_changes_nothing_of_the_process(images: Tensor) -> None:
    model = vit(0).to(torch.bfloat16)
    before = process_state()
    small = compressed(model, images)
    to_dense(small)
    count_macs(small)
    assert process_state() == before


def test_layers_made_meanwhile_are_real_and_float32_though_the_model_is_not(images: Tensor) -> None:
    model = vit(0).to(torch.bfloat16)
    with LayerMaker() as maker:
        for _ in range(8):
            to_dense(model)
            count_macs(model)
    assert maker.made
    assert not maker.odd


@pytest.fixture(
    params=[(SwinForImageClassification, SwinConfig(**STAGES)), (CLIPVisionModel, CLIPVisionConfig(**VISION))],
    ids=["relative positions", "position ids"],
)
def with_unsaved_buffers(request: pytest.FixtureRequest) -> PreTrainedModel:
    return seeded(*request.param)


def test_buffers_that_no_checkpoint_holds_are_copied(with_unsaved_buffers: PreTrainedModel) -> None:
    model = with_unsaved_buffers
    unsaved = {name: buffer for name, buffer in model.named_buffers() if name not in model.state_dict()}
    assert unsaved
    dense = dict(to_dense(model).named_buffers())
    for name, buffer in unsaved.items():
        assert torch.equal(dense[name], buffer)
        assert dense[name].data_ptr() != buffer.data_ptr()


def test_a_turn_is_waited_for_and_may_be_nested() -> None:
    model, part = vit(0), vit(1)
    model.part = part
    order: list[str] = []
    inside, waiting = threading.Event(), threading.Event()

    def other() -> None:
        inside.wait()
        waiting.set()
        with own_turn(part):
            order.append("other")

    thread = threading.Thread(target=other)
    thread.start()
    with own_turn(model), evaluation_mode(part):
        inside.set()
        waiting.wait()
        thread.join(0.05)
        order.append("first")
    thread.join()
    assert order == ["first", "other"]


def test_a_copy_of_a_model_has_turns_of_its_own() -> None:
    model = vit(0)
    twin, done = copy.deepcopy(model), threading.Event()

    def other() -> None:
        with own_turn(twin):
            done.set()

    with own_turn(model):
        thread = threading.Thread(target=other)
        thread.start()
        assert done.wait(5)
        thread.join()
