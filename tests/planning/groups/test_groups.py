"""The parts of a block: their errors against references and against what the built layers really do."""

import copy
import functools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BeitConfig,
    BeitForImageClassification,
    BeitModel,
    Data2VecVisionConfig,
    Data2VecVisionModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    PreTrainedModel,
    SwinModel,
    Swinv2Model,
)

from hf_vitcompress import CompressionPlan, Statistics
from hf_vitcompress.architectures.layers import LayerInfo, find_layers
from hf_vitcompress.architectures.subject import Subject
from hf_vitcompress.errors import ConfigError
from hf_vitcompress.evaluation.costs import count_costs
from hf_vitcompress.images.sources import open_images
from hf_vitcompress.importance.gates import gated_layers
from hf_vitcompress.planning.building import build_model
from hf_vitcompress.planning.closed_form import factorize
from hf_vitcompress.planning.grouping import make_groups
from hf_vitcompress.planning.groups.base import COUNTED, Given, LayerGroup
from hf_vitcompress.planning.groups.heads import HeadsGroup
from hf_vitcompress.planning.groups.layer import SingleLayerGroup
from hf_vitcompress.planning.groups.query_key import QueryKeyGroup
from hf_vitcompress.planning.layer_moments import LayerMoments
from hf_vitcompress.planning.planner import Planner, make_planner
from hf_vitcompress.statistics.calibration import calibrate
from support.groups import HEADS, HIDDEN, IMAGES, SIZE, WIDTH, calibrated, config_of, flow, kl, prepared, weight_of
from support.problems import METRICS, optimal_errors
from support.stages import quiet
from support.students import LOW_RANK, METHODS, lively, random_images

ATTENTION = "vit.layers.0.attention"


def part_of(kind: type[LayerGroup], metric: str = "fisher", **settings: Any) -> Any:
    """The first of that kind."""
    return next(group for group in prepared(metric, **settings).groups if isinstance(group, kind))


def logits(model: PreTrainedModel, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model(pixel_values=images).logits


every_metric = pytest.mark.parametrize("metric", METRICS)


# ---- which parts there are


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ["qk", "vo", "mlp"]),
        (LOW_RANK, ["q", "k", "v", "o", "fc1", "fc2"]),
        (METHODS["pruned"], ["heads", "mlp"]),
        ({"attention": "none"}, ["mlp"]),
        ({"mlp": "none"}, ["qk", "vo"]),
        ({"attention": "low_rank", "mlp": "prune"}, ["q", "k", "v", "o", "mlp"]),
        ({"skip_modules": ["q_proj"]}, ["vo", "k", "mlp"]),
        ({"skip_modules": ["k_proj", "v_proj"]}, ["q", "o", "mlp"]),
        ({"skip_modules": ["fc1"]}, ["qk", "vo", "fc2"]),
        ({"skip_modules": ["fc2"], "mlp": "prune"}, ["qk", "vo"]),
    ],
)
def test_parts_are_as_the_config_wants_them(settings: dict[str, Any], expected: list[str]) -> None:
    ready = prepared("weight", **settings)
    assert ready.roles == expected
    assert [group.role for group in ready.groups] == expected * 2
    assert [group.block for group in ready.groups] == [block for block in (0, 1) for _ in expected]
    assert ready.fixed_parameters == ready.costs.parameters - sum(group.dense_parameters for group in ready.groups)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attention": "none", "mlp": "none"}, "leave nothing of the 12 layers"),
        ({"attention": "none", "mlp": "prune", "skip_modules": ["fc1"]}, "leave nothing"),
        ({"attention": "prune", "skip_modules": ["o_proj"]}, "needs all of q, k, v and o, and block 0"),
    ],
)
def test_settings_that_leave_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prepared("weight", **settings)


@pytest.mark.parametrize("method", METHODS)
def test_every_choice_of_every_part_can_be_had_and_predicts_what_the_table_says(method: str) -> None:
    ready = prepared(**METHODS[method])
    for group in ready.groups[: len(ready.groups) // 2]:
        choices = group.choices(4)
        assert choices[-1].shapes == {}
        assert choices[-1].parameters == group.dense_parameters
        assert choices[-1].error == 0
        for choice in choices:
            group.check(choice.shapes)
            assert group.choice(choice.shapes) == choice
            assert group.describe(choice.shapes)
            tensors = group.tensors(choice.shapes)
            touched = [layer.name for layer in group.layers if any(n.startswith(f"{layer.name}.") for n in tensors)]
            before = sum(p.numel() for name in touched for p in ready.subject.model.get_submodule(name).parameters())
            after = sum(tensor.numel() for tensor in tensors.values())
            assert choice.parameters - group.dense_parameters == after - before
            assert all(cost(choice) <= cost(choices[-1]) for cost in COUNTED)
        assert [choice.parameters for choice in choices] == sorted(choice.parameters for choice in choices)


@pytest.mark.parametrize("method", METHODS)
def test_small_predicted_errors_are_about_the_measured_divergence(method: str) -> None:
    """One part at a time; the prediction is of second order, and takes inputs and gradients to be independent."""
    ready = prepared(damping=1e-6, **METHODS[method])
    reference, ratios = logits(ready.subject.model, IMAGES), []
    for group in ready.groups:
        choices = [choice for choice in group.choices(1) if 0 < choice.error < 0.02]
        if choices:
            choice = max(choices, key=lambda one: one.error)
            small = build_model(ready.subject.model, CompressionPlan(choice.shapes), ready.groups)
            ratios.append(kl(reference, logits(small, IMAGES)) / choice.error)
    assert len(ratios) >= 2
    assert all(1 / 5 < ratio < 5 for ratio in ratios), ratios
    assert 1 / 2 < float(torch.tensor(ratios).log().mean().exp()) < 2, ratios


# ---- one layer


@every_metric
def test_a_layer_by_itself_has_the_errors_of_its_factorization(metric: str) -> None:
    group = part_of(SingleLayerGroup, metric, **LOW_RANK)
    model, statistics = calibrated(metric)
    errors = factorize(
        LayerMoments.of(group.layers[0], model.get_submodule(group.name), statistics, group.config),
        group.config.damping,
    ).errors
    expected = errors if metric == "fisher" else errors / errors[0]
    assert torch.allclose(group.solution, expected, rtol=1e-6, atol=1e-9)
    assert [choice.shapes for choice in group.choices(5)] == [{group.name: {"rank": r}} for r in (5, 10, 15)] + [{}]


# ---- queries and keys


def stacked(metric: str, correct_bias: bool) -> tuple[Tensor, Tensor, Tensor]:
    """`M_out`, `[W_q; W_k]` and `M_in`, by hand."""
    model, statistics = calibrated(metric)
    names = [f"{ATTENTION}.q_proj", f"{ATTENTION}.k_proj"]
    x = flow(model, names[0])
    x = x - x.mean(0) if correct_bias else x
    moment = x.T @ x / len(x)
    inputs = {"activation": moment, "fisher": moment}
    eye = torch.eye(WIDTH, dtype=torch.float64)
    sides = []
    for name in names:
        gradient = statistics.gradients[name].moment if metric == "fisher" else eye
        if metric == "row_fisher":
            gradient = torch.diag(statistics.gradients[name].mean_square)
        sides.append(gradient)
    return torch.block_diag(*sides), torch.cat([weight_of(model, name) for name in names]), inputs.get(metric, eye)


@every_metric
@pytest.mark.parametrize("correct_bias", [True, False])
def test_errors_of_a_shared_down_are_those_of_the_stacked_weight(metric: str, correct_bias: bool) -> None:
    group = part_of(QueryKeyGroup, metric, correct_bias=correct_bias)
    side, weight, moment = stacked(metric, correct_bias)
    best = optimal_errors(side, weight, moment)[: WIDTH + 1]
    scale = 1.0 if metric == "fisher" else float(best[0])
    assert torch.allclose(group.solution * scale, best, rtol=1e-3, atol=1e-5 * float(best[0]))
    for rank in (1, 6, 20, WIDTH):
        tensors = group.tensors({group.name: {"qk_rank": rank}})
        up = torch.cat([tensors[f"{ATTENTION}.{letter}_proj.weight"] for letter in "qk"]).double()
        lost = weight - up @ tensors[f"{ATTENTION}.qk_down.weight"].double()
        measured = float(((side @ lost) * (lost @ moment)).sum() / 2)
        assert measured == pytest.approx(float(best[rank]), rel=1e-3, abs=1e-5 * float(best[0]))


@every_metric
def test_a_shared_down_of_full_rank_gives_the_weights_back(metric: str) -> None:
    group = part_of(QueryKeyGroup, metric)
    tensors = group.tensors({group.name: {"qk_rank": WIDTH}})
    for letter in "qk":
        name = f"{ATTENTION}.{letter}_proj"
        product = tensors[f"{name}.weight"].double() @ tensors[f"{ATTENTION}.qk_down.weight"].double()
        weight = weight_of(calibrated(metric)[0], name)
        assert (product - weight).norm() < 1e-4 * weight.norm()


@pytest.mark.parametrize("correct_bias", [True, False])
def test_biases_of_queries_and_keys_take_up_the_mean_of_the_error(correct_bias: bool) -> None:
    group = part_of(QueryKeyGroup, correct_bias=correct_bias)
    model, _ = calibrated("fisher")
    tensors = group.tensors({group.name: {"qk_rank": 4}})
    x = flow(model, f"{ATTENTION}.q_proj")
    for letter in "qk":
        name = f"{ATTENTION}.{letter}_proj"
        linear = copy.deepcopy(model.get_submodule(name)).requires_grad_(False)
        low = x @ tensors[f"{ATTENTION}.qk_down.weight"].double().T @ tensors[f"{name}.weight"].double().T
        offset = low + tensors[f"{name}.bias"].double() - x @ linear.weight.double().T - linear.bias.double()
        assert (float(offset.mean(0).norm()) < 1e-4 * float(offset.norm(dim=1).mean())) is correct_bias
        assert torch.equal(tensors[f"{name}.bias"].float(), linear.bias.detach()) is not correct_bias


def test_up_and_shared_down_have_equal_norms_per_component() -> None:
    group = part_of(QueryKeyGroup)
    tensors = group.tensors({group.name: {"qk_rank": 6}})
    up = torch.cat([tensors[f"{ATTENTION}.{letter}_proj.weight"] for letter in "qk"])
    assert torch.allclose(up.norm(dim=0), tensors[f"{ATTENTION}.qk_down.weight"].norm(dim=1))


# ---- keys without a bias

KEYLESS: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "intermediate_size": HIDDEN,
    "image_size": 16,
    "patch_size": 4,
}


@functools.cache
def keyless(kind: str) -> tuple[PreTrainedModel, Statistics, str]:
    """A model whose keys have no bias where queries and values do, its statistics, its first attention."""
    if kind == "beit":
        model, name = lively(BeitForImageClassification, BeitConfig(**KEYLESS, num_labels=5)), "beit.layers.0.attention"
    else:  # with rotary positions
        model, name = lively(DINOv3ViTModel, DINOv3ViTConfig(**KEYLESS)), "model.layer.0.attention"
    statistics = calibrate(
        Subject.alone(model), find_layers(model), open_images(IMAGES), quiet(config_of(fisher_probes=8))
    )
    return model, statistics, name


def keyless_parts(kind: str, **settings: Any) -> Planner:
    model, statistics, _ = keyless(kind)
    return make_planner(Subject.alone(model), statistics, quiet(config_of(**settings)))


every_keyless = pytest.mark.parametrize("kind", ["beit", "dinov3"])


@every_keyless
@pytest.mark.parametrize("method", METHODS)
def test_choices_of_attention_without_a_bias_of_keys_are_as_built(kind: str, method: str) -> None:
    ready = keyless_parts(kind, mlp="none", **{k: v for k, v in METHODS[method].items() if k != "mlp"})
    assert ready.costs.parameters - ready.fixed_parameters == sum(group.dense_parameters for group in ready.groups)
    for group in ready.groups[: len(ready.groups) // 2]:
        choices = group.choices(4)
        for choice in choices[:: max(1, len(choices) // 3)]:
            assert not any(name.endswith("k_proj.bias") for name in group.tensors(choice.shapes))
            small = build_model(ready.subject.model, CompressionPlan(choice.shapes), ready.groups)
            costs = count_costs(small)
            assert costs.parameters == ready.costs.parameters - choices[-1].parameters + choice.parameters
            assert costs.macs == ready.costs.macs - choices[-1].macs + choice.macs
            with torch.no_grad():
                assert small(pixel_values=IMAGES[:2])[0].isfinite().all()


@every_keyless
def test_one_down_for_keys_without_a_bias_passes_on_the_mean(kind: str) -> None:
    group = next(group for group in keyless_parts(kind).groups if isinstance(group, QueryKeyGroup))
    model, statistics, name = keyless(kind)
    x = flow(model, f"{name}.q_proj")
    children = [f"{name}.{letter}_proj" for letter in "qk"]
    side = torch.block_diag(*(statistics.gradients[child].moment for child in children))
    weight = torch.cat([weight_of(model, child) for child in children])
    moment = x.T @ x / len(x)
    best = optimal_errors(side, weight, moment)[: WIDTH + 1]
    assert torch.allclose(group.solution, best, rtol=1e-3, atol=1e-5 * float(best[0]))
    for rank in (4, 12, WIDTH):
        shapes = {group.name: {"qk_rank": rank}}
        tensors = group.tensors(shapes)
        up = torch.cat([tensors[f"{child}.weight"] for child in children]).double()
        lost = weight - up @ tensors[f"{name}.qk_down.weight"].double()
        measured = float(((side @ lost) * (lost @ moment)).sum() / 2)
        assert measured == pytest.approx(float(best[rank]), rel=1e-3, abs=1e-5 * float(best[0]))
        # The keys' error has its mean as it is, so that of the queries is not taken up either.
        assert torch.equal(tensors[f"{name}.q_proj.bias"].float(), model.get_submodule(f"{name}.q_proj").bias.detach())
        (target,) = group.regression_targets(shapes)
        assert target.bias is None
        assert not target.centered


@every_keyless
def test_heads_go_with_keys_without_a_bias(kind: str) -> None:
    ready = keyless_parts(kind, attention="prune", mlp="none")
    group = next(group for group in ready.groups if isinstance(group, HeadsGroup))
    model, _, name = keyless(kind)
    letters = {letter: f"{name}.{letter}_proj" for letter in "qkvo"}
    shapes = {own: {"out_features": 2 * SIZE} for letter, own in letters.items() if letter != "o"}
    shapes[letters["o"]] = {"in_features": 2 * SIZE}
    tensors, kept = group.tensors(shapes), sorted(group.solution[0][:2])
    features = torch.cat([torch.arange(head * SIZE, (head + 1) * SIZE) for head in kept])
    assert torch.equal(tensors[f"{letters['k']}.weight"], model.get_submodule(letters["k"]).weight[features])
    assert {own for own in tensors if own.endswith("bias")} == {f"{letters[letter]}.bias" for letter in "qvo"}
    regression_targets = group.regression_targets(shapes)
    assert [target.bias is None for target in regression_targets] == [False, True, False, False]
    assert [target.centered for target in regression_targets] == [True, False, True, True]
    dropped = copy.deepcopy(model)  # all four heads, of which two say nothing but their mean
    small = build_model(model, CompressionPlan(shapes), ready.groups)
    with torch.no_grad():
        o = dropped.get_submodule(letters["o"])
        o.weight.zero_()
        o.weight[:, features] = small.get_submodule(letters["o"]).weight
        o.bias.copy_(small.get_submodule(letters["o"]).bias)
        torch.testing.assert_close(small(pixel_values=IMAGES)[0], dropped(pixel_values=IMAGES)[0], rtol=1e-4, atol=1e-4)


# ---- attention that cannot lose heads


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            (BeitModel, BeitConfig(**KEYLESS, use_relative_position_bias=True)),
            r"'layers.0.attention' cannot go: BeitAttention has a position bias",
        ),
        (
            (Data2VecVisionModel, Data2VecVisionConfig(**KEYLESS)),
            r"Data2VecVision\w*SelfAttention has a position bias for every head, or a forward pass",
        ),
    ],
)
def test_heads_that_cannot_go_are_refused_with_what_to_use_instead(model: Any, message: str) -> None:
    model_class, own = model
    dense, config = lively(model_class, own), config_of(attention="prune", metric="weight")
    statistics = calibrate(Subject.alone(dense), find_layers(dense), open_images(IMAGES[:32]), quiet(config))
    with pytest.raises(ConfigError, match=message) as caught:
        make_planner(Subject.alone(dense), statistics, quiet(config))
    assert 'Use attention="low_rank", attention="joint" or attention="none"' in str(caught.value)
    with pytest.raises(ConfigError, match=message):
        gated_layers(dense, config)
    for instead in ("low_rank", "joint", "none"):
        config = config_of(attention=instead, metric="weight")
        assert make_planner(Subject.alone(dense), statistics, quiet(config)).groups


def test_blocks_without_any_layer_of_attention_lose_no_heads() -> None:
    ready = prepared("weight", attention="prune", skip_modules=["layers.0.attention.*"])
    assert [group.role for group in ready.groups] == ["mlp", "heads", "mlp"]


def fused(roles: dict[str, str]) -> dict[Any, LayerInfo]:
    """Layers of a block of the usual model, in other roles."""
    by_name = {layer.name: layer for layer in find_layers(calibrated("weight")[0])}
    return {role: replace(by_name[f"{ATTENTION}.{name}_proj"], role=role) for role, name in roles.items()}


def test_one_layer_for_queries_keys_and_values_is_factored_alone() -> None:
    model, statistics = calibrated("weight")
    layers = list(fused({"qkv": "q", "o": "o"}).values())
    for attention, expected in (("low_rank", ["qkv", "o"]), ("joint", ["qkv", "o"])):
        groups = make_groups(layers, Given(model, statistics, config_of(metric="weight", attention=attention)))
        assert [group.role for group in groups] == expected
        assert all(isinstance(group, SingleLayerGroup) for group in groups)
    with pytest.raises(ConfigError, match="ViTAttention has one layer for queries, keys and values together"):
        make_groups(layers, Given(model, statistics, config_of(metric="weight", attention="prune")))


# ---- windows


@pytest.mark.parametrize(("model_class", "window"), [(SwinModel, 4), (Swinv2Model, 5)])
def test_products_of_windowed_attention_are_counted_by_window(model_class: Any, window: int) -> None:
    sizes = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4]}
    dense = lively(model_class, model_class.config_class(**sizes, window_size=window, mlp_ratio=2.0))
    config = config_of(metric="weight", mlp="none")
    statistics = calibrate(
        Subject.alone(dense),
        find_layers(dense),
        open_images(random_images(32).repeat(1, 1, 2, 2)),
        quiet(config),
    )
    ready = make_planner(Subject.alone(dense), statistics, quiet(config))
    for group in ready.groups:
        choice = group.choices(4)[0]
        small = build_model(dense, CompressionPlan(choice.shapes), ready.groups, share_memory=True)
        costs, full = count_costs(small), group.choice({})
        assert costs.macs == ready.costs.macs - full.macs + choice.macs, group.name
        assert costs.parameters == ready.costs.parameters - full.parameters + choice.parameters


# ---- heads


def heads_kept(kept: int) -> dict[str, dict[str, int]]:
    width = kept * SIZE
    layers = {f"{ATTENTION}.{letter}_proj": {"out_features": width} for letter in "qkv"}
    return {**layers, f"{ATTENTION}.o_proj": {"in_features": width}}


@pytest.mark.parametrize("repair", [True, False])
@pytest.mark.parametrize("correct_bias", [True, False])
def test_errors_of_heads_are_those_of_the_output_on_the_data(repair: bool, correct_bias: bool) -> None:
    group = part_of(HeadsGroup, "activation", **METHODS["pruned"], repair=repair, correct_bias=correct_bias)
    model, _ = calibrated("activation")
    a, linear = flow(model, f"{ATTENTION}.o_proj"), model.get_submodule(f"{ATTENTION}.o_proj")
    dense = a @ linear.weight.detach().double().T + linear.bias.detach().double()
    energy = (dense - linear.bias.detach().double()) - (dense.mean(0) - linear.bias.detach().double()) * correct_bias
    scale = float(energy.square().sum(1).mean()) / 2
    for kept in range(1, HEADS):
        tensors = group.tensors(heads_kept(kept))
        features = torch.cat([torch.arange(h * SIZE, (h + 1) * SIZE) for h in sorted(group.solution[0][:kept])])
        name = f"{ATTENTION}.o_proj"
        small = a[:, features] @ tensors[f"{name}.weight"].double().T + tensors[f"{name}.bias"].double()
        measured = float((dense - small).square().sum(1).mean()) / 2 / scale
        assert group.choice(heads_kept(kept)).error == pytest.approx(measured, rel=1e-3)
        for letter in "qkv":
            own = f"{ATTENTION}.{letter}_proj"
            assert torch.equal(tensors[f"{own}.weight"], model.get_submodule(own).weight[features])
            assert torch.equal(tensors[f"{own}.bias"], model.get_submodule(own).bias[features])


@pytest.mark.parametrize("repair", [True, False])
@pytest.mark.parametrize("unused", [0, 2])
def test_heads_that_nothing_reads_can_go_without_a_trace(unused: int, repair: bool) -> None:
    model = lively(seed=4)
    with torch.no_grad():
        model.get_submodule(f"{ATTENTION}.o_proj").weight[:, unused * SIZE : (unused + 1) * SIZE] = 0
    config = config_of(**METHODS["pruned"], repair=repair)
    statistics = calibrate(Subject.alone(model), find_layers(model), open_images(IMAGES), quiet(config))
    ready = make_planner(Subject.alone(model), statistics, quiet(config))
    group = ready.groups[0]
    assert group.choice(heads_kept(3)).error < 1e-6 * group.choice(heads_kept(1)).error
    if not repair:
        assert group.solution[0][-1] == unused
    small = build_model(model, CompressionPlan(heads_kept(3)), ready.groups)
    torch.testing.assert_close(logits(small, IMAGES), logits(model, IMAGES), rtol=1e-3, atol=1e-3)


def test_heads_go_in_the_order_of_their_learned_scores() -> None:
    scores = torch.tensor([0.2, -0.9, 0.5, 0.1])
    importance = {f"vit.layers.{block}.attention.o_proj": scores for block in (0, 1)}
    group = part_of(HeadsGroup, attention="prune", mlp="none", criterion="gates", importance=importance)
    assert group.solution[0] == [1, 2, 0, 3]


@pytest.mark.parametrize(
    ("importance", "message"),
    [
        (None, "needs learned scores of what flows into 'vit.layers.0.attention.o_proj'"),
        ({f"{ATTENTION}.o_proj": torch.ones(5)}, r"There are \(5,\) scores .* it has 4"),
    ],
)
def test_missing_or_wrong_scores_are_refused(importance: dict[str, Tensor] | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prepared(attention="prune", mlp="none", criterion="gates", importance=importance)


def test_heads_go_in_the_order_of_their_magnitude() -> None:
    group = part_of(HeadsGroup, criterion="magnitude", **METHODS["pruned"])
    model, _ = calibrated("fisher")
    scores = torch.ones(HEADS)
    for letter in "qkv":
        scores = scores * model.get_submodule(f"{ATTENTION}.{letter}_proj").weight.detach().reshape(4, -1).norm(dim=1)
    scores = scores * model.get_submodule(f"{ATTENTION}.o_proj").weight.detach().T.reshape(4, -1).norm(dim=1)
    assert group.solution[0] == scores.argsort(descending=True).tolist()


def test_repaired_heads_predict_less_loss_than_cut_ones() -> None:
    repaired, cut = (part_of(HeadsGroup, repair=repair, **METHODS["pruned"]) for repair in (True, False))
    assert repaired.solution[0] == cut.solution[0]
    assert (repaired.solution[1][1:-1] < cut.solution[1][1:-1]).all()
