"""What a result means, and losses of it against formulas written out here."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import ViTForImageClassification, ViTModel

from hf_vitcompress.architectures import outputs
from hf_vitcompress.architectures.outputs import (
    Term,
    agreement,
    class_logits,
    divergence,
    is_classifier,
    outputs_of,
    read_outputs,
    thinned,
    thinned_classes,
)
from hf_vitcompress.architectures.subject import Subject
from hf_vitcompress.errors import UnsupportedModelError
from hf_vitcompress.statistics.fisher_probes import probe_losses
from support.models import seeded, tiny_config
from support.moments import relative
from support.zoo import HEADS, Head


def head_named(name: str) -> Head:
    return next(head for head in HEADS if head.name == name)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def classes(logits: Tensor) -> Term:
    """Of one item."""
    return Term(logits[:, None])


# Reading


CLASSES = {  # (items, classes)
    "ForImageClassification": (1, 5),
    "BeitForSemanticSegmentation": (16 * 16, 5),
    "Data2VecVisionForSemanticSegmentation": (16 * 16, 5),
    "DPTForSemanticSegmentation": (64 * 64, 5),
    "UperNetForSemanticSegmentation": (32 * 32, 5),
    "BeitForMaskedImageModeling": (16, 8192),
    "YolosForObjectDetection": (5, 6),
}
FEATURES = {  # one number a term
    "YolosForObjectDetection": [5 * 4],
    "ViTForMaskedImageModeling": [3 * 16 * 16],
    "DeiTForMaskedImageModeling": [3 * 16 * 16],
    "SwinForMaskedImageModeling": [3 * 32 * 32],
    "Swinv2ForMaskedImageModeling": [3 * 32 * 32],
    "ViTMAEForPreTraining": [16 * 48],
    "DPTForDepthEstimation": [64 * 64],
    "DepthAnythingForDepthEstimation": [16 * 16],
    "CLIPVisionModelWithProjection": [16],
    "CLIPVisionModel": [17 * 32, 32],
    "SiglipVisionModel": [16 * 32, 32],
    "Siglip2VisionModel": [16 * 32, 32],
    "ViTModel": [17 * 32],
    "SwinModel": [64 * 32],
    "DPTModel": [17 * 32],
    "Dinov2Backbone": [16 * 32, 16 * 32],
    "BeitBackbone": [16 * 32, 16 * 32],
}


@pytest.mark.parametrize("head", HEADS, ids=str)
def test_every_head_is_read(head: Head) -> None:
    model = head.dense()
    with torch.no_grad():
        terms = outputs_of(Subject.alone(model), head.pixels(2))
    logits = [tuple(term.values.shape[1:]) for term in terms if term.classes]
    expected = next((shape for name, shape in CLASSES.items() if name in head.name), None)
    assert logits == ([] if expected is None else [expected])
    numbers = [term.values.shape[1] for term in terms if not term.classes]
    if head.name in FEATURES:
        assert numbers == FEATURES[head.name]
    elif expected is None:
        assert numbers
    assert is_classifier(model) == ("ForImageClassification" in head.name)
    assert all(len(term) == 2 and term.values.dtype == torch.float32 for term in terms)


def test_pixels_of_a_segmentation_keep_their_logits() -> None:
    head = head_named("BeitForSemanticSegmentation")
    model, pixels = head.dense(), head.pixels(2)
    with torch.no_grad():
        logits = model(pixel_values=pixels).logits
        (term,) = outputs_of(Subject.alone(model), pixels)
    assert torch.equal(term.values[1, 3 * 16 + 5], logits[1, :, 3, 5])


def test_a_box_counts_as_far_as_its_query_holds_an_object() -> None:
    head = head_named("YolosForObjectDetection")
    model, pixels = head.dense(), head.pixels(2)
    with torch.no_grad():
        result = model(pixel_values=pixels)
        logits, boxes = outputs_of(Subject.alone(model), pixels)
    assert torch.equal(logits.values, result.logits)
    assert torch.equal(boxes.values[1, 4 * 3 : 4 * 4], result.pred_boxes[1, 3])
    assert boxes.weight is not None
    held = result.logits[1, 3].softmax(-1)[:5].sum()
    assert boxes.weight[1, 4 * 3 : 4 * 4].tolist() == pytest.approx([float(held)] * 4, rel=1e-5)


def test_a_masked_autoencoder_is_judged_where_it_masked() -> None:
    head = head_named("ViTMAEForPreTraining")
    model, pixels = head.dense(), head.pixels(3)
    with torch.no_grad():
        result = model(pixel_values=pixels, noise=torch.rand(3, 16, generator=generator()))
    (term,) = read_outputs(Subject.alone(model), result)
    values = term.values.unflatten(1, (16, 48))
    assert torch.equal(values[result.mask == 1], result.logits[result.mask == 1])
    assert (values[result.mask == 0] == 0).all()
    assert 0 < result.mask.sum() < result.mask.numel()


@pytest.mark.parametrize(
    ("problem", "classifier", "shape"),
    [
        (None, True, (1, 5)),
        ("single_label_classification", True, (1, 5)),
        ("multi_label_classification", False, (5, 2)),
        ("regression", False, (5,)),
    ],
)
def test_logits_mean_what_the_problem_says(problem: str, classifier: bool, shape: tuple[int, ...], vit: Any) -> None:
    vit.config.problem_type = problem
    (term,) = outputs_of(Subject.alone(vit), torch.randn(2, 3, 16, 16, generator=generator()))
    assert is_classifier(vit) == classifier
    assert term.values.shape[1:] == shape
    if problem == "multi_label_classification":
        logits = vit(pixel_values=torch.randn(2, 3, 16, 16, generator=generator())).logits
        assert torch.allclose(term.values.softmax(-1)[..., 1], logits.sigmoid())


@pytest.mark.parametrize("problem", [None, "regression"])
def test_a_single_number_is_predicted_and_no_class(problem: str | None) -> None:
    model = seeded(ViTForImageClassification, tiny_config(num_labels=1, problem_type=problem))
    (term,) = outputs_of(Subject.alone(model), torch.randn(2, 3, 16, 16, generator=generator()))
    assert not is_classifier(model)
    assert term.values.shape == (2, 1)


class Unheard(ViTModel):
    """A head that no table knows."""


@pytest.mark.parametrize(
    ("result", "shapes"),
    [
        ({"logits": torch.zeros(2, 7)}, [(2, 1, 7)]),
        ({"logits": torch.zeros(2, 1)}, [(2, 1)]),
        ({"logits": torch.zeros(2, 7, 3)}, [(2, 21)]),
        ({"last_hidden_state": torch.zeros(2, 4, 3), "pooler_output": torch.zeros(2, 3)}, [(2, 12)]),
        ({"loss": torch.zeros(()), "keypoints": torch.zeros(2, 4), "scores": torch.zeros(2, 2, 2)}, [(2, 4), (2, 4)]),
        ({"mask": torch.zeros(2, 4).long(), "embedding": torch.zeros(2, 5)}, [(2, 5)]),
    ],
)
def test_other_results_are_classes_or_features(result: dict[str, Tensor], shapes: list[tuple[int, ...]]) -> None:
    terms = read_outputs(Subject.alone(Unheard(tiny_config())), result)
    assert [tuple(term.values.shape) for term in terms] == shapes


@pytest.mark.parametrize("result", [{"loss": torch.zeros(())}, {"boxes": [1, 2]}, (torch.zeros(2, 3),)])
def test_a_result_that_holds_nothing_usable_is_named(result: Any) -> None:
    with pytest.raises(UnsupportedModelError, match="Unheard returns nothing") as caught:
        read_outputs(Subject.alone(Unheard(tiny_config())), result)
    assert (next(iter(result)) if isinstance(result, dict) else "tuple") in str(caught.value)


def test_a_known_head_without_its_output_is_named() -> None:
    with pytest.raises(UnsupportedModelError, match="ViTForImageClassification"):
        read_outputs(
            Subject.alone(seeded(ViTForImageClassification, tiny_config())), {"last_hidden_state": torch.zeros(2, 3)}
        )


def test_padding_does_not_count() -> None:
    head = head_named("Siglip2VisionModel")
    model, pixels = head.dense(), head.pixels(3)
    mask = torch.ones(3, 16, dtype=torch.int64)
    mask[1, 10:] = 0
    extra = {"pixel_attention_mask": mask, "spatial_shapes": torch.tensor([[4, 4], [2, 5], [4, 4]])}
    with torch.no_grad():
        terms = outputs_of(Subject.alone(model), pixels, extra)
        other = outputs_of(Subject.alone(model), torch.where(mask.bool()[..., None], pixels, 5.0), extra)
        without = outputs_of(Subject.alone(model), pixels[1:2, :10], {"spatial_shapes": torch.tensor([[2, 5]])})
    assert (terms[0].values.unflatten(1, (16, 32))[1, 10:] == 0).all()
    assert divergence(terms, other).max() < 1e-10
    assert relative(terms[0].values[1, : 10 * 32], without[0].values[0]) < 1e-5
    assert relative(terms[1].values[1], without[1].values[0]) < 1e-5


# Divergence


def random_terms(images: int, seed: int, dtype: torch.dtype = torch.float64) -> list[Term]:
    """Classes of three items, and features with weights."""
    draw = generator(seed)
    logits = 2 * torch.randn(images, 3, 4, generator=draw, dtype=dtype)
    boxes = torch.randn(images, 6, generator=draw, dtype=dtype)
    return [Term(logits), Term(boxes, torch.rand(images, 6, generator=draw, dtype=dtype))]


def test_the_divergence_is_the_formula() -> None:
    ours, theirs = random_terms(5, 0), random_terms(5, 1)
    found = divergence(ours, theirs)
    for image in range(5):
        p, q = ours[0].values[image].softmax(-1), theirs[0].values[image].softmax(-1)
        expected = sum(float((p[item] * (p[item] / q[item]).log()).sum()) for item in range(3)) / 3
        y, y_hat, w = ours[1].values[image], theirs[1].values[image], ours[1].weight[image]
        expected += float((w * (y_hat - y) ** 2).sum() / (y**2).sum()) / 2
        assert float(found[image]) == pytest.approx(expected, rel=1e-9)
    assert divergence(ours, ours).abs().max() < 1e-12


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_temperature_softens_classes_alone(temperature: float) -> None:
    ours, theirs = random_terms(5, 0), random_terms(5, 1)
    softened = [[Term(terms[0].values / temperature)] for terms in (ours, theirs)]
    expected = temperature**2 * divergence(*softened) + divergence(ours[1:], theirs[1:])
    assert relative(divergence(ours, theirs, temperature), expected) < 1e-9


def test_an_image_of_zeros_has_a_finite_error() -> None:
    error = divergence([Term(torch.zeros(1, 4))], [Term(torch.zeros(1, 4))])
    assert error.tolist() == [0.0]


def test_agreement_is_the_share_of_items() -> None:
    logits = torch.eye(4).expand(2, 4, 4)
    other = logits.clone()
    other[1, 0] = other[1, 0].roll(1)
    ours, theirs = [Term(logits), Term(torch.ones(2, 3))], [Term(other), Term(torch.zeros(2, 3))]
    assert agreement(ours, theirs).tolist() == [1.0, 0.75]
    assert agreement(ours[1:], theirs[1:]) is None


def test_logits_of_a_classifier_are_those_of_its_one_item() -> None:
    logits = torch.randn(3, 5, generator=generator())
    assert torch.equal(class_logits([classes(logits)]), logits)


@pytest.mark.parametrize("limit", [1, 7, 40, 48, 1000])
def test_what_is_kept_of_many_values_lies_evenly(limit: int) -> None:
    values = torch.arange(2 * 8 * 6.0).reshape(2, 48)
    (kept,) = thinned([Term(values, values)], limit)
    assert kept.values.shape[1] <= max(1, limit)
    assert torch.equal(kept.values, kept.weight)
    steps = kept.values[0].diff().unique()
    assert len(steps) <= 1
    if 6 <= kept.values.shape[1] < 48:  # of a table with rows of 6 or 8, every column is among them
        assert {int(v) % 6 for v in kept.values[0]} == set(range(6))
        assert {int(v) % 2 for v in kept.values[0]} == {0, 1}


def test_items_are_left_out_and_never_classes() -> None:
    (kept,) = thinned([Term(torch.arange(2 * 9 * 4.0).reshape(2, 9, 4))], 16)
    assert kept.values.shape[2] == 4
    assert kept.values.shape[1] * 4 <= 16
    assert (thinned([Term(torch.zeros(2, 1, 100))], 16)[0]).values.shape == (2, 1, 100)


def test_of_a_loss_only_classes_are_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    terms = [Term(torch.randn(2, 9, 4)), Term(torch.randn(2, 100), torch.rand(2, 100)), classes(torch.randn(2, 5))]
    assert all(kept is term for kept, term in zip(thinned_classes(terms), terms, strict=True))
    monkeypatch.setattr(outputs, "CLASS_VALUES", 16)
    pixels, *others = thinned_classes(terms)
    assert torch.equal(pixels.values, terms[0].values[:, ::4])  # 3 has a divisor in common with 9
    assert all(kept is term for kept, term in zip(others, terms[1:], strict=True))


# Probes


def fisher_of(logits: Tensor) -> Tensor:
    """`Σ_c p_c ∇log p_c ∇log p_cᵀ = diag p − p pᵀ` for one vector of logits."""
    p = logits.double().softmax(-1)
    return torch.diag(p) - torch.outer(p, p)


def drawn_moment(terms: list[Term], probes: int, seed: int = 0) -> Tensor:
    """Second moment of the probes' gradients by all values of an image, averaged over probes and images."""
    terms = [Term(term.values.clone().requires_grad_(True), term.weight) for term in terms]
    leaves = [term.values for term in terms]
    rows = []
    for loss in probe_losses(terms, probes, generator(seed)):
        gradients = torch.autograd.grad(loss, leaves, retain_graph=True)
        rows.append(torch.cat([gradient.flatten(1).double() for gradient in gradients], 1))
    assert len(rows) == probes
    return sum(g.T @ g for g in rows) / (probes * len(terms[0]))


@pytest.mark.parametrize("probes", [1, 2, 3])
def test_random_signs_give_the_fisher_on_average(probes: int) -> None:
    logits = torch.tensor([0.5, -1.0, 1.5, 0.2, -0.3])
    many = logits.expand(100_000, 5)
    assert relative(drawn_moment([classes(many)], probes), fisher_of(logits)) < 0.02


@pytest.mark.parametrize(("count", "probes"), [(2, 2), (3, 4), (4, 4), (5, 8), (8, 8)])
@pytest.mark.parametrize("seed", range(3))
def test_as_many_probes_as_classes_give_the_fisher_in_one_draw(count: int, probes: int, seed: int) -> None:
    logits = torch.randn(1, count, generator=generator(seed)) * 2
    assert relative(drawn_moment([classes(logits)], probes, seed), fisher_of(logits[0])) < 1e-5


def test_two_probes_are_exact_for_the_two_likeliest_classes() -> None:
    term = classes(torch.tensor([[-3.0, 4.0, -5.0, 3.0, -4.0]]))
    expected = fisher_of(term.values[0, 0])
    worst = max(relative(drawn_moment([term], 2, seed), expected) for seed in range(20))
    single = max(relative(drawn_moment([term], 1, seed), expected) for seed in range(20))
    assert worst < 0.2 * single


def test_the_fisher_of_several_items_is_that_of_their_mean() -> None:
    logits = torch.randn(3, 4, generator=generator(), dtype=torch.float64) * 2
    expected = torch.block_diag(*(fisher_of(item) / 3 for item in logits))
    assert relative(drawn_moment([Term(logits.expand(100_000, 3, 4))], 1), expected) < 0.02


def test_every_item_has_its_likeliest_classes_exact() -> None:
    """In the blocks of single items, as many probes as classes leave no noise; between items there is some."""
    logits = torch.randn(1, 3, 4, generator=generator(), dtype=torch.float64) * 2
    moment = drawn_moment([Term(logits)], 4)
    for item in range(3):
        block = slice(4 * item, 4 * item + 4)
        assert relative(moment[block, block], fisher_of(logits[0, item]) / 3) < 1e-6


def test_the_probe_of_features_is_the_gauss_newton_matrix_of_the_relative_error() -> None:
    output = torch.tensor([0.5, -1.0, 2.0, 0.3])
    moment = drawn_moment([Term(output.expand(100_000, 4))], 1)
    expected = torch.eye(4, dtype=torch.float64) / output.double().square().sum()
    assert relative(moment, expected) < 0.02


def test_probes_measure_the_curvature_of_the_divergence() -> None:
    """Of classes and weighted features together, as a detector has them."""
    reference = random_terms(1, 3)
    sizes = [term.values[0].numel() for term in reference]

    def loss(values: Tensor) -> Tensor:
        parts = values.split(sizes)
        terms = [Term(part.reshape(term.values.shape)) for part, term in zip(parts, reference, strict=True)]
        return divergence(reference, terms).sum()

    hessian = torch.autograd.functional.hessian(loss, torch.cat([term.values.flatten() for term in reference]))
    many = [Term(term.values.expand(200_000, *term.values.shape[1:]), term.weight) for term in reference]
    assert relative(drawn_moment(many, 1), hessian) < 0.02


def test_probes_through_a_detector_measure_what_its_divergence_grows_by() -> None:
    """For a small step of the last layers' biases."""
    head = head_named("YolosForObjectDetection")
    model, pixels = head.dense(), head.pixels(1)
    biases = model.class_labels_classifier.layers[-1].bias, model.bbox_predictor.layers[-1].bias
    terms = outputs_of(Subject.alone(model), pixels)
    reference = [Term(term.values.detach(), term.weight) for term in terms]
    step = [0.02 * torch.randn(bias.shape, generator=generator()) for bias in biases]
    along = []
    for loss in itertools.chain(*(probe_losses(terms, 8, generator(seed)) for seed in range(250))):
        gradients = torch.autograd.grad(loss, biases, retain_graph=True)
        along.append(sum(float((g * d).sum()) for g, d in zip(gradients, step, strict=True)))
    with torch.no_grad():
        for bias, own in zip(biases, step, strict=True):
            bias += own
        moved = float(divergence(reference, outputs_of(Subject.alone(model), pixels)))
    assert moved > 0
    assert sum(value**2 for value in along) / len(along) / 2 == pytest.approx(moved, rel=0.1)


# Many items


def plain_probes(terms: list[Term], probes: int, draw: torch.Generator) -> list[Tensor]:
    """The formula of `probe_losses` written out, with ranks by sorting twice."""
    hadamard = torch.tensor([[1.0, 1.0], [1.0, -1.0]])[:probes]
    parts = []
    for term in terms:
        values = term.values.log_softmax(-1)
        weights = values.detach().exp().sqrt() * values.shape[1] ** -0.5
        ranks = weights.argsort(-1, descending=True).argsort(-1)
        signs = torch.randint(0, 2, values.shape, generator=draw, dtype=torch.int8) * 2 - 1
        parts.append((signs * weights * values, ranks))
    return [
        torch.stack([(hadamard[probe][rank % 2] * own).sum() for own, rank in parts]).sum() for probe in range(probes)
    ]


@pytest.mark.parametrize("items", [1, 7])
def test_probes_of_few_items_are_the_formula_to_the_bit(items: int) -> None:
    terms = [Term(3 * torch.randn(5, items, 10, generator=generator())), Term(torch.zeros(5, items, 3))]
    found = list(probe_losses(terms, 2, generator(1)))
    assert all(torch.equal(a, b) for a, b in zip(found, plain_probes(terms, 2, generator(1)), strict=True))


def test_probes_of_many_items_are_those_of_the_kept_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    term = Term(3 * torch.randn(5, 49, 10, generator=generator()))
    monkeypatch.setattr(outputs, "CLASS_VALUES", 100)
    kept = Term(term.values[:, ::5])
    found = list(probe_losses([term], 2, generator(1)))
    assert all(torch.equal(a, b) for a, b in zip(found, plain_probes([kept], 2, generator(1)), strict=True))


def test_a_part_of_many_items_measures_the_curvature_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a parameter that all items share, as a layer before the pixels is."""
    pixels = torch.randn(801, 3, generator=generator())
    weight = torch.randn(3, 4, generator=generator(3))

    def fisher() -> Tensor:
        weights = weight.repeat(3000, 1, 1).requires_grad_(True)  # of each image, so that each is a draw
        (loss,) = probe_losses([Term(pixels @ weights)], 1, generator())
        rows = torch.autograd.grad(loss, weights)[0].flatten(1)
        return rows.T @ rows / len(rows)

    expected = fisher()
    monkeypatch.setattr(outputs, "CLASS_VALUES", 4 * 401)
    assert relative(fisher(), expected) < 0.15
    assert float(fisher().trace() / expected.trace()) == pytest.approx(1, abs=0.1)


def test_probes_of_many_pixels_need_little_memory() -> None:
    """150 classes of 512 × 512 pixels: nothing but the logits themselves is as large as they are."""
    logits = torch.zeros(1, 512 * 512, 150, dtype=torch.bfloat16)
    own, largest = logits.untyped_storage().data_ptr(), [0]

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor) and result.untyped_storage().data_ptr() != own:
                largest[0] = max(largest[0], result.numel())
            return result

    with Largest():
        list(probe_losses([Term(logits)], 2, generator()))
    assert 0 < largest[0] <= outputs.CLASS_VALUES
