"""The student's lessons: which loss, which parameters and which images."""

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import DeiTConfig, DeiTForImageClassification, PreTrainedModel, ViTForMaskedImageModeling, ViTModel

import hf_vitcompress.architectures.outputs
from hf_vitcompress.architectures.outputs import Term, divergence, outputs_of
from hf_vitcompress.architectures.subject import Subject
from hf_vitcompress.compensation.distillation import trained_parameters
from hf_vitcompress.durations import Duration
from hf_vitcompress.errors import CompensationWarning, DataError, DataWarning
from hf_vitcompress.images.augmentation import augment
from hf_vitcompress.images.images import Batch, ImageSource
from support.lessons import FIVE_EPOCHS, learn, lesson
from support.models import TINY, tiny_config
from support.students import Case, changed, checkpoint, lively, state_of
from support.zoo import HEADS

LABELS = [i % 5 for i in range(96)]


@pytest.fixture(scope="module")
def case() -> Case:
    """For tests that leave the dense model and the images alone."""
    return lesson()


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
        expected = float(
            divergence(outputs_of(Subject.alone(case.dense), images), outputs_of(Subject.alone(student), images)).sum()
        )
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
    assert teaching.gradients(2) == pytest.approx(float(mean.detach()), rel=1e-5)
    for name, parameter, gradient in zip(names, parameters, expected, strict=True):
        assert torch.allclose(parameter.grad, gradient, rtol=1e-4, atol=1e-7), name


def test_a_model_that_is_the_dense_one_has_nothing_to_learn() -> None:
    case = lesson(ranks={})
    student = case.student()
    teaching = case.distillation(student)
    assert teaching.gradients(0) == pytest.approx(0, abs=1e-6)
    assert all(parameter.grad.abs().max() < 1e-6 for parameter in teaching.trained.values())


# ---- what is trained


def test_factors_norms_and_biases_are_trained_and_nothing_else() -> None:
    case = lesson(ranks={"vit.layers.0.mlp.fc1": 4, "vit.layers.1.attention.v_proj": 3})
    names = set(trained_parameters(case.student()))
    factors = {
        f"{layer}.{group}.weight"
        for layer in ("vit.layers.0.mlp.fc1", "vit.layers.1.attention.v_proj")
        for group in ("up", "down")
    }
    norms = {f"vit.layers.{i}.layernorm_{side}.weight" for i in (0, 1) for side in ("before", "after")}
    biases = {name for name, _ in case.student().named_parameters() if name.endswith(".bias")}
    assert names == factors | norms | {"vit.layernorm.weight"} | biases
    assert {"classifier.bias", "vit.embeddings.patch_embeddings.projection.bias"} <= biases


def test_only_trained_parameters_change_and_all_of_them_do() -> None:
    case = lesson(ranks={"vit.layers.0.mlp.fc1": 2, "vit.layers.1.attention.v_proj": 2})
    student = case.student()
    before = state_of(student)
    points = case.distillation(student).run(FIVE_EPOCHS, checkpoint())
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
        take = teaching.gradients
        monkeypatch.setattr(teaching, "gradients", lambda step: take(step) if step < 7 else math.nan * take(step))
        with pytest.warns(CompensationWarning):
            teaching.run(FIVE_EPOCHS, checkpoint())
    else:
        teaching.run(FIVE_EPOCHS, checkpoint())
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
    points = teaching.run(FIVE_EPOCHS, checkpoint())
    assert points[-1].loss < points[0].loss - 0.05


def test_without_labels_their_weight_does_not_matter() -> None:
    with_weight, without = (learn(lesson(label_weight=weight))[0] for weight in (5.0, 0.0))
    assert not changed(state_of(with_weight), without)


def test_images_that_cannot_be_read_are_left_out() -> None:
    case = lesson()
    images = list(case.train.images)
    images[3:60:7] = [b"no image"] * len(images[3:60:7])
    case.train = ImageSource(images, None, "the images")
    with pytest.warns(DataWarning, match="9 of 72 images of the images cannot be read"):
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
        case.distillation(student).run(FIVE_EPOCHS, checkpoint())
    assert all(parameter.requires_grad for parameter in student.parameters())


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
    common = {"metric": "fisher", "keep_ratio": 0.3}
    case = lesson(dense=make_dense(), **{**common, **settings})
    student = case.student().float()
    points = case.distillation(student).run(Duration(10.0, "epochs"), checkpoint())
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
        terms = [
            outputs_of(Subject.alone(model), batch.pixel_values)[0].values.contiguous()
            for model in (case.dense, student)
        ]
    # Every seventh of 256 pixels, of 5 classes each.
    expected, everywhere = (
        float(divergence(*([Term(values[:, ::step])] for values in terms), 1.0, torch.float32).sum()) for step in (7, 1)
    )
    assert found == pytest.approx(expected, rel=1e-4)
    assert found != pytest.approx(everywhere, rel=1e-4)
