"""What calibration collects, against float64 accumulation of the activations and gradients that the model computed."""

import contextlib
import copy
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTImageProcessorPil,
    ViTModel,
)

from hf_vitcompress.architectures.layers import LayerInfo, find_layers
from hf_vitcompress.compressor import ViTCompressor
from hf_vitcompress.config import CompressionConfig
from hf_vitcompress.errors import CalibrationError, CalibrationWarning, DataError
from hf_vitcompress.images.images import ImageSource
from hf_vitcompress.images.sources import open_images
from hf_vitcompress.statistics import calibration
from hf_vitcompress.statistics import observer as observation
from hf_vitcompress.statistics.calibration import calibrate
from hf_vitcompress.statistics.statistics import Statistics
from support.models import seeded, tiny_config
from support.moments import relative, same
from support.processes import environment
from support.zoo import HEADS

PRECISIONS = ("float32", "bfloat16")


def config(**changes: Any) -> CompressionConfig:
    return CompressionConfig(**{"precision": "float32", "batch_size": 16, **changes})


def run(model: PreTrainedModel, pixels: Tensor | ImageSource, settings: CompressionConfig, **more: Any) -> Statistics:
    return calibrate(model, find_layers(model), open_images(pixels), settings, progress=False, **more)


def summed(rows: list[Tensor]) -> Tensor:
    """Σ rowsᵀ rows in float64."""
    return sum(r.T @ r for r in rows)


class Recorder:
    """Everything that passes one linear layer, as float64 tokens by batch."""

    def __init__(self, module: nn.Linear) -> None:
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self.input_gradients: list[list[Tensor]] = []
        self.output_gradients: list[Tensor] = []
        self.handle = module.register_forward_hook(self._hook)

    def _hook(self, module: nn.Linear, args: tuple[Tensor, ...], output: Tensor) -> None:
        def tokens(x: Tensor) -> Tensor:
            return x.detach().to(output.dtype).flatten(0, -2).double()

        self.inputs.append(tokens(args[0]))
        self.outputs.append(tokens(output))
        if output.requires_grad:
            at_input: list[Tensor] = []
            self.input_gradients.append(at_input)
            output.register_hook(lambda g: self.output_gradients.append(tokens(g)))
            # Three layers may add up here, in float32.
            args[0].register_hook(lambda g: at_input.append(g.detach().flatten(0, -2).double()))

    def weights(self, share: float) -> Tensor:
        """`(1 − a) + a ‖g‖² / mean ‖g‖²` by batch, `‖g‖²` summed over the probes."""
        parts = []
        for gradients in self.input_gradients:
            importance = sum(g.square().sum(-1) for g in gradients)
            parts.append((1 - share) + share * importance / importance.mean())
        return torch.cat(parts)

    def moments(self, vectors: list[Tensor], weights: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted mean and covariance."""
        x = torch.cat(vectors)
        mean = weights @ x / weights.sum()
        return mean, (x - mean).T @ (weights[:, None] * (x - mean)) / weights.sum()


@contextlib.contextmanager
def recorded(model: PreTrainedModel) -> Iterator[dict[str, Recorder]]:
    recorders = {layer.name: Recorder(model.get_submodule(layer.name)) for layer in find_layers(model)}
    try:
        yield recorders
    finally:
        for recorder in recorders.values():
            recorder.handle.remove()


def by_role(model: PreTrainedModel) -> dict[str, LayerInfo]:
    """The layers of block 0."""
    return {layer.role: layer for layer in find_layers(model) if layer.block == 0}


def move_layer_norms(model: PreTrainedModel, by: float, scale: float) -> None:
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.weight.data *= scale
            module.bias.data += by


every_mlp = pytest.mark.parametrize("mlp", ["auto", "low_rank"])


@pytest.fixture
def every_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """No moment is of a part of the tokens only."""
    monkeypatch.setattr(observation, "TOKENS_PER_FEATURE", 1e9)
    monkeypatch.setattr(observation, "GRADIENTS_PER_FEATURE", 1e9)


@every_mlp
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_moments_agree_with_float64(
    vit: PreTrainedModel, pixels: Tensor, precision: str, share: float, mean: float, mlp: str
) -> None:
    # Around 100, bfloat16 numbers are 0.5 apart; with less spread than that nothing would be left to measure.
    move_layer_norms(vit, mean, scale=20.0 if mean and precision == "bfloat16" else 1.0)
    with recorded(vit) as recorders:
        statistics = run(vit, pixels, config(precision=precision, token_weighting=share, mlp=mlp))
    for layer in find_layers(vit):
        recorder, moment = recorders[layer.name], statistics.inputs[layer.input_name]
        weights = recorder.weights(share)
        expected_mean, covariance = recorder.moments(recorder.inputs, weights)
        assert relative(moment.mean, expected_mean) < 1e-5, layer.name
        if mlp == "auto" or layer.in_features <= layer.out_features:
            assert relative(moment.covariance, covariance) < 1e-5, layer.name
        else:
            output_mean, output_covariance = recorder.moments(recorder.outputs, weights)
            assert relative(statistics.outputs[layer.name].mean, output_mean) < 1e-5, layer.name
            assert relative(statistics.outputs[layer.name].covariance, output_covariance) < 1e-5, layer.name


@pytest.mark.usefixtures("every_token")
@every_mlp
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("probes", [1, 2, 3])
def test_gradient_moments_agree_with_float64(
    vit: PreTrainedModel, pixels: Tensor, precision: str, probes: int, mlp: str
) -> None:
    with recorded(vit) as recorders:
        statistics = run(vit, pixels, config(precision=precision, fisher_probes=probes, mlp=mlp))
    for layer in find_layers(vit):
        recorder = recorders[layer.name]
        at_input = [g for batch in recorder.input_gradients for g in batch]
        carried = mlp == "low_rank" and layer.in_features < layer.out_features
        gradients = at_input if carried else recorder.output_gradients
        expected = summed(gradients) / (len(pixels) * probes)
        assert relative(statistics.gradients[layer.name].moment, expected) < 1e-5, layer.name


def test_carried_gradient_is_the_explicit_product(vit: PreTrainedModel, pixels: Tensor) -> None:
    with recorded(vit) as recorders:
        statistics = run(vit, pixels, config(mlp="low_rank"))
    fc1 = by_role(vit)["fc1"]
    weight = vit.get_submodule(fc1.name).weight.detach().double()
    explicit = summed(recorders[fc1.name].output_gradients) / (2 * len(pixels))
    assert relative(statistics.gradients[fc1.name].moment, weight.T @ explicit @ weight) < 1e-5


@pytest.mark.parametrize("metric", ["weight", "activation", "row_fisher"])
def test_other_metrics_collect_plain_moments(vit: PreTrainedModel, pixels: Tensor, metric: str) -> None:
    with recorded(vit) as recorders:
        statistics = run(vit, pixels, config(metric=metric, token_weighting=0.0))
    for layer in find_layers(vit):
        recorder, moment = recorders[layer.name], statistics.inputs[layer.input_name]
        mean, _ = recorder.moments(recorder.inputs, torch.ones(len(pixels) * 17, dtype=torch.float64))
        assert relative(moment.mean, mean) < 1e-5
        if metric == "row_fisher":
            powers = sum(g.square().sum(0) for g in recorder.output_gradients) / (2 * len(pixels))
            assert relative(statistics.gradients[layer.name].mean_square, powers) < 1e-5
    assert bool(statistics.gradients) == (metric == "row_fisher")


def test_token_weighting_changes_the_moments(vit: PreTrainedModel, pixels: Tensor) -> None:
    plain, weighted = (run(vit, pixels, config(token_weighting=share)) for share in (0.0, 0.2))
    name = by_role(vit)["q"].input_name
    assert relative(weighted.inputs[name].covariance, plain.inputs[name].covariance) > 1e-3


def test_query_key_and_value_share_one_moment_and_no_wide_one_is_formed(vit: PreTrainedModel, pixels: Tensor) -> None:
    statistics = run(vit, pixels[:32], config(mlp="low_rank"))
    layers = find_layers(vit)
    assert len(layers) == 12
    roles: dict[str, list[str]] = {}
    for layer in layers:
        roles.setdefault(layer.input_name, []).append(layer.role)
    assert list(roles.values()) == 2 * [["q", "k", "v"], ["o"], ["fc1"], ["fc2"]]
    assert list(statistics.inputs) == list(roles)
    for layer in layers:
        narrow = min(layer.in_features, layer.out_features)
        second = statistics.inputs[layer.input_name].second
        assert (second is None) == (layer.in_features > narrow)
        assert second is None or second.shape == (narrow, narrow)
        assert statistics.gradients[layer.name].second.shape == (narrow, narrow)
        assert (layer.name in statistics.outputs) == (layer.in_features > narrow)
    assert all(moment.second.shape == (32, 32) for moment in statistics.outputs.values())
    assert set(statistics.tokens.values()) == {32 * 17}


def test_hidden_features_that_may_be_pruned_have_their_own_moments(vit: PreTrainedModel, pixels: Tensor) -> None:
    """And those of the narrow sides, which they take the place of, are not formed."""
    statistics = run(vit, pixels[:32], config())
    assert not statistics.outputs
    for layer in find_layers(vit):
        assert statistics.inputs[layer.input_name].second.shape == (layer.in_features,) * 2
        assert statistics.gradients[layer.name].second.shape == (layer.out_features,) * 2
    assert statistics.settings["prunable_inputs"] == ["vit.layers.0.mlp.fc2", "vit.layers.1.mlp.fc2"]


@pytest.mark.parametrize(
    ("settings", "blocks"),
    [({"mlp": "auto"}, [0, 1]), ({"mlp": "prune"}, [0, 1]), ({"mlp": "low_rank"}, []), ({"mlp": "none"}, [])],
)
def test_the_prunable_inputs_are_recorded(
    vit: PreTrainedModel, pixels: Tensor, settings: dict[str, Any], blocks: list[int]
) -> None:
    statistics = run(vit, pixels[:16], config(metric="weight", **settings))
    assert statistics.settings["prunable_inputs"] == [f"vit.layers.{block}.mlp.fc2" for block in blocks]


@pytest.mark.parametrize("skipped", ["layers.0.mlp.fc1", "layers.0.mlp.fc2"])
def test_hidden_features_of_which_a_side_is_skipped_are_not_prunable(
    vit: PreTrainedModel, pixels: Tensor, skipped: str
) -> None:
    layers = find_layers(vit, skip_modules=[skipped])
    statistics = calibrate(vit, layers, open_images(pixels[:16]), config(), progress=False)
    assert statistics.settings["prunable_inputs"] == ["vit.layers.1.mlp.fc2"]
    for layer in layers:
        if layer.block == 0 and layer.role.startswith("fc"):
            assert statistics.gradients[layer.name].second.shape == (32, 32)
            assert (layer.name in statistics.outputs) == (layer.role == "fc2")


# Where there are many tokens, a part of them is enough for the wide moments


def sampled(monkeypatch: pytest.MonkeyPatch, tokens: float, gradients: float) -> None:
    """As if that many, as a multiple of the features, were enough."""
    monkeypatch.setattr(observation, "TOKENS_PER_FEATURE", tokens)
    monkeypatch.setattr(observation, "GRADIENTS_PER_FEATURE", gradients)


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
            patch.setattr(observation.torch, "randperm", other)
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


def test_every_batch_draws_its_own_signs(vit: PreTrainedModel, pixels: Tensor) -> None:
    settings = config(fisher_probes=1, token_weighting=0.0)
    once, twice = (run(vit, pixels[:16].repeat(times, 1, 1, 1), settings) for times in (1, 2))
    name = by_role(vit)["o"].name
    assert relative(twice.gradients[name].moment, once.gradients[name].moment) > 1e-2


# The Fisher information


@pytest.mark.usefixtures("every_token")
@every_mlp
def test_model_gradient_moments_are_the_exact_fisher(vit: PreTrainedModel, pixels: Tensor, mlp: str) -> None:
    pixels = pixels[:16]
    statistics = run(vit, pixels, config(fisher_probes=8, mlp=mlp))
    expected = dict.fromkeys((layer.name for layer in find_layers(vit)), 0.0)
    for label in range(5):
        with recorded(vit) as recorders:
            log_p = vit(pixel_values=pixels.clone().requires_grad_(True)).logits.log_softmax(-1)[:, label]
            (log_p * log_p.detach().exp().sqrt()).sum().backward()
        for layer in find_layers(vit):
            recorder = recorders[layer.name]
            carried = mlp == "low_rank" and layer.in_features < layer.out_features
            gradients = recorder.input_gradients[0] if carried else recorder.output_gradients
            expected[layer.name] += summed(gradients) / len(pixels)
    for name, moment in expected.items():
        assert relative(statistics.gradients[name].moment, moment) < 1e-5, name


@pytest.mark.parametrize("model_class", [ViTModel, ViTForMaskedImageModeling])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_headless_models_have_finite_gradients(
    model_class: type[PreTrainedModel], precision: str, pixels: Tensor
) -> None:
    model = seeded(model_class, tiny_config(encoder_stride=4))
    statistics = run(model, pixels[:16], config(precision=precision))
    for layer in find_layers(model):
        moment = statistics.gradients[layer.name].moment
        assert moment.shape == (layer.out_features,) * 2
        assert torch.isfinite(moment).all()
        assert moment.trace() > 0


# Interruption


class Poisoned(Sequence):
    """Images of which reading number `at` ends the program's patience."""

    def __init__(self, images: Sequence | Tensor, at: int) -> None:
        self.images, self.at = images, at

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        if index == self.at:
            raise KeyboardInterrupt
        return self.images[index]


def interrupted(
    model: PreTrainedModel,
    pixels: Tensor,
    at: int,
    settings: CompressionConfig,
    checkpoint: Path,
    targets: list[str] | None = None,
) -> None:
    source = ImageSource(Poisoned(pixels, at), None, "the list of images")
    with pytest.raises(KeyboardInterrupt):
        calibrate(model, find_layers(model, targets), source, settings, checkpoint=checkpoint, progress=False)


@pytest.fixture
def eager_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "CHECKPOINT_SECONDS", -1.0)


@pytest.mark.usefixtures("eager_checkpoints")
@every_mlp
@pytest.mark.parametrize("metric", ["fisher", "row_fisher", "activation", "weight"])
def test_interrupted_calibration_ends_with_the_same_bits(
    vit: PreTrainedModel, pixels: Tensor, tmp_path: Path, metric: str, mlp: str
) -> None:
    settings, checkpoint = config(metric=metric, precision="bfloat16", batch_size=8, mlp=mlp), tmp_path / "c"
    interrupted(vit, pixels, 45, settings, checkpoint)
    assert Statistics.load(checkpoint).images == 40
    interrupted(vit, pixels, 85, settings, checkpoint)
    assert Statistics.load(checkpoint).images == 80
    resumed = run(vit, pixels, settings, checkpoint=checkpoint)
    assert same(resumed, run(vit, pixels, settings))


@pytest.mark.usefixtures("eager_checkpoints")
@pytest.mark.parametrize("bad", [{3, 20, 40}, {1, *range(8, 16), 30}, {*range(16), 47}, {0, *range(40, 48)}])
def test_unreadable_images_are_counted_once_across_an_interruption(
    vit: PreTrainedModel,
    processor: ViTImageProcessorPil,
    pictures: list[Image.Image],
    tmp_path: Path,
    bad: set[int],
) -> None:
    images = [b"" if i in bad else picture for i, picture in enumerate(pictures)]
    settings = {"config": config(batch_size=4), "image_processor": processor, "progress": False}
    layers, checkpoint = find_layers(vit), tmp_path / "c"
    with pytest.raises(KeyboardInterrupt):
        calibrate(vit, layers, ImageSource(Poisoned(images, 25), None, "x"), **settings, checkpoint=checkpoint)
    assert Statistics.load(checkpoint).bad_images == len([i for i in bad if i < 24])
    resumed = calibrate(vit, layers, ImageSource(images, None, "x"), **settings, checkpoint=checkpoint)
    assert (resumed.images, resumed.bad_images) == (48 - len(bad), len(bad))
    assert same(resumed, calibrate(vit, layers, ImageSource(images, None, "x"), **settings))


@pytest.mark.parametrize(("seconds", "saved_after"), [(-1.0, [64, 80, 96]), (1e9, [64, 96])])
def test_a_checkpoint_follows_four_batches_and_then_the_clock(
    vit: PreTrainedModel,
    pixels: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
    saved_after: list[int],
) -> None:
    saved: list[int] = []
    monkeypatch.setattr(calibration, "CHECKPOINT_SECONDS", seconds)
    monkeypatch.setattr(Statistics, "save", lambda statistics, path: saved.append(statistics.images))
    run(vit, pixels, config(), checkpoint=tmp_path / "c")
    assert saved == saved_after


KILLED = """
import os, signal, sys, torch
from support.models import seeded, tiny_config
from transformers import ViTForImageClassification
from hf_vitcompress.statistics import calibration
from hf_vitcompress.config import CompressionConfig
from hf_vitcompress.images import ImageSource
from hf_vitcompress.architectures.layers import find_layers

class Killer(list):
    def __getitem__(self, index):
        if index == 70:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)

calibration.CHECKPOINT_SECONDS = -1.0
torch.set_num_threads(int(sys.argv[2]))
model = seeded(ViTForImageClassification, tiny_config())
pixels = torch.randn(96, 3, 16, 16, generator=torch.Generator().manual_seed(2))
config = CompressionConfig(precision="float32", batch_size=16)
images = ImageSource(Killer(pixels), None, "the list of images")
calibration.calibrate(model, find_layers(model), images, config, checkpoint=sys.argv[1], progress=False)
"""


def test_killed_process_is_continued_with_the_same_bits(vit: PreTrainedModel, pixels: Tensor, tmp_path: Path) -> None:
    checkpoint = tmp_path / "c"
    arguments = [sys.executable, "-c", KILLED, str(checkpoint), str(torch.get_num_threads())]
    done = subprocess.run(arguments, env=environment(), capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert Statistics.load(checkpoint).images == 64
    assert same(run(vit, pixels, config(), checkpoint=checkpoint), run(vit, pixels, config()))


@pytest.mark.parametrize(
    "change",
    [
        {"metric": "activation"},
        {"token_weighting": 0.0},
        {"fisher_probes": 1},
        {"batch_size": 8},
        {"precision": "bfloat16"},
        {"seed": 1},
        {"on_bad_image": "error"},
        {"num_images": 64},
    ],
    ids=lambda change: next(iter(change)),
)
def test_checkpoint_of_other_settings_is_refused(
    vit: PreTrainedModel, pixels: Tensor, tmp_path: Path, change: dict[str, Any]
) -> None:
    settings = {"rank_multiple": 1, "measuring_images": 16}
    ViTCompressor(config(**settings), progress=False).calibrate(vit, pixels, checkpoint=tmp_path / "c")
    with pytest.raises(CalibrationError, match="other settings"):
        ViTCompressor(config(**{**settings, **change}), progress=False).calibrate(vit, pixels, tmp_path / "c")


@pytest.mark.usefixtures("eager_checkpoints")
@pytest.mark.parametrize(("then", "now"), [(["fc1"], None), (None, ["fc1"]), (["fc1"], ["fc2"])])
def test_checkpoint_of_other_layers_is_refused(
    vit: PreTrainedModel, pixels: Tensor, tmp_path: Path, then: list[str] | None, now: list[str] | None
) -> None:
    interrupted(vit, pixels, 70, config(), tmp_path / "c", targets=then)
    with pytest.raises(CalibrationError):
        calibrate(vit, find_layers(vit, now), open_images(pixels), config(), checkpoint=tmp_path / "c", progress=False)


@pytest.mark.usefixtures("eager_checkpoints")
def test_checkpoint_of_other_weights_is_refused(vit: PreTrainedModel, pixels: Tensor, tmp_path: Path) -> None:
    run(vit, pixels, config(), checkpoint=tmp_path / "c")
    other = seeded(ViTForImageClassification, tiny_config(), seed=1)
    with pytest.raises(CalibrationError, match="another model"):
        run(other, pixels, config(), checkpoint=tmp_path / "c")


def test_damaged_checkpoint_is_refused_and_kept(vit: PreTrainedModel, pixels: Tensor, tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(b"half a file")
    with pytest.raises(CalibrationError, match="not a complete statistics file"):
        run(vit, pixels, config(), checkpoint=tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == b"half a file"


# The model afterwards


def state_of(model: PreTrainedModel) -> dict[str, Any]:
    return {
        "training": {name: module.training for name, module in model.named_modules()},
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "grad": [p.grad for p in model.parameters()],
        "attention": model.config._attn_implementation,
        "hooks": sum(
            len(hooks)
            for module in model.modules()
            for hooks in (
                module._forward_hooks,
                module._forward_pre_hooks,
                module._backward_hooks,
                module._backward_pre_hooks,
            )
        ),
    }


def frozen_in_part(model: PreTrainedModel) -> None:
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(i % 3 > 0)


def all_training(model: PreTrainedModel) -> None:
    model.train()
    frozen_in_part(model)


def only_the_head_training(model: PreTrainedModel) -> None:
    model.eval()
    model.classifier.train()


def eager_attention(model: PreTrainedModel) -> None:
    model.set_attn_implementation("eager")


@pytest.mark.parametrize("prepare", [frozen_in_part, all_training, only_the_head_training, eager_attention])
@pytest.mark.parametrize("fails", [False, True])
def test_model_is_left_as_it_was(
    vit: PreTrainedModel, pixels: Tensor, tmp_path: Path, prepare: Callable[[PreTrainedModel], None], fails: bool
) -> None:
    prepare(vit)
    before, weights = state_of(vit), {name: value.clone() for name, value in vit.state_dict().items()}
    if fails:
        interrupted(vit, pixels, 40, config(), tmp_path / "c")
    else:
        run(vit, pixels, config())
    assert state_of(vit) == before
    assert all(torch.equal(value, weights[name]) for name, value in vit.state_dict().items())


def test_calibration_runs_without_dropout(pixels: Tensor) -> None:
    model = seeded(
        ViTForImageClassification, tiny_config(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    ).train()
    assert same(run(model, pixels[:32], config()), run(model, pixels[:32], config()))


def test_calibration_works_within_no_grad(vit: PreTrainedModel, pixels: Tensor) -> None:
    with torch.no_grad():
        inside = run(vit, pixels[:32], config())
    assert same(inside, run(vit, pixels[:32], config()))


# Trouble


LINEAR_LAYERS = [
    (mlp, block, path)
    for mlp in ("auto", "low_rank")
    for block in (0, 1)
    for path in ("attention.q_proj", "attention.v_proj", "attention.o_proj", "mlp.fc1", "mlp.fc2")
]


@pytest.mark.parametrize("metric", ["fisher", "activation", "weight"])
@pytest.mark.parametrize(("mlp", "block", "path"), LINEAR_LAYERS)
def test_nan_weight_is_reported_at_the_layer_or_the_next(
    vit: PreTrainedModel, pixels: Tensor, metric: str, block: int, path: str, mlp: str
) -> None:
    name = f"vit.layers.{block}.{path}"
    vit.get_submodule(name).weight.data[0, 0] = torch.nan
    inputs = {layer.name: layer.input_name for layer in find_layers(vit)}
    order = list(dict.fromkeys(inputs.values()))
    after = order[order.index(inputs[name]) :]
    with pytest.raises(CalibrationError, match="NaN") as caught:
        run(vit, pixels[:32], config(metric=metric, mlp=mlp))
    message = str(caught.value)
    assert any(f"{named!r}" in message for named in [name, *after]), message


@pytest.mark.parametrize("name", ["attention.q_proj", "mlp.fc1"])
def test_nan_is_reported_where_nothing_else_is_observed(vit: PreTrainedModel, pixels: Tensor, name: str) -> None:
    vit.get_submodule(f"vit.layers.1.{name}").weight.data[0, 0] = torch.nan
    layers = find_layers(vit, target_modules=[name])
    with pytest.raises(CalibrationError, match=rf"activations at 'vit\.layers\.1\.{name}' hold NaN"):
        calibrate(vit, layers, open_images(pixels[:32]), config(metric="activation"), progress=False)


def test_nan_in_the_head_is_reported(vit: PreTrainedModel, pixels: Tensor) -> None:
    vit.classifier.weight.data[0, 0] = torch.nan
    with pytest.raises(CalibrationError, match="gradients at"):
        run(vit, pixels[:32], config())


def test_nan_pixel_is_reported(vit: PreTrainedModel, pixels: Tensor) -> None:
    pixels[5, 0, 0, 0] = torch.nan
    with pytest.raises(CalibrationError, match=r"vit\.layers\.0\.qkv"):
        run(vit, pixels[:32], config(metric="weight"))


@pytest.mark.usefixtures("eager_checkpoints")
def test_nan_never_reaches_a_checkpoint(vit: PreTrainedModel, pixels: Tensor, tmp_path: Path) -> None:
    pixels[70, 0, 0, 0] = torch.nan
    with pytest.raises(CalibrationError, match="NaN"):
        run(vit, pixels, config(), checkpoint=tmp_path / "c")
    assert Statistics.load(tmp_path / "c").images == 64
    assert Statistics.load(tmp_path / "c").inputs["vit.layers.0.qkv"].is_finite()


def test_fewer_tokens_than_features_warn(vit: PreTrainedModel, pixels: Tensor) -> None:
    with pytest.warns(CalibrationWarning, match=r"17 calibration tokens .*32 features"):
        run(vit, pixels[:1], config())


def test_enough_tokens_do_not_warn(vit: PreTrainedModel, pixels: Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", CalibrationWarning)
        assert run(vit, pixels[:2], config()).images == 2


# The task head's own loss


def task(**changes: Any) -> CompressionConfig:
    return config(calibration_loss="task", token_weighting=0.0, **changes)


def ready(pixels: Tensor, labels: Any = None) -> ImageSource:
    return open_images([{"pixel_values": pixels, "labels": labels}])


@pytest.mark.parametrize(
    "name", ["ViTForImageClassification", "YolosForObjectDetection", "BeitForSemanticSegmentation"]
)
def test_gradients_of_the_models_own_loss_are_those_of_each_image(name: str) -> None:
    head = next(head for head in HEADS if head.name == name)
    model, pixels, targets = head.dense(), head.pixels(4), head.targets(4)
    statistics = run(model, ready(pixels, targets), task())
    # The last block of this segmenter is read by nobody: its hidden states count from the embeddings.
    read = range(3 if name.startswith("Beit") else 4)
    layers = [layer for layer in find_layers(model) if layer.role in ("q", "o", "fc1") and layer.block in read]
    expected = dict.fromkeys((layer.name for layer in layers), 0.0)
    for i in range(4):
        with recorded(model) as recorders:
            image = pixels[i : i + 1].clone().requires_grad_(True)
            model(pixel_values=image, labels=targets[i : i + 1]).loss.backward()
        for layer in layers:
            expected[layer.name] += summed(recorders[layer.name].output_gradients) / 4
    for layer in layers:
        assert expected[layer.name].norm() > 0
        assert relative(statistics.gradients[layer.name].moment, expected[layer.name]) < 1e-4, layer.name
        assert statistics.gradients[layer.name].count == 4


def test_the_own_loss_needs_no_probes(vit: PreTrainedModel, pixels: Tensor) -> None:
    images = ready(pixels[:32], torch.arange(32) % 5)
    one, other = (run(vit, images, task(fisher_probes=probes)).gradients for probes in (1, 7))
    assert all(torch.equal(one[name].moment, other[name].moment) for name in one)


def test_a_masked_autoencoder_needs_no_targets_for_its_own_loss() -> None:
    head = next(head for head in HEADS if head.name == "ViTMAEForPreTraining")
    statistics = run(head.dense(), head.pixels(), task())
    assert all(gradient.moment.trace() > 0 for gradient in statistics.gradients.values())


def test_without_targets_their_loss_is_refused_with_the_remedy(vit: PreTrainedModel, pixels: Tensor) -> None:
    with pytest.raises(DataError, match="DataLoader") as caught:
        run(vit, pixels[:16], task())
    assert 'calibration_loss="output"' in str(caught.value)


def test_metrics_without_gradients_need_no_targets(vit: PreTrainedModel, pixels: Tensor) -> None:
    run(vit, pixels[:16], task(metric="activation"))


@pytest.mark.parametrize("name", ["ViTModel", "DPTForDepthEstimation", "SwinBackbone"])
def test_a_model_without_a_loss_of_its_own_is_named(name: str) -> None:
    head = next(head for head in HEADS if head.name == name)
    pixels = head.pixels(4)
    with pytest.raises(CalibrationError, match=f"{name} computes no loss") as caught:
        run(head.dense(), ready(pixels, torch.rand(4, 64, 64)), task())
    assert 'calibration_loss="output"' in str(caught.value)


def test_a_checkpoint_of_the_other_loss_is_refused(vit: PreTrainedModel, pixels: Tensor, tmp_path: Path) -> None:
    images = ready(pixels[:32], torch.arange(32) % 5)
    run(vit, images, config(token_weighting=0.0)).save(tmp_path / "c")
    with pytest.raises(CalibrationError, match="calibration_loss"):
        run(vit, images, task(), checkpoint=tmp_path / "c")


def test_a_checkpoint_from_before_there_was_another_loss_is_continued(
    vit: PreTrainedModel, pixels: Tensor, tmp_path: Path
) -> None:
    expected = run(vit, pixels[:32], config())
    older = copy.deepcopy(expected)
    del older.settings["calibration_loss"]
    older.save(tmp_path / "c")
    assert same(run(vit, pixels[:32], config(), checkpoint=tmp_path / "c"), expected)


# Padding


def test_what_stands_at_padding_does_not_matter() -> None:
    head = next(head for head in HEADS if head.name == "Siglip2VisionModel")
    model, pixels = head.dense(), head.pixels()
    mask = torch.ones(len(pixels), 16, dtype=torch.int64)
    mask[:, 12:] = 0
    shapes = torch.tensor([[3, 4]]).expand(len(pixels), 2)

    def collected(padding: float) -> Statistics:
        padded = torch.where(mask.bool()[..., None], pixels, padding)
        batch = {"pixel_values": padded, "pixel_attention_mask": mask, "spatial_shapes": shapes}
        return run(model, open_images([batch]), config())

    statistics, other = collected(0.0), collected(7.0)
    assert set(statistics.tokens.values()) == {12 * len(pixels)}
    for name, moment in statistics.inputs.items():
        assert relative(moment.covariance, other.inputs[name].covariance) < 1e-5, name
    for name, gradient in statistics.gradients.items():
        assert relative(gradient.moment, other.gradients[name].moment) < 1e-4, name


# The shape of the images


def test_the_shape_of_an_image_is_noted(vit: PreTrainedModel, pixels: Tensor, tmp_path: Path) -> None:
    statistics = run(vit, pixels[:32], config())
    assert statistics.image_shape == (3, 16, 16)
    statistics.save(tmp_path / "s")
    assert Statistics.load(tmp_path / "s").image_shape == (3, 16, 16)
    head = next(head for head in HEADS if head.name == "Siglip2VisionModel")
    assert run(head.dense(), head.pixels(), config()).image_shape == (16, 48)


def test_the_shape_is_that_of_the_first_image_that_can_be_read(
    vit: PreTrainedModel, pictures: list[Any], processor: ViTImageProcessorPil
) -> None:
    images = ImageSource([*([b"broken"] * 16), *pictures], None, "pictures")
    assert run(vit, images, config(), image_processor=processor).image_shape == (3, 16, 16)


def test_a_checkpoint_from_before_shapes_were_noted_is_continued(
    vit: PreTrainedModel, pixels: Tensor, tmp_path: Path
) -> None:
    older = run(vit, pixels[:32], config())
    del older.settings["image_shape"]
    older.save(tmp_path / "c")
    assert same(run(vit, pixels[:32], config(), checkpoint=tmp_path / "c"), older)
    assert older.image_shape is None


# Nothing to measure


@pytest.mark.parametrize("metric", ["fisher", "row_fisher"])
def test_a_constant_output_has_no_gradients_and_is_named(metric: str, pixels: Tensor) -> None:
    model = seeded(ViTForImageClassification, tiny_config())
    model.classifier.weight.data.zero_()
    with pytest.raises(CalibrationError, match="All gradients are 0") as caught:
        run(model, pixels[:32], config(metric=metric))
    assert "ViTForImageClassification" in str(caught.value)
    assert 'metric="activation"' in str(caught.value)
    run(model, pixels[:32], config(metric="activation"))


def test_a_regression_of_one_number_has_gradients(pixels: Tensor) -> None:
    statistics = run(seeded(ViTForImageClassification, tiny_config(num_labels=1)), pixels[:32], config())
    assert all(gradient.moment.trace() > 0 for gradient in statistics.gradients.values())


def test_a_block_that_nothing_reads_may_have_none() -> None:
    head = next(head for head in HEADS if head.name == "BeitForSemanticSegmentation")
    statistics = run(head.dense(), head.pixels(), config())
    traces = {name: float(gradient.moment.trace()) for name, gradient in statistics.gradients.items()}
    assert any(trace == 0 for name, trace in traces.items() if ".layers.3." in name)
    assert any(trace > 0 for trace in traces.values())
