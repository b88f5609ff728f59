"""Modules that are removed: their error, their bias, and that the built model is the dense one with its mean there."""

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import DINOv3ViTConfig, DINOv3ViTModel, PreTrainedModel

from hf_vitcompress import CompressionPlan, to_dense
from hf_vitcompress.architectures.layers import find_layers, linear_layer
from hf_vitcompress.architectures.outputs import outputs_of
from hf_vitcompress.architectures.subject import Subject
from hf_vitcompress.errors import UnsupportedModelError
from hf_vitcompress.evaluation.costs import count_costs
from hf_vitcompress.images.sources import open_images
from hf_vitcompress.model.shapes import layout_of
from hf_vitcompress.planning.building import build_model
from hf_vitcompress.planning.groups.base import LayerGroup
from hf_vitcompress.planning.groups.removal import UNDERESTIMATED
from hf_vitcompress.planning.planner import Planner, make_planner
from hf_vitcompress.statistics.calibration import calibrate
from support.groups import IMAGES, calibrated, config_of, flow, prepared, weight_of
from support.stages import quiet
from support.zoo import HEADS, Head

BLOCKS = {"mlp": ("mlp",), "attention": ("qk", "vo"), "heads": ("heads",)}


def gone(ready: Planner, module: str) -> list[LayerGroup]:
    """The groups of the first block that go together."""
    found = [group for group in ready.groups if group.block == 0 and group.role in BLOCKS[module]]
    assert len(found) == len(BLOCKS[module])
    return found


def removal(groups: list[LayerGroup]) -> CompressionPlan:
    return CompressionPlan({name: shape for group in groups for name, shape in (group.removal or {}).items()})


def planner_of(model: PreTrainedModel, images: Tensor, **settings: Any) -> Planner:
    config = config_of(**{"metric": "weight", **settings})
    statistics = calibrate(Subject.alone(model), find_layers(model), open_images(images), quiet(config))
    return make_planner(Subject.alone(model), statistics, quiet(config))


@pytest.mark.parametrize("module", BLOCKS)
@pytest.mark.parametrize("repair", [True, False])
@pytest.mark.parametrize("correct_bias", [True, False])
def test_the_error_is_that_of_all_of_the_output_but_its_mean(module: str, repair: bool, correct_bias: bool) -> None:
    settings = {"attention": "prune"} if module == "heads" else {}
    group = gone(prepared(correct_bias=correct_bias, repair=repair, **settings), module)[-1]
    model, statistics = calibrated("fisher")
    name = group.layers[-1].name
    lost = flow(model, name) @ weight_of(model, name).T
    kept = lost.mean(0) if correct_bias else torch.zeros(lost.shape[1], dtype=lost.dtype)
    lost = lost - kept
    expected = float(((lost @ statistics.gradients[name].moment) * lost).sum() / len(lost) / 2)
    assert group.removal is not None
    choice = group.choice(group.removal)
    assert choice.error == pytest.approx(UNDERESTIMATED * expected, rel=1e-3)
    assert (choice.parameters, choice.macs, choice.shapes) == (0, 0, group.removal)
    ((left, bias),) = group.tensors(group.removal).items()
    assert left == f"{name}.bias"
    assert torch.allclose(bias, linear_layer(model, name).bias.double() + kept, atol=1e-5)
    assert group.regression_targets(group.removal) == []
    assert group.describe(group.removal) == "removed"


def test_queries_and_keys_lose_nothing_more_than_the_values() -> None:
    queries, _ = gone(prepared(), "attention")
    assert queries.removal is not None
    choice = queries.choice(queries.removal)
    assert (choice.parameters, choice.macs, choice.error) == (0, 0, 0.0)
    assert queries.tensors(queries.removal) == {}
    assert queries.regression_targets(queries.removal) == []
    assert queries.describe(queries.removal) == "removed"


FORMS = ["ViTModel", "Dinov2Model-gated", "SwinModel", "YolosModel", "BeitModel", "CLIPVisionModel"]


@pytest.mark.parametrize("module", ["mlp", "attention"])
@pytest.mark.parametrize("head", [head for head in HEADS if str(head) in FORMS], ids=str)
def test_the_built_model_is_the_dense_one_with_a_mean_in_place_of_the_module(head: Head, module: str) -> None:
    dense = head.dense()
    ready = planner_of(dense, head.pixels())
    groups = gone(ready, module)
    plan = removal(groups)
    plan.check(ready.groups, ready.subject)
    small = build_model(dense, plan, ready.groups)
    images = head.pixels(2, seed=5)

    def outputs(model: PreTrainedModel) -> list[Tensor]:
        with torch.no_grad():
            return [term.values for term in outputs_of(Subject.alone(model), images)]

    last = groups[-1].layers[-1]
    linear = linear_layer(dense, last.name)
    mean = linear.weight.double() @ ready.statistics.inputs[last.input_name].mean + linear.bias.double()
    handle = linear.register_forward_hook(lambda _, __, output: mean.float().expand_as(output))
    expected = outputs(dense)
    handle.remove()
    torch.testing.assert_close(outputs(small), expected)
    torch.testing.assert_close(outputs(to_dense(small)), expected)
    assert layout_of(small) == plan.layers
    costs = count_costs(small)
    choices = [(group.choice({}), group.choice(plan.shapes_of(group))) for group in groups]
    assert ready.costs.parameters - costs.parameters == sum(full.parameters - left.parameters for full, left in choices)
    assert ready.costs.macs - costs.macs == sum(full.macs - left.macs for full, left in choices)


def test_forms_are_all_there() -> None:
    assert len([head for head in HEADS if str(head) in FORMS]) == len(FORMS)


BIASLESS = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "image_size": 16,
    "patch_size": 4,
    "mlp_bias": False,
    "proj_bias": False,
}


@pytest.mark.parametrize("module", ["mlp", "attention"])
def test_a_layer_without_a_bias_gets_one_which_a_dense_model_cannot_hold(module: str) -> None:
    torch.manual_seed(0)
    dense = DINOv3ViTModel(DINOv3ViTConfig(**BIASLESS)).eval()
    ready = planner_of(dense, IMAGES[:24], metric="fisher", fisher_probes=2)
    group = gone(ready, module)[-1]
    name = group.layers[-1].name
    output = flow(dense, name, IMAGES[:24]) @ weight_of(dense, name).T
    lost = output - output.mean(0)
    expected = float(((lost @ ready.statistics.gradients[name].moment) * lost).sum() / len(lost) / 2)
    assert group.removal is not None
    choice = group.choice(group.removal)
    assert choice.error == pytest.approx(UNDERESTIMATED * expected, rel=1e-2)
    assert choice.parameters == 32
    small = build_model(dense, removal(gone(ready, module)), ready.groups)
    assert torch.allclose(small.get_submodule(name).bias.double(), output.mean(0), atol=1e-5)
    assert count_costs(small).parameters == ready.costs.parameters - sum(
        own.choice({}).parameters - own.choice(own.removal or {}).parameters for own in gone(ready, module)
    )
    with pytest.raises(UnsupportedModelError, match=f"'{name}' is what is left of a removed module"):
        to_dense(small)


def test_attention_that_this_package_does_not_run_stays() -> None:
    head = next(head for head in HEADS if str(head) == "Swinv2Model")
    ready = planner_of(head.dense(), head.pixels())
    assert {group.role for group in ready.groups if group.removal is not None} == {"mlp"}
    assert transformers.Swinv2Model is head.model_class
