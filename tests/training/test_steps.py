"""Steps: which images in which order, how many of them in a given time, and gradients of several processes."""

import contextlib
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

import hf_vitcompress.training.steps
from hf_vitcompress.images.images import ImageSource
from hf_vitcompress.training.steps import TIMED_STEPS, Steps, sum_gradients
from support.students import random_images

LABELS = [i % 5 for i in range(72)]


def steps_over(images: Sequence[Any] | Tensor | None = None, batch_size: int = 16, seed: int = 0) -> Steps:
    """Over 72 labelled images by default, of which four steps see 64."""
    images = list(random_images(72) if images is None else images)
    source = ImageSource(images, LABELS[: len(images)], "the images")
    return Steps(source, None, batch_size, seed, Accelerator())


def name_of(image: Tensor) -> float:
    """Its first pixel."""
    return float(image[0, 0, 0])


def seen(steps: Steps, numbers: range) -> list[float]:
    return [name_of(image) for i in numbers for batch, _ in steps.own_part(i) for image in batch.pixel_values]


def several(monkeypatch: pytest.MonkeyPatch, index: int, count: int) -> Any:
    """An accelerator of one of several processes that never talk."""
    monkeypatch.setattr(hf_vitcompress.training.steps, "local_work", lambda *_: contextlib.nullcontext())
    return SimpleNamespace(process_index=index, num_processes=count, is_main_process=index == 0)


# ---- which images


def test_every_image_is_seen_once_an_epoch_in_another_order() -> None:
    images = random_images(64)
    steps = steps_over(images)
    first, second = seen(steps, range(4)), seen(steps, range(4, 8))
    assert sorted(first) == sorted(second) == sorted(name_of(image) for image in images)
    assert first != second


def test_images_of_several_shapes_are_seen_with_their_labels_and_draws() -> None:
    alike = random_images(64)
    mixed = [image if i % 3 else torch.cat([image, image], 2) for i, image in enumerate(alike)]
    ((whole, draws),) = steps_over(alike).own_part(1)
    parts = steps_over(mixed).own_part(1)
    assert len(parts) == 2
    expected = {name_of(image): about for image, *about in zip(whole.pixel_values, whole.labels, draws, strict=True)}
    found = [item for part, own in parts for item in zip(part.pixel_values, part.labels, own, strict=True)]
    assert {name_of(image): about for image, *about in found} == expected


def test_images_beyond_the_last_whole_batch_wait_for_another_epoch() -> None:
    steps = steps_over()
    once = seen(steps, range(4))
    assert len(once) == len(set(once)) == 64
    assert len(set(seen(steps, range(16)))) > 64


def test_a_batch_is_no_larger_than_there_are_images() -> None:
    steps = steps_over(batch_size=1000)
    assert (steps.batch_size, steps.per_epoch) == (72, 1)
    assert len(set(seen(steps, range(1)))) == 72


def test_images_and_draws_depend_on_seed_and_step_alone() -> None:
    steps = steps_over()
    ((batch, draws),) = steps.own_part(5)
    torch.manual_seed(7)
    again = steps_over()
    again.own_part(2)
    before = torch.get_rng_state()
    ((same, same_draws),) = again.own_part(5)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(batch.pixel_values, same.pixel_values)
    assert torch.equal(draws, same_draws)
    for others, number in ((steps, 6), (steps, 9), (steps_over(seed=1), 5)):
        ((another, other_draws),) = others.own_part(number)
        assert not torch.equal(draws, other_draws)
        assert not torch.equal(another.pixel_values, batch.pixel_values)


def test_labels_stay_with_their_images() -> None:
    label_of = {name_of(image): label for image, label in zip(random_images(72), LABELS, strict=True)}
    for batch, _ in steps_over().own_part(1):
        assert batch.labels is not None
        assert [label_of[name_of(image)] for image in batch.pixel_values] == batch.labels.tolist()


def test_unreadable_images_do_not_change_what_happens_to_the_others() -> None:
    ((whole, draws),) = steps_over().own_part(2)
    drawn = {name_of(image): draw for image, draw in zip(whole.pixel_values, draws, strict=True)}
    bad = list(drawn)[1:9:3]
    images = [b"no image" if name_of(image) in bad else image for image in random_images(72)]
    ((batch, draws),) = steps_over(images).own_part(2)
    assert len(batch.pixel_values) == 16 - 3
    for image, draw in zip(batch.pixel_values, draws, strict=True):
        assert torch.equal(drawn[name_of(image)], draw)


@pytest.mark.parametrize("count", [2, 3, 20])
def test_processes_share_a_step(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With more of them than images some have none."""
    ((whole, draws),) = steps_over().own_part(3)
    wanted = {name_of(image): draw for image, draw in zip(whole.pixel_values, draws, strict=True)}
    found: dict[float, Tensor] = {}
    for index in range(count):
        steps = steps_over()
        steps.accelerator = several(monkeypatch, index, count)
        for batch, own in steps.own_part(3):
            found |= {name_of(image): draw for image, draw in zip(batch.pixel_values, own, strict=True)}
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], draw) for name, draw in wanted.items())


# ---- how many


@pytest.mark.parametrize(("epochs", "count"), [(1, 4), (2.5, 10), (0.01, 1), (0.4, 2)])
def test_epochs_are_whole_steps_and_at_least_one(epochs: float, count: int) -> None:
    assert steps_over().in_epochs(epochs) == count


def test_the_time_of_a_step_decides_how_many_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    steps, optimizer = steps_over(), torch.optim.SGD([nn.Parameter(torch.ones(1))])
    monkeypatch.setattr(Steps, "seconds_of", lambda *_: 2.0)
    assert [steps.in_seconds(seconds, float, optimizer) for seconds in (61, 3, 1, -5)] == [30, 1, 1, 1]


def test_trials_leave_no_gradients_and_do_not_count() -> None:
    steps, parameter, taken = steps_over(batch_size=30), nn.Parameter(torch.ones(3)), []

    def gradients(step: int) -> float:
        assert parameter.grad is None
        parameter.grad = torch.ones(3)
        taken.append(step)
        return 0.0

    assert steps.seconds_of(gradients, torch.optim.SGD([parameter])) < 1
    assert taken == [trial % 2 for trial in range(TIMED_STEPS + 1)]
    assert parameter.grad is None
    assert torch.equal(parameter.detach(), torch.ones(3))


# ---- gradients


def test_gradients_are_summed_and_none_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        hf_vitcompress.training.steps, "sum_in_place", lambda _, tensors: [tensor.mul_(3) for tensor in tensors]
    )
    used, unused = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(4))
    used.grad = torch.arange(6.0).view(2, 3)
    sum_gradients(several(monkeypatch, 0, 3), [unused, used])
    assert torch.equal(used.grad, 3 * torch.arange(6.0).view(2, 3))
    assert torch.equal(unused.grad, torch.zeros(4))


def test_a_single_process_keeps_its_gradients() -> None:
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    used.grad = own = torch.ones(2)
    sum_gradients(Accelerator(), (parameter for parameter in (used, unused)))
    assert used.grad is own
    assert unused.grad is None
