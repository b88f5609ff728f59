"""The student's lessons: which loss, which parameters, which images in which order, and which state is kept."""

import copy
import math
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import DeiTConfig, DeiTForImageClassification, PreTrainedModel, ViTForMaskedImageModeling, ViTModel

import hf_vitcompress.compensation.distillation
from hf_vitcompress.architectures.outputs import Term, divergence, outputs_of
from hf_vitcompress.compensation.course import CompensationPoint
from hf_vitcompress.compensation.distillation import EVALUATIONS, PATIENCE, Distillation, State, trained_parameters
from hf_vitcompress.errors import CompensationError, DataError
from hf_vitcompress.evaluation.reference import Reference
from hf_vitcompress.images.augmentation import augment
from hf_vitcompress.images.images import Batch, ImageSource
from hf_vitcompress.training.steps import Steps
from support.models import TINY, tiny_config
from support.students import Case, changed, checkpoint, compressed, lively, state_of
from support.zoo import HEADS

LESSONS = {
    "metric": "activation",
    "compensation_duration": "5 epochs",
    "distill_batch_size": 16,
    "learning_rate": 1e-3,
    "feature_weight": 1.0,
}
LABELS = [i % 5 for i in range(96)]


def lesson(**settings: Any) -> Case:
    return compressed(**{**LESSONS, **settings})


@pytest.fixture(scope="module")
def case() -> Case:
    """For tests that leave the dense model and the images alone."""
    return lesson()


def learn(case: Case, path: Path | None = None) -> tuple[PreTrainedModel, list[CompensationPoint]]:
    student = case.student()
    return student, case.distillation(student).run(None, checkpoint(path), progress=False)


def judged(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> list[dict[str, Tensor]]:
    """The held-out images say this; the list gets the states that they were asked about."""
    left, states = list(losses), []

    def loss_of(_: Reference, model: PreTrainedModel) -> float:
        states.append(state_of(model))
        return left.pop(0)

    monkeypatch.setattr(Reference, "loss_of", loss_of)
    return states


def counted(monkeypatch: pytest.MonkeyPatch, stop_before: int = -1) -> list[int]:
    """The steps that are taken; the one of number `stop_before` breaks off."""
    steps: list[int] = []
    take = Distillation._step

    def taking(self: Distillation, step: int) -> float:
        if step == stop_before:
            raise KeyboardInterrupt
        steps.append(step)
        return take(self, step)

    monkeypatch.setattr(Distillation, "_step", taking)
    return steps


def comparable(points: list[CompensationPoint]) -> list[tuple[str, int, float]]:
    return [(point.stage, point.images, point.loss) for point in points]


# ---- the loss


def in_float64(model: PreTrainedModel, blocks: list[int], pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Output and the hidden states after these blocks."""
    model = copy.deepcopy(model).double()
    hidden: list[Tensor] = []
    for i in blocks:
        base = getattr(model, model.base_model_prefix, model)
        base.layers[i].register_forward_hook(lambda _, __, output: hidden.append(output))
    result = model(pixel_values=pixels.double())
    return (result["logits"] if "logits" in result else result["last_hidden_state"].flatten(1)), hidden


def expected_loss(case: Case, student: PreTrainedModel, blocks: list[int], batch: Batch, draws: Tensor) -> Tensor:
    config = case.config
    pixels = augment(batch.pixel_values, draws, config.augmentation)
    z, h = in_float64(case.dense, blocks, pixels)
    z_hat, h_hat = in_float64(student, blocks, pixels)
    t, total = config.temperature, torch.zeros((), dtype=torch.float64)
    for i in range(len(pixels)):
        if case.reference.classes:
            p, q = (z[i] / t).softmax(-1), (z_hat[i] / t).softmax(-1)
            total = total + t**2 * (p * (p / q).log()).sum()
            if batch.labels is not None:
                total = total - config.label_weight * z_hat[i].log_softmax(-1)[batch.labels[i]]
        else:
            total = total + (z_hat[i] - z[i]).square().sum() / z[i].square().sum() / 2
        for taught, learnt in zip(h, h_hat, strict=True):
            size = taught.shape[-1:]
            difference = functional.layer_norm(learnt[i], size) - functional.layer_norm(taught[i], size)
            total = total + config.feature_weight * difference.square().mean() / len(blocks)
    return total


LOSSES: dict[str, dict[str, Any]] = {
    "plain": {},
    "warm": {"temperature": 3.0},
    "cold": {"temperature": 0.5},
    "no features": {"feature_weight": 0.0},
    "features above all": {"feature_weight": 100.0},
    "labels": {"label_weight": 0.7, "temperature": 2.0},
    "labels without weight": {"label_weight": 0.0},
    "weight without labels": {"label_weight": 0.7, "labels": None},
    "images as they are": {"augmentation": False},
}


@pytest.mark.parametrize("settings", LOSSES.values(), ids=LOSSES)
def test_the_loss_is_the_formula(settings: dict[str, Any]) -> None:
    case = lesson(dense=lively(config=tiny_config(num_hidden_layers=6)), **{"labels": LABELS, **settings})
    student = case.student()
    teaching = case.distillation(student)
    ((batch, draws),) = teaching.steps.own_part(3)
    blocks = [] if case.config.feature_weight == 0 else [1, 2, 4, 5]
    expected = expected_loss(case, student, blocks, batch, draws)
    assert float(teaching._loss(batch, draws).detach()) == pytest.approx(float(expected.detach()), rel=1e-4)


@pytest.mark.parametrize(
    ("count", "blocks"), [(1, [0]), (2, [0, 1]), (3, [0, 1, 2]), (5, [1, 2, 3, 4]), (12, [2, 5, 8, 11])]
)
def test_evenly_spaced_hidden_states_are_compared_the_last_among_them(count: int, blocks: list[int]) -> None:
    case = lesson(dense=lively(config=tiny_config(num_hidden_layers=count)), metric="weight")
    assert case.distillation(case.student()).compared == [f"vit.layers.{i}" for i in blocks]


def test_a_model_without_classes_has_its_output_instead_of_logits() -> None:
    case = lesson(dense=lively(ViTModel))
    student = case.student()
    teaching = case.distillation(student)
    ((batch, draws),) = teaching.steps.own_part(0)
    expected = expected_loss(case, student, [0, 1], batch, draws)
    assert float(teaching._loss(batch, draws).detach()) == pytest.approx(float(expected.detach()), rel=1e-4)


@pytest.mark.parametrize("name", ["YolosForObjectDetection", "BeitForSemanticSegmentation", "Siglip2VisionModel"])
def test_a_model_that_says_more_learns_all_of_it(name: str) -> None:
    head = next(head for head in HEADS if head.name == name)
    case = lesson(dense=head.dense(), images=head.pixels(48), feature_weight=0.0, keep_ratio=0.8)
    student = case.student()
    teaching = case.distillation(student)
    ((batch, draws),) = teaching.steps.own_part(0)
    images = augment(batch.pixel_values, draws, mirror=True)
    with torch.no_grad():
        expected = float(divergence(outputs_of(case.dense, images), outputs_of(student, images)).sum())
        assert expected > 1e-5
        assert float(teaching._loss(batch, draws)) == pytest.approx(expected, rel=1e-2)


def test_a_step_has_the_gradients_of_the_mean_loss() -> None:
    case = lesson(label_weight=0.3, labels=LABELS)
    student = case.student()
    teaching = case.distillation(student)
    ((batch, draws),) = teaching.steps.own_part(2)
    names, parameters = zip(*teaching.trained.items(), strict=True)
    mean = teaching._loss(batch, draws) / 16
    expected = torch.autograd.grad(mean, parameters)
    assert teaching._step(2) == pytest.approx(float(mean.detach()), rel=1e-5)
    for name, parameter, gradient in zip(names, parameters, expected, strict=True):
        assert torch.allclose(parameter.grad, gradient, rtol=1e-4, atol=1e-7), name


def test_a_model_that_is_the_dense_one_has_nothing_to_learn() -> None:
    case = lesson(ranks={})
    student = case.student()
    teaching = case.distillation(student)
    assert teaching._step(0) == pytest.approx(0, abs=1e-6)
    assert all(parameter.grad.abs().max() < 1e-6 for parameter in teaching.trained.values())


# ---- what is trained


def test_factors_norms_and_biases_are_trained_and_nothing_else() -> None:
    case = lesson(ranks={"vit.layers.0.mlp.fc1": 4, "vit.layers.1.attention.v_proj": 3})
    names = set(trained_parameters(case.student()))
    factors = {
        f"{layer}.{part}.weight"
        for layer in ("vit.layers.0.mlp.fc1", "vit.layers.1.attention.v_proj")
        for part in ("up", "down")
    }
    norms = {f"vit.layers.{i}.layernorm_{side}.weight" for i in (0, 1) for side in ("before", "after")}
    biases = {name for name, _ in case.student().named_parameters() if name.endswith(".bias")}
    assert names == factors | norms | {"vit.layernorm.weight"} | biases
    assert {"classifier.bias", "vit.embeddings.patch_embeddings.projection.bias"} <= biases


def test_only_trained_parameters_change_and_all_of_them_do() -> None:
    case = lesson(ranks={"vit.layers.0.mlp.fc1": 2, "vit.layers.1.attention.v_proj": 2})
    student = case.student()
    before = state_of(student)
    points = case.distillation(student).run(None, checkpoint(), progress=False)
    assert min(point.loss for point in points) < points[0].loss
    useless = {f"vit.layers.{i}.attention.k_proj.bias" for i in (0, 1)}  # softmax does not see them
    assert changed(before, student) | useless == set(trained_parameters(student))


def test_the_dense_model_stays_as_it_was() -> None:
    case = lesson()
    case.dense.train()
    case.dense.vit.layers[1].eval()
    case.dense.classifier.requires_grad_(False)
    before, attention = state_of(case.dense), case.dense.config._attn_implementation
    learn(case)
    assert not changed(before, case.dense)
    assert case.dense.training
    assert not case.dense.vit.layers[1].training
    wanted = {name: parameter.requires_grad for name, parameter in case.dense.named_parameters()}
    assert {name for name, value in wanted.items() if not value} == {"classifier.weight", "classifier.bias"}
    assert all(parameter.grad is None for parameter in case.dense.parameters())
    assert case.dense.config._attn_implementation == attention


@pytest.mark.parametrize("fails", [False, True])
def test_the_student_keeps_its_modes_and_no_gradients(fails: bool, monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    student = case.student().train()
    student.vit.layers[0].eval()
    student.vit.embeddings.requires_grad_(False)
    before, attention = {n: p.requires_grad for n, p in student.named_parameters()}, student.config._attn_implementation
    teaching = case.distillation(student)
    if fails:
        take = teaching._step
        monkeypatch.setattr(teaching, "_step", lambda step: take(step) if step < 7 else math.nan * take(step))
        with pytest.raises(CompensationError):
            teaching.run(None, checkpoint(), progress=False)
    else:
        teaching.run(None, checkpoint(), progress=False)
    assert {name: parameter.requires_grad for name, parameter in student.named_parameters()} == before
    assert student.training
    assert not student.vit.layers[0].training
    assert student.config._attn_implementation == attention
    assert all(parameter.grad is None for parameter in student.parameters())


def test_no_hooks_are_left_and_both_models_can_be_pickled() -> None:
    case = lesson(ranks={"vit.layers.0.mlp.fc1": 2})
    student, _ = learn(case)
    for model in (case.dense, student):
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        pickle.dumps(model)


# ---- which state is kept


def test_the_held_out_loss_clearly_falls_where_much_was_lost() -> None:
    case = lesson(metric="fisher", keep_ratio=0.3, compensation_duration="20 epochs")
    student, points = learn(case)
    assert case.reference.loss_of(student) < 0.6 * points[0].loss
    assert [point.stage for point in points] == ["distill"] * len(points)
    assert [point.seconds for point in points] == sorted(point.seconds for point in points)


@pytest.mark.parametrize("learning_rate", [1e-4, 1e-2, 1.0, 100.0])
def test_the_best_state_is_the_one_that_is_kept(learning_rate: float) -> None:
    case = lesson(learning_rate=learning_rate)
    before = case.reference.loss_of(case.student())
    student, points = learn(case)
    after = case.reference.loss_of(student)
    assert after == pytest.approx(min(point.loss for point in points), rel=1e-4)
    assert points[0].loss == pytest.approx(before, rel=1e-4)
    assert after <= before * (1 + 1e-4)


@pytest.mark.parametrize("best", [0, 1, 4, 10])
def test_any_of_the_judged_states_can_be_the_best(best: int, monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    monkeypatch.setattr(hf_vitcompress.compensation.distillation, "PATIENCE", 99)
    states = judged(monkeypatch, [1.0 + abs(i - best) for i in range(11)])
    student, points = learn(case)
    assert len(points) == 11
    assert not changed(states[best], student)
    assert best == 10 or changed(states[10], student)


def test_a_huge_learning_rate_leaves_the_model_as_it_was() -> None:
    case = lesson(learning_rate=100.0)
    student, points = learn(case)
    assert min(point.loss for point in points[1:]) > points[0].loss
    assert not changed(state_of(case.student()), student)


def test_it_stops_in_the_second_half_where_the_loss_only_rises(monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    states, steps = judged(monkeypatch, [1.0 + 0.1 * i for i in range(11)]), counted(monkeypatch)
    student, points = learn(case)
    assert len(points) == 1 + EVALUATIONS // 2
    assert len(steps) == EVALUATIONS  # two steps lie between evaluations
    assert not changed(states[0], student)


@pytest.mark.parametrize(
    ("losses", "step", "stopped"),
    [
        ([1.0], 100, False),
        ([1.0 + i for i in range(PATIENCE)], 100, False),
        ([1.0 + i for i in range(PATIENCE + 1)], 50, True),
        ([1.0 + i for i in range(PATIENCE + 1)], 49, False),
        ([1.0] + [2.0] * PATIENCE, 100, False),
        ([3.0, 2.0, 1.0] + [1.1 + i for i in range(PATIENCE)], 60, True),
        ([1.0 + i for i in range(PATIENCE)] + [1.5], 60, False),
    ],
)
def test_patience_counts_rises_in_the_second_half(losses: list[float], step: int, stopped: bool) -> None:
    points = [CompensationPoint("distill", 0.0, 0, loss) for loss in losses]
    assert State(100, step=step, points=points).stopped == stopped


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_it_in_the_best_state(
    loss: float, monkeypatch: pytest.MonkeyPatch, case: Case
) -> None:
    states = judged(monkeypatch, [1.0, 0.9, 0.8, 0.85])
    student = case.student()
    teaching = case.distillation(student)
    take = teaching._step
    monkeypatch.setattr(teaching, "_step", lambda step: take(step) if step < 7 else loss)
    with pytest.raises(CompensationError, match=r"after 7 steps; the best state.*Lower learning_rate \(0\.001\)"):
        teaching.run(None, checkpoint(), progress=False)
    assert not changed(states[2], student)


def test_a_learning_rate_beyond_all_measure_is_named() -> None:
    case = lesson(learning_rate=1e30)
    student = case.student()
    before = state_of(student)
    with pytest.raises(CompensationError, match=r"Lower learning_rate \(1e\+30\)"):
        case.distillation(student).run(None, checkpoint(), progress=False)
    assert not changed(before, student)


# ---- how long


@pytest.mark.parametrize(("epochs", "steps"), [(1, 4), (2.5, 10), (0.01, 1), (0.4, 2), (5, 20)])
def test_epochs_decide_the_number_of_steps(epochs: float, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = lesson(compensation_duration=f"{epochs} epochs")
    monkeypatch.setattr(hf_vitcompress.compensation.distillation, "PATIENCE", 99)
    taken = counted(monkeypatch)
    _, points = learn(case)
    assert taken == list(range(steps))
    assert points[0].images == 0
    assert points[-1].images == 16 * steps
    assert len(points) == 1 + min(steps, 10)


def test_without_epochs_or_minutes_it_is_one_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    case = lesson(compensation_duration=None)
    taken = counted(monkeypatch)
    learn(case)
    assert len(taken) == 4


def test_a_batch_is_no_larger_than_there_are_images(monkeypatch: pytest.MonkeyPatch) -> None:
    case = lesson(distill_batch_size=1000, compensation_duration="3 epochs")
    taken = counted(monkeypatch)
    _, points = learn(case)
    assert len(taken) == 3
    assert points[-1].images == 3 * 72


def test_minutes_are_about_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    case, minutes = lesson(compensation_duration=None), 0.03
    monkeypatch.setattr(hf_vitcompress.compensation.distillation, "PATIENCE", 99)
    taken = []
    for _ in range(3):  # a busy machine may be slower than it was when the steps were counted
        start = time.perf_counter()
        case.distillation(case.student()).run(minutes, checkpoint(), progress=False)
        taken.append((time.perf_counter() - start) / (60 * minutes))
        if 0.3 < taken[-1] < 2:
            return
    pytest.fail(f"it took {taken} of the time")


def test_no_time_left_is_still_a_step(monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    student = case.student()
    points = case.distillation(student).run(-1.0, checkpoint(), progress=False)
    assert [point.images for point in points] == [0, 16]


def test_a_machine_that_has_become_slow_does_not_go_on_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = lesson(compensation_duration=None)
    take = Distillation._step
    monkeypatch.setattr(Steps, "seconds_of", lambda *_: 0.001)
    monkeypatch.setattr(Distillation, "_step", lambda self, step: time.sleep(0.005) or take(self, step))
    monkeypatch.setattr(hf_vitcompress.compensation.distillation, "PATIENCE", 99)
    student = case.student()
    stage = checkpoint(tmp_path / "stage")
    points = case.distillation(student).run(0.005, stage, progress=False)  # 300 steps are planned
    assert points[-1].images <= 16 * 90
    assert case.distillation(case.student()).run(0.005, stage, progress=False) == points
    assert case.reference.loss_of(student) <= points[0].loss * (1 + 1e-4)


# ---- which images


def test_labels_are_learnt_where_there_are_any() -> None:
    case = lesson(labels=[0] * 96, label_weight=10.0, ranks={"vit.layers.0.mlp.fc1": 2})
    student = case.student()
    teaching = case.distillation(student)
    teaching.reference.loss_of = lambda model: (
        -float(  # type: ignore[method-assign]
            model(pixel_values=torch.stack(list(case.train.images))).logits.softmax(-1)[:, 0].mean().detach()
        )
    )
    points = teaching.run(None, checkpoint(), progress=False)
    assert points[-1].loss < points[0].loss - 0.05


def test_without_labels_their_weight_does_not_matter() -> None:
    with_weight, without = (learn(lesson(label_weight=weight))[0] for weight in (5.0, 0.0))
    assert not changed(state_of(with_weight), without)


def test_images_that_cannot_be_read_are_left_out() -> None:
    case = lesson()
    images = list(case.train.images)
    images[3:60:7] = [b"no image"] * len(images[3:60:7])
    case.train = ImageSource(images, None, "the images")
    student, points = learn(case)
    assert case.reference.loss_of(student) < points[0].loss
    steps = [
        len(batch.pixel_values) for step in range(4) for batch, _ in case.distillation(student).steps.own_part(step)
    ]
    assert sum(steps) < 64


def test_an_unreadable_image_ends_it_where_it_is_to() -> None:
    case = lesson()
    images = list(case.train.images)
    images[40] = b"no image"
    case.train = ImageSource(images, None, "the images", on_bad_image="error")
    student = case.student()
    with pytest.raises(DataError, match="Cannot read image"):
        case.distillation(student).run(None, checkpoint(), progress=False)
    assert all(parameter.requires_grad for parameter in student.parameters())


# ---- interruptions


def test_two_runs_are_alike_to_the_bit() -> None:
    case = lesson()
    torch.manual_seed(0)
    first, first_points = learn(case)
    torch.manual_seed(1)
    second, second_points = learn(case)
    assert not changed(state_of(first), second)
    assert comparable(first_points) == comparable(second_points)


def test_the_global_random_state_is_left_alone(case: Case) -> None:
    teaching = case.distillation(case.student())
    before = torch.get_rng_state()
    teaching.run(None, checkpoint(), progress=False)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("seconds", [0.0, 1e9], ids=["often", "at evaluations"])
@pytest.mark.parametrize("stop_before", [0, 7, 19])
def test_a_run_that_was_interrupted_ends_like_one_that_was_not(
    stop_before: int, seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = lesson()  # 20 steps, evaluated after every second one
    monkeypatch.setattr(hf_vitcompress.compensation.distillation, "CHECKPOINT_SECONDS", seconds)
    monkeypatch.setattr(hf_vitcompress.compensation.distillation, "PATIENCE", 99)
    whole, expected = learn(case)
    with monkeypatch.context() as patch:
        counted(patch, stop_before)
        with pytest.raises(KeyboardInterrupt):
            learn(case, tmp_path / "stage")
    steps = counted(monkeypatch)
    student, points = learn(case, tmp_path / "stage")
    assert steps
    assert stop_before - 2 < steps[0] <= stop_before
    assert not changed(state_of(whole), student)
    assert comparable(points) == comparable(expected)


def test_an_interruption_while_judging_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: Case
) -> None:
    monkeypatch.setattr(hf_vitcompress.compensation.distillation, "PATIENCE", 99)
    whole, expected = learn(case)
    asked = Reference.loss_of
    for stop_at in (0, 1, 4):
        left = [stop_at]

        def loss_of(self: Reference, model: PreTrainedModel, left: list[int] = left) -> float:
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            return asked(self, model)

        with monkeypatch.context() as patch:
            patch.setattr(Reference, "loss_of", loss_of)
            with pytest.raises(KeyboardInterrupt):
                learn(case, tmp_path / "stage")
    student, points = learn(case, tmp_path / "stage")
    assert not changed(state_of(whole), student)
    assert comparable(points) == comparable(expected)


@pytest.mark.parametrize("losses", [[1.0 + 0.1 * i for i in range(11)], [1.0 - 0.05 * i for i in range(11)]])
def test_a_finished_run_is_not_run_again(
    losses: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: Case
) -> None:
    judged(monkeypatch, losses)
    first, points = learn(case, tmp_path / "stage")
    counted(monkeypatch, stop_before=0)
    second, again = learn(case, tmp_path / "stage")
    assert again == points
    assert not changed(state_of(first), second)


def test_a_run_of_minutes_goes_on_with_the_steps_that_were_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = lesson(compensation_duration=None)
    monkeypatch.setattr(Steps, "seconds_of", lambda *_: 2.0)
    stage = tmp_path / "stage"
    with monkeypatch.context() as patch:
        counted(patch, stop_before=9)
        with pytest.raises(KeyboardInterrupt):
            case.distillation(case.student()).run(1.0, checkpoint(stage), progress=False)
    saved = checkpoint(stage).load()
    assert saved is not None
    monkeypatch.setattr(Steps, "seconds_of", lambda *_: 1e9)
    monkeypatch.setattr(hf_vitcompress.compensation.distillation, "PATIENCE", 99)
    points = case.distillation(case.student()).run(1.0, checkpoint(stage), progress=False)
    assert points[-1].images == 16 * saved["state"]["total_steps"] > 16 * 9


# ---- other models

OTHERS: dict[str, tuple[Callable[[], PreTrainedModel], dict[str, Any]]] = {
    "headless": (lambda: lively(ViTModel), {}),
    "headless, hidden states only": (lambda: lively(ViTModel), {"feature_weight": 100.0}),
    "masked images": (lambda: lively(ViTForMaskedImageModeling, tiny_config(encoder_stride=4)), {}),
    "DeiT": (lambda: lively(DeiTForImageClassification, DeiTConfig(**TINY)), {}),
    "dense model in half precision": (lambda: lively().to(torch.bfloat16), {"metric": "activation"}),
    "bfloat16 arithmetic": (lively, {"precision": "bfloat16"}),
}


@pytest.mark.parametrize(("make_dense", "settings"), OTHERS.values(), ids=OTHERS)
def test_other_models_and_arithmetics_learn(
    make_dense: Callable[[], PreTrainedModel], settings: dict[str, Any]
) -> None:
    common = {"metric": "fisher", "keep_ratio": 0.3, "compensation_duration": "10 epochs"}
    case = lesson(dense=make_dense(), **{**common, **settings})
    student = case.student().float()
    points = case.distillation(student).run(None, checkpoint(), progress=False)
    assert min(point.loss for point in points) < 0.9 * points[0].loss
    assert case.reference.loss_of(student) < points[0].loss


def test_of_many_pixels_a_part_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    head = next(head for head in HEADS if head.name == "BeitForSemanticSegmentation")
    case = lesson(dense=head.dense(), images=head.pixels(48), feature_weight=0.0, augmentation=False, keep_ratio=0.8)
    monkeypatch.setattr(hf_vitcompress.architectures.outputs, "CLASS_VALUES", 200)
    student = case.student()
    teaching = case.distillation(student)
    ((batch, draws),) = teaching.steps.own_part(0)
    with torch.no_grad():
        found = float(teaching._loss(batch, draws))
        terms = [outputs_of(model, batch.pixel_values)[0].values.contiguous() for model in (case.dense, student)]
    # Every seventh of 256 pixels, of 5 classes each.
    expected, everywhere = (
        float(divergence(*([Term(values[:, ::step])] for values in terms), 1.0, torch.float32).sum()) for step in (7, 1)
    )
    assert found == pytest.approx(expected, rel=1e-4)
    assert found != pytest.approx(everywhere, rel=1e-4)
