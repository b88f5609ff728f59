"""Wide moments of a part of the tokens; batches and seeds."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_vitcompress.architectures.layers import find_layers
from hf_vitcompress.errors import CalibrationError
from hf_vitcompress.statistics import accumulators, calibration, observer
from support.calibrations import by_role, config, every_mlp, interrupted, run
from support.moments import relative, same


def sampled(monkeypatch: pytest.MonkeyPatch, tokens: float, gradients: float) -> None:
    """As if that many, as a multiple of the features, were enough."""
    monkeypatch.setattr(observer, "TOKENS_PER_FEATURE", tokens)
    monkeypatch.setattr(accumulators, "GRADIENTS_PER_FEATURE", gradients)


def test_all_tokens_of_a_few_images_are_taken(vit: PreTrainedModel, pixels: Tensor) -> None:
    """96 images of 17 tokens are fewer than 50 for each of 96 features; of gradients, 10 for each are enough."""
    statistics = run(vit, pixels, config(token_weighting=0.0))
    assert float(statistics.inputs["vit.layers.0.fc2"].weight) == 96 * 17


@pytest.mark.parametrize("weighting", [0.0, 0.5])
def test_only_wide_moments_take_a_part_of_the_tokens(
    vit: PreTrainedModel, pixels: Tensor, weighting: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampled(monkeypatch, 1e9, 1e9)
    whole = run(vit, pixels, config(token_weighting=weighting))
    sampled(monkeypatch, 4, 2)
    part = run(vit, pixels, config(token_weighting=weighting))
    assert part.tokens == whole.tokens
    # 6 batches of 272 tokens; 4 · 96 of all 1632 are 64 of each.
    if not weighting:
        assert float(part.inputs["vit.layers.0.fc2"].weight) == 6 * 64
    for layer in find_layers(vit):
        wide_input, wide_output = layer.role == "fc2", layer.role == "fc1"
        ours, theirs = part.inputs[layer.input_name], whole.inputs[layer.input_name]
        assert torch.equal(ours.second, theirs.second) is not wide_input, layer.name
        same_gradient = torch.equal(part.gradients[layer.name].second, whole.gradients[layer.name].second)
        assert same_gradient is not wide_output, layer.name
        assert part.gradients[layer.name].count == whole.gradients[layer.name].count


@pytest.mark.parametrize("weighting", [0.0, 0.5])
def test_moments_of_a_part_of_the_tokens_are_right_on_average(
    vit: PreTrainedModel, pixels: Tensor, weighting: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean of n draws comes nearer to the moments of all tokens, as 1 / √n."""
    images, settings = pixels[:32], {"token_weighting": weighting, "batch_size": 32}
    sampled(monkeypatch, 1e9, 1e9)
    exact = run(vit, images, config(**settings))
    sampled(monkeypatch, 2, 1)  # 192 and 96 of 544 tokens
    draws = []
    permutation = torch.randperm
    for seed in range(40):

        def other(count: int, generator: torch.Generator, seed: int = seed) -> Tensor:
            return permutation(count, generator=generator.manual_seed(seed))

        with monkeypatch.context() as patch:
            patch.setattr(accumulators.torch, "randperm", other)
            draws.append(run(vit, images, config(**settings)))
    for moments, wanted in (
        ([d.inputs["vit.layers.1.fc2"].covariance for d in draws], exact.inputs["vit.layers.1.fc2"].covariance),
        ([d.inputs["vit.layers.1.fc2"].mean for d in draws], exact.inputs["vit.layers.1.fc2"].mean),
        (
            [d.gradients["vit.layers.1.mlp.fc1"].moment for d in draws],
            exact.gradients["vit.layers.1.mlp.fc1"].moment,
        ),
    ):
        single = sum(relative(moment, wanted) for moment in moments) / len(moments)
        assert 0.02 < single < 1.5
        assert relative(torch.stack(moments).mean(0), wanted) < 2 * single / len(moments) ** 0.5


def test_parts_of_the_tokens_are_the_same_in_two_runs_and_after_an_interruption(
    vit: PreTrainedModel, pixels: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampled(monkeypatch, 4, 2)
    monkeypatch.setattr(calibration, "CHECKPOINT_SECONDS", -1.0)
    settings = config(batch_size=8)
    whole = run(vit, pixels, settings)
    interrupted(vit, pixels, 45, settings, tmp_path / "c")
    assert same(run(vit, pixels, settings, checkpoint=tmp_path / "c"), whole)
    assert same(run(vit, pixels, settings), whole)


@pytest.mark.usefixtures("eager_checkpoints")
@pytest.mark.parametrize(("then", "now", "accepted"), [("auto", "low_rank", True), ("low_rank", "auto", False)])
def test_a_checkpoint_that_knows_more_than_is_asked_goes_on(
    vit: PreTrainedModel, pixels: Tensor, tmp_path: Path, then: str, now: str, accepted: bool
) -> None:
    interrupted(vit, pixels, 70, config(mlp=then), tmp_path / "c")
    if accepted:
        resumed = run(vit, pixels, config(mlp=now), checkpoint=tmp_path / "c")
        assert resumed.settings["prunable_inputs"]
        assert same(resumed, run(vit, pixels, config(mlp=then)))
    else:
        with pytest.raises(CalibrationError, match="prunable_inputs"):
            run(vit, pixels, config(mlp=now), checkpoint=tmp_path / "c")


@pytest.mark.usefixtures("every_token")
@every_mlp
def test_batch_size_does_not_matter(vit: PreTrainedModel, pixels: Tensor, mlp: str) -> None:
    # Eight probes make the Fisher of five classes exact, whatever the signs, which are drawn by batch.
    settings = {"token_weighting": 0.0, "fisher_probes": 8, "mlp": mlp}
    one, other = (run(vit, pixels, config(batch_size=size, **settings)) for size in (96, 7))
    assert one.images == other.images == 96
    for name, moment in one.inputs.items():
        assert relative(other.inputs[name].mean, moment.mean) < 1e-5
        if moment.second is not None:
            assert relative(other.inputs[name].covariance, moment.covariance) < 1e-5
    for name, moment in one.outputs.items():
        assert relative(other.outputs[name].covariance, moment.covariance) < 1e-5
    for name, gradient in one.gradients.items():
        assert relative(other.gradients[name].moment, gradient.moment) < 1e-5


def test_seed_draws_other_signs_and_nothing_else(vit: PreTrainedModel, pixels: Tensor) -> None:
    first, again, other = (run(vit, pixels, config(token_weighting=0.0, seed=seed)) for seed in (0, 0, 1))
    assert same(first, again)
    name = by_role(vit)["o"].name
    assert not torch.equal(first.gradients[name].second, other.gradients[name].second)
    for input_name, moment in first.inputs.items():
        assert torch.equal(moment.second, other.inputs[input_name].second)


@pytest.mark.filterwarnings("ignore:Many images.*repeat another one:hf_vitcompress.errors.CalibrationWarning")
def test_every_batch_draws_its_own_signs(vit: PreTrainedModel, pixels: Tensor) -> None:
    settings = config(fisher_probes=1, token_weighting=0.0)
    once, twice = (run(vit, pixels[:16].repeat(times, 1, 1, 1), settings) for times in (1, 2))
    name = by_role(vit)["o"].name
    assert relative(twice.gradients[name].moment, once.gradients[name].moment) > 1e-2
