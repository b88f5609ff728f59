"""Compensation of models that merge tokens: each token is compared with the one that it is in."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hf_vitcompress import CompressionConfig, ViTCompressor
from hf_vitcompress.architectures.layers import block_names, find_layers
from hf_vitcompress.compensation.block_inputs import PairedBlockInputs
from hf_vitcompress.compensation.compensator import Compensator
from hf_vitcompress.compensation.cross_moments import collect_cross_moments
from hf_vitcompress.durations import Duration
from hf_vitcompress.tokens_factored import ORIGIN
from support.models import DIGITS, tiny_config
from support.stages import quiet
from support.students import LOW_RANK, Case, checkpoint, compressed, lively

FOUR = tiny_config(num_hidden_layers=4)
TOKENS = {"vit.layers.0": 4, "vit.layers.1": 2}
LAYER = "vit.layers.2.mlp.fc1"


@pytest.fixture(scope="module")
def merging() -> Case:
    case = compressed(lively(config=FOUR), ranks={f"vit.layers.{i}.mlp.fc1": 6 for i in range(4)})
    return replace(case, plan=replace(case.plan, tokens=TOKENS))


def members(origin: Tensor) -> list[list[int]]:
    """Of one image, the tokens of the embeddings that are in each token."""
    return [[i for i, token in enumerate(origin.tolist()) if token == each] for each in range(int(origin.max()) + 1)]


def seen(model: nn.Module, images: Tensor, name: str) -> Tensor:
    """What the module of that name reads."""
    found: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, given: found.append(given[0]))
    model(images)
    handle.remove()
    return found[0]


@torch.no_grad()
def test_residuals_pair_a_token_with_the_one_that_it_is_in(merging: Case) -> None:
    student, dense = merging.student(), merging.dense
    images = torch.stack([batch.pixel_values for batch in merging.train.batches(None, 1)]).flatten(0, 1)
    subject = merging.prepared.subject
    work = quiet(merging.config)
    streams = PairedBlockInputs((subject, subject.like(student)), block_names(dense), merging.train, work)
    streams.start(2)
    layer = next(layer for layer in find_layers(dense) if layer.name == LAYER)
    blocks = tuple(model.get_submodule("vit.layers.2") for model in (dense, student))
    moments = collect_cross_moments(layer, f"{LAYER}.down", (dense, student), blocks, streams.streams, work.accelerator)
    x, x_hat = seen(dense, images, LAYER).double(), seen(student, images, f"{LAYER}.down").double()
    origins = getattr(seen(student, images, "vit.layers.2"), ORIGIN)
    assert x_hat.shape[1] == 11
    pairs = [
        (x[image, i], x_hat[image, token])
        for image, origin in enumerate(origins)
        for token, inside in enumerate(members(origin))
        for i in inside
    ]
    theirs, ours = (torch.stack(side) for side in zip(*pairs, strict=True))
    torch.testing.assert_close(moments.input_mean, ours.mean(0), rtol=1e-4, atol=1e-5)
    centred, wanted = ours - ours.mean(0), theirs - theirs.mean(0)
    torch.testing.assert_close(moments.covariance, centred.T @ centred / len(ours), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(moments.cross, wanted.T @ centred / len(ours), rtol=1e-3, atol=1e-4)


def test_distillation_compares_a_merged_token_with_each_of_its_tokens(merging: Case) -> None:
    case = replace(merging, config=replace(merging.config, feature_weight=2.0, augmentation=False))
    teaching = case.distillation(student := case.student())
    batch, draws = next(iter(teaching.steps.own_part(0)))
    with torch.no_grad():
        loss = float(teaching._loss(batch, draws))
        teaching.config = replace(case.config, feature_weight=1.0)
        once = float(teaching._loss(batch, draws))
        out = [model(batch.pixel_values, output_hidden_states=True).hidden_states for model in (case.dense, student)]
    errors = []
    for theirs, ours in zip(*(states[1:] for states in out), strict=True):
        origins = getattr(ours, ORIGIN, torch.arange(17).expand(len(ours), -1))
        for taught, learnt, origin in zip(theirs, ours, origins, strict=True):
            differences = [
                functional.layer_norm(learnt[token], (32,)) - functional.layer_norm(taught[i], (32,))
                for i, token in enumerate(origin.tolist())
            ]
            errors.append(torch.stack(differences).square().mean())
    assert loss - once == pytest.approx(float(torch.stack(errors).sum()) / 4, rel=1e-4)


def test_residuals_of_a_trained_model_that_merges_tokens_win_back_much_of_its_loss() -> None:
    config = CompressionConfig(
        keep_ratio=0.25, rank_multiple=2, num_images=192, measuring_images=0, precision="float32", **LOW_RANK
    )
    compressor, images = ViTCompressor(config, progress=False), DIGITS / "calibration.parquet"
    plan = compressor.plan(DIGITS / "model", statistics := compressor.calibrate(DIGITS / "model", images))
    plan.tokens = {f"vit.layers.{block}": 2 for block in range(3)}
    again = ViTCompressor(replace(config, compensation="residual"), progress=False)
    small = again.compress(DIGITS / "model", images, statistics=statistics, plan=plan)
    done = again.report.compensation  # type: ignore[union-attr]
    assert done is not None
    assert done.loss_after < 0.6 * done.loss_before
    assert small.config.compression["tokens"] == plan.tokens


def test_distilling_wins_back_some_of_the_loss_and_keeps_the_tokens(merging: Case) -> None:
    student = merging.student()
    before = merging.reference.loss_of(student)
    merging.distillation(student).run(Duration(2, "epochs"), checkpoint())
    assert merging.reference.loss_of(student) < before
    assert student.config.compression["tokens"] == TOKENS


def test_a_compensation_of_other_tokens_is_another_one(merging: Case, tmp_path: Path) -> None:
    compensating = Compensator(merging.prepared, merging.train, quiet(merging.config), tmp_path / "kept")
    plans = (merging.plan, replace(merging.plan, tokens={}), replace(merging.plan, tokens={"vit.layers.0": 1}))
    assert len({compensating.checkpoint_for("distill", plan).path for plan in plans}) == 3
