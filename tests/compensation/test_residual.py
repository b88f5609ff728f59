"""Residual compensation of whole models: what it wins, what it changes, and what it cannot use."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageClassification, PreTrainedModel

from hf_vitcompress import CompressionConfig, ViTCompressor
from hf_vitcompress.compensation import block_inputs
from hf_vitcompress.errors import CompensationError, DataError, DataWarning
from hf_vitcompress.images.images import ImageSource
from hf_vitcompress.layers_factored import FactoredLinear
from hf_vitcompress.modeling_factored import compressed_modules
from support.models import DIGITS, tiny_config
from support.residuals import NEVER_WORSE, judged, some_ranks
from support.students import METHODS, changed, checkpoint, compressed, lively, logits, random_images, state_of

METRICS = ("weight", "activation", "row_fisher", "fisher")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_ends_no_worse_than_it_began(metric: str, method: str) -> None:
    case = compressed(metric=metric, **METHODS[method])
    student = case.student()
    points = case.residual(student).run(checkpoint())
    assert case.reference.loss_of(student) == pytest.approx(min(point.loss for point in points), rel=1e-4)
    assert case.reference.loss_of(case.student()) == pytest.approx(points[0].loss, rel=1e-4)
    assert [point.stage for point in points] == ["residual"] * 3
    assert [point.images for point in points] == [0, 72, 72]
    assert [point.seconds for point in points] == sorted(point.seconds for point in points)


@pytest.mark.parametrize(
    ("method", "keep_ratio", "left"),
    # What was pruned has been repaired in closed form and leaves less to win back.
    [("low rank", 0.25, 0.5), ("default", 0.15, 0.95)],
)
def test_a_trained_model_wins_back_much_of_its_loss(method: str, keep_ratio: float, left: float) -> None:
    settings: dict[str, Any] = {
        "keep_ratio": keep_ratio,
        "rank_multiple": 2,
        "precision": "float32",
        "measuring_images": 0,
    }
    config = CompressionConfig(**settings, **METHODS[method], compensation="residual")
    compressor = ViTCompressor(config, progress=False)
    compressor.compress(DIGITS / "model", DIGITS / "calibration.parquet")
    done = compressor.report.compensation  # type: ignore[union-attr]
    assert done is not None
    assert done.loss_after < left * done.loss_before


@pytest.mark.parametrize("method", METHODS)
def test_shapes_stay_and_only_compressed_layers_change(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = compressed(**METHODS[method], keep_ratio=0.6)
    student = case.student()
    before, shapes = state_of(student), {name: tensor.shape for name, tensor in student.state_dict().items()}
    judged(monkeypatch, NEVER_WORSE)
    case.residual(student).run(checkpoint())
    owners = tuple(f"{name}." for name in compressed_modules(student))
    assert changed(before, student)
    assert all(name.startswith(owners) for name in changed(before, student))
    assert {name: tensor.shape for name, tensor in student.state_dict().items()} == shapes


def test_ranks_and_parameters_stay_and_only_factored_layers_change(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = some_ranks(tiny_config())
    case = compressed(ranks=ranks)
    student = case.student()
    before, count = state_of(student), student.num_parameters()
    judged(monkeypatch, NEVER_WORSE)
    case.residual(student).run(checkpoint())
    assert {name.rsplit(".", 2)[0] for name in changed(before, student)} == set(ranks)
    assert student.num_parameters() == count
    factored = {name: module.rank for name, module in student.named_modules() if isinstance(module, FactoredLinear)}
    assert factored == ranks


@pytest.mark.parametrize("method", ["default", "low rank"])
def test_up_and_down_have_equal_norms_per_component(method: str) -> None:
    case = compressed(metric="activation", **METHODS[method])
    student = case.student()
    case.residual(student).run(checkpoint())
    pairs = [
        (module.up.weight, module.down.weight) for module in student.modules() if isinstance(module, FactoredLinear)
    ]
    for name, shape in case.plan.layers.items():
        if "qk_rank" in shape:
            attention = student.get_submodule(name)
            pairs.append((torch.cat([attention.q_proj.weight, attention.k_proj.weight]), attention.qk_down.weight))
    assert pairs
    for up, down in pairs:
        assert torch.allclose(up.norm(dim=0), down.norm(dim=1), rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_saved_and_reloaded_it_is_the_same_model(method: str, tmp_path: Path) -> None:
    case = compressed(metric="activation", **METHODS[method])
    student = case.student()
    case.residual(student).run(checkpoint())
    student.save_pretrained(tmp_path)
    reloaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    pixels = random_images(4, seed=9)
    assert torch.equal(logits(reloaded, pixels), logits(student, pixels))


def test_the_dense_model_and_the_students_modes_stay_as_they_were() -> None:
    case = compressed()
    student = case.student()
    case.dense.train()
    case.dense.vit.layers[0].eval()
    case.dense.classifier.requires_grad_(False)
    before, attention = state_of(case.dense), case.dense.config._attn_implementation
    case.residual(student).run(checkpoint())
    assert not changed(before, case.dense)
    assert case.dense.training
    assert not case.dense.vit.layers[0].training
    assert [name for name, p in case.dense.named_parameters() if not p.requires_grad] == [
        "classifier.weight",
        "classifier.bias",
    ]
    for model in (case.dense, student):
        assert model.config._attn_implementation == attention
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in student.parameters())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_dense_model_in_half_precision_works(precision: str) -> None:
    case = compressed(lively().to(torch.bfloat16), metric="activation", precision=precision)
    student = case.student().float()
    points = case.residual(student).run(checkpoint())
    assert points[-1].loss < points[0].loss


def test_no_more_images_are_used_than_fit_into_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_inputs, "CACHE_BYTES", 1_000_000)
    """17 tokens of 32 floats in two models are 4352 bytes an image, and 14 batches of 16 are the most in a megabyte."""
    case = compressed(images=random_images(272), metric="weight")
    points = case.residual(case.student()).run(checkpoint())
    assert points[-1].images == 224
    assert 224 * 4352 <= 1_000_000 < 240 * 4352


def test_one_batch_is_used_even_where_it_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_inputs, "CACHE_BYTES", 1_000_000)
    case = compressed(images=random_images(280), metric="weight", batch_size=256)
    points = case.residual(case.student()).run(checkpoint())
    assert points[-1].images == 256


def test_a_result_that_is_worse_is_taken_back_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    case = compressed()
    student = case.student()
    before = state_of(student)
    judged(monkeypatch, [1.0, 1.1, 1.01])
    points = case.residual(student).run(checkpoint())
    assert [point.loss for point in points] == [1.0, 1.1, 1.01]
    assert not changed(before, student)


@pytest.mark.parametrize("losses", [[float("nan")] * 3, [1.0, float("nan"), float("inf")]])
def test_losses_that_are_no_numbers_are_not_better(losses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    case = compressed()
    student = case.student()
    before = state_of(student)
    judged(monkeypatch, losses)
    case.residual(student).run(checkpoint())
    assert not changed(before, student)


def test_the_best_of_the_judged_states_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight blocks, judged after every second one; best after four."""
    case = compressed(lively(config=tiny_config(num_hidden_layers=8)))
    student = case.student()
    before = state_of(student)
    judged(monkeypatch, [1.0, 0.9, 0.8, 0.95, 0.85])
    case.residual(student).run(checkpoint())
    assert {int(name.split(".")[2]) for name in changed(before, student)} == {0, 1, 2, 3}


def broken(model: PreTrainedModel, name: str, value: float) -> None:
    with torch.no_grad():
        module: nn.Module = model.get_submodule(name)
        next(module.parameters()).flatten()[0] = value


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_inputs_that_are_not_finite_are_named_with_what_to_do(value: float) -> None:
    case = compressed()
    student = case.student()
    broken(student, "vit.layers.1.layernorm_after", value)
    with pytest.raises(CompensationError, match=r"layers\.1\.mlp\.fc1'.*precision=\"float32\""):
        case.residual(student).run(checkpoint())


def test_targets_that_are_not_finite_are_named_with_what_to_do() -> None:
    case = compressed()
    broken(case.dense, "vit.layers.1.mlp.fc2", float("inf"))
    with pytest.raises(CompensationError, match=r"layers\.1\.mlp\.fc2'.*precision=\"float32\""):
        case.residual(case.student()).run(checkpoint())


def test_images_of_which_none_can_be_read_are_refused() -> None:
    case = compressed()
    case.train = ImageSource([b"no image"] * 8, None, "the images")
    with pytest.raises(DataError, match="None of the 8 images"):
        case.residual(case.student()).run(checkpoint())


def test_images_that_cannot_be_read_are_left_out() -> None:
    case = compressed()
    images = list(case.train.images)
    case.train = ImageSource([*images[:5], b"no image", *images[5:20], b"none", *images[20:30]], None, "the images")
    with pytest.warns(DataWarning, match="2 of 32 images of the images cannot be read.*image 5 of the images"):
        points = case.residual(case.student()).run(checkpoint())
    assert points[-1].images == 30
