"""What calibration does to the model, and what it says of models and images that it cannot use."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, ViTForImageClassification

from hf_vitcompress.architectures.layers import find_layers
from hf_vitcompress.architectures.subject import Subject
from hf_vitcompress.errors import CalibrationError, CalibrationWarning
from hf_vitcompress.images.sources import open_images
from hf_vitcompress.statistics.calibration import calibrate
from hf_vitcompress.statistics.statistics import Statistics
from support.calibrations import config, interrupted, run
from support.models import seeded, tiny_config
from support.moments import same
from support.stages import quiet


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
        calibrate(Subject.alone(vit), layers, open_images(pixels[:32]), quiet(config(metric="activation")))


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
