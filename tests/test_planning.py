"""Budgets: against brute force, at their edges, and through the whole compressor."""

import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import seeded, tiny_config
from torch import Tensor
from transformers import PreTrainedModel, ViTForImageClassification

from hf_vitcompress.compressor import ViTCompressor
from hf_vitcompress.config import CompressionConfig
from hf_vitcompress.costs import count_costs
from hf_vitcompress.errors import BudgetError, ConfigError
from hf_vitcompress.families import LayerInfo, find_layers
from hf_vitcompress.planning import KEEP_TOLERANCE, Budget, CompressionPlan, Curve, make_plan
from hf_vitcompress.statistics import Statistics


def curve(i: int, shape: tuple[int, int], errors: Tensor, positions: int = 1, role: str = "o") -> Curve:
    layer = LayerInfo(f"layers.{i}.{role}", role, i, f"layers.{i}.input", shape[1], shape[0])
    return Curve(layer, errors.double(), positions)


def convex(size: int, seed: int, steepness: float = 1.0, vanish: int | None = None) -> Tensor:
    """Errors at rank 0 … size of random falling gains; none from rank `vanish` on."""
    gains = torch.rand(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    gains = gains.pow(steepness).sort(descending=True).values
    gains[size if vanish is None else vanish :] = 0
    return torch.cat([gains.flip(0).cumsum(0).flip(0), gains.new_zeros(1)])


def cost(curves: Sequence[Curve], plan: CompressionPlan, unit: str = "params") -> int:
    return sum(c.cost(plan.ranks.get(c.layer.name), unit) for c in curves)


def error(curves: Sequence[Curve], plan: CompressionPlan) -> float:
    return sum(c.error(plan.ranks.get(c.layer.name)) for c in curves)


def least_error(curves: Sequence[Curve], room: int, multiple: int) -> float:
    """Brute force over every combination of ranks."""
    return min(
        sum(c.error(rank) for c, rank in zip(curves, ranks, strict=True))
        for ranks in itertools.product(*(c.ranks(multiple) for c in curves))
        if sum(c.cost(rank, "params") for c, rank in zip(curves, ranks, strict=True)) <= room
    )


def bounds(curves: Sequence[Curve], multiple: int, unit: str = "params") -> tuple[int, int]:
    """The least and the most that the layers can cost."""
    return sum(c.cost(c.ranks(multiple)[0], unit) for c in curves), sum(c.cost(None, unit) for c in curves)


def budget(room: int, curves: Sequence[Curve], unit: str = "params", fixed: int = 100, exact: bool = False) -> Budget:
    original = fixed + sum(c.cost(None, unit) for c in curves)
    return Budget(fixed + room, original, fixed, unit, exact)


@pytest.mark.parametrize("seed", range(5))
def test_greedy_is_optimal_where_all_blocks_cost_the_same(seed: int) -> None:
    # 16 × 16 with multiples of 2: every step costs 64, the one to dense included.
    curves = [curve(i, (16, 16), convex(16, 10 * seed + i, vanish=8)) for i in range(4)]
    lowest, highest = bounds(curves, 2)
    for room in range(lowest, highest + 1, 40):
        plan = make_plan(curves, budget(room, curves), "greedy", 2)
        assert error(curves, plan) == pytest.approx(least_error(curves, room, 2), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("steepness", [1.0, 4.0])
def test_greedy_is_optimal_up_to_one_block(seed: int, steepness: float) -> None:
    shapes = [(16, 16), (12, 48), (48, 12), (20, 20)]
    curves = [curve(i, shape, convex(min(shape), 10 * seed + i, steepness, vanish=8)) for i, shape in enumerate(shapes)]
    lowest, highest = bounds(curves, 2)
    block = max(2 * c.layer.parameters_per_rank for c in curves)
    for room in range(lowest + block, highest + 1, 150):
        plan = make_plan(curves, budget(room, curves), "greedy", 2)
        assert error(curves, plan) <= least_error(curves, room - block, 2) + 1e-12


@pytest.mark.parametrize("steepness", [0.1, 0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("seed", range(2))
def test_greedy_is_near_the_optimum_where_dense_layers_gain_most(steepness: float, seed: int) -> None:
    # Curves fall to the full rank, but dense costs no more than half of it: the last step is the best of all per cost,
    # and a planner that only looks one step ahead cuts all layers by half instead of some of them deeply.
    curves = [curve(i, (24, 24), convex(24, 10 * seed + i, steepness)) for i in range(3)]
    lowest, highest = bounds(curves, 2)
    total = sum(c.error(0) for c in curves)
    for room in range(lowest, highest + 1, 64):
        plan = make_plan(curves, budget(room, curves), "greedy", 2)
        assert error(curves, plan) <= least_error(curves, room, 2) + 0.06 * total


def test_one_flat_layer_stays_dense_rather_than_two_cut_by_half() -> None:
    # Gains fall from 1.1 to 1 per rank, so that a planner that looks one step ahead takes turns.
    errors = torch.cat([torch.linspace(1.1, 1.0, 32).flip(0).cumsum(0).flip(0), torch.zeros(1)])
    curves = [curve(i, (32, 32), errors) for i in range(2)]
    plan = make_plan(curves, budget(1024 + 256, curves), "greedy", 4)
    assert list(plan.ranks.values()) == [4]


def test_weights_steer_the_budget_towards_their_role() -> None:
    errors = convex(32, 0, vanish=16)
    curves = [curve(0, (32, 32), errors, role="q"), curve(1, (32, 32), errors, role="o")]
    room = sum(bounds(curves, 2)) // 2

    def ranks(weight: float) -> tuple[int, int]:
        plan = make_plan(curves, budget(room, curves), "greedy", 2, {"q": weight})
        return tuple(plan.ranks.get(c.layer.name, 32) for c in curves)

    assert ranks(8.0)[0] > ranks(1.0)[0] > ranks(1 / 8)[0]
    assert ranks(8.0)[1] < ranks(1 / 8)[1]


MODEL = [(64, 64)] * 4 + [(192, 64), (64, 192)]


def model_curves(seed: int = 0) -> list[Curve]:
    return [curve(i, s, convex(min(s), seed * 100 + i, 1.0 + i), positions=17) for i, s in enumerate(MODEL)]


@pytest.mark.parametrize("allocation", ["greedy", "uniform"])
@pytest.mark.parametrize("unit", ["params", "macs"])
@pytest.mark.parametrize("multiple", [1, 3, 8])
def test_no_plan_exceeds_its_budget_or_breaks_even(allocation: str, unit: str, multiple: int) -> None:
    curves = model_curves()
    lowest, highest = bounds(curves, multiple, unit)
    largest = max(multiple * c.layer.parameters_per_rank * (17 if unit == "macs" else 1) for c in curves)
    for room in torch.linspace(lowest, highest, 60).long().tolist():
        plan = make_plan(curves, budget(room, curves, unit), allocation, multiple)
        assert cost(curves, plan, unit) <= room
        if allocation == "greedy":
            assert cost(curves, plan, unit) > room - largest
        for c in curves:
            rank = plan.ranks.get(c.layer.name)
            assert rank is None or (rank % multiple == 0 and multiple <= rank < c.layer.break_even_rank)


@pytest.mark.parametrize("allocation", ["greedy", "uniform"])
@pytest.mark.parametrize("shapes", [[(64, 64), (64, 8)], [(64, 64), (16, 16)], [(16, 16), (16, 16)]])
def test_layers_too_narrow_for_a_rank_stay_dense(allocation: str, shapes: list[tuple[int, int]]) -> None:
    curves = [curve(i, shape, convex(min(shape), i)) for i, shape in enumerate(shapes)]
    lowest, highest = bounds(curves, 8)
    for room in {lowest, (lowest + highest) // 2, highest - 1, highest}:
        if room < lowest:
            continue
        plan = make_plan(curves, budget(room, curves), allocation, 8)
        assert cost(curves, plan) <= room
        for c in curves:
            assert 0 < plan.ranks.get(c.layer.name, 1) < c.layer.break_even_rank


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.7, 0.9])
def test_uniform_gives_every_layer_about_the_same_share(ratio: float) -> None:
    curves = model_curves()
    _, highest = bounds(curves, 2)
    plan = make_plan(curves, budget(int(ratio * highest), curves), "uniform", 2)
    for c in curves:
        share = c.cost(plan.ranks[c.layer.name], "params") / c.layer.parameters
        assert abs(share - ratio) <= 2 * c.layer.parameters_per_rank / c.layer.parameters


@pytest.mark.parametrize("allocation", ["greedy", "uniform"])
@pytest.mark.parametrize("multiple", [1, 8])
def test_whole_budget_keeps_everything_dense(allocation: str, multiple: int) -> None:
    curves = model_curves()
    _, highest = bounds(curves, multiple)
    assert make_plan(curves, budget(highest, curves, exact=True), allocation, multiple).ranks == {}


@pytest.mark.parametrize("allocation", ["greedy", "uniform"])
@pytest.mark.parametrize("multiple", [1, 4, 16])
def test_exact_budget_is_met_or_its_bound_is_named(allocation: str, multiple: int) -> None:
    curves = model_curves(1)
    lowest, highest = bounds(curves, multiple)
    # The rest of the model is so large that one rank is less than the tolerance.
    met, refused = 0, []
    for room in torch.linspace(lowest, highest, 80).long().tolist():
        bound = budget(room, curves, fixed=60_000, exact=True)
        try:
            spent = bound.fixed + cost(curves, make_plan(curves, bound, allocation, multiple))
        except BudgetError as refusal:
            refused.append((bound, str(refusal)))
        else:
            met += 1
            assert bound.limit * (1 - KEEP_TOLERANCE) <= spent <= bound.limit
    assert met >= (80 if multiple == 1 and allocation == "greedy" else 5)
    for bound, message in refused:
        nearest = float(re.search(r"keeps (\d\.\d+)", message)[1]) * bound.original
        assert nearest < bound.limit * (1 - KEEP_TOLERANCE) + 1e-4 * bound.original
        assert f"rank_multiple={multiple}" in message


@pytest.mark.parametrize("allocation", ["greedy", "uniform"])
@pytest.mark.parametrize("multiple", [1, 8])
def test_impossible_budget_names_the_least_that_is_possible(allocation: str, multiple: int) -> None:
    curves = model_curves()
    lowest, _ = bounds(curves, multiple)
    bound = budget(lowest - 1, curves)
    with pytest.raises(BudgetError, match="out of reach") as refusal:
        make_plan(curves, bound, allocation, multiple)
    message = str(refusal.value)
    assert f"{bound.fixed + lowest:,}" in message
    assert f"keep ratio {(bound.fixed + lowest) / bound.original:.4f}" in message
    plan = make_plan(curves, budget(lowest, curves), allocation, multiple)
    assert set(plan.ranks.values()) == {multiple}


def test_budget_below_the_fixed_part_is_refused() -> None:
    curves = model_curves()
    with pytest.raises(BudgetError, match="lie outside the 6 layers"):
        make_plan(curves, Budget(50, 1000, 100), "greedy", 8)


# Through the compressor


@pytest.fixture(scope="module")
def statistics() -> Statistics:
    """Of the model that the fixture `vit` makes."""
    pixels = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    return compressor().calibrate(seeded(ViTForImageClassification, tiny_config()), pixels)


def compressor(**changes: Any) -> ViTCompressor:
    settings = {"precision": "float32", "rank_multiple": 1, "correct_curves": False, **changes}
    return ViTCompressor(CompressionConfig(**settings), progress=False)


@pytest.mark.parametrize("ratio", [0.35, 0.5, 0.77, 0.95])
def test_compressed_model_keeps_the_ratio(vit: PreTrainedModel, statistics: Statistics, ratio: float) -> None:
    worker = compressor(keep_ratio=ratio)
    small = worker.compress(vit, statistics=statistics)
    kept = count_costs(small).parameters / count_costs(vit).parameters
    assert ratio * (1 - KEEP_TOLERANCE) <= kept <= ratio
    assert worker.plan(vit, statistics).keep_ratio == pytest.approx(kept)


def test_keep_ratio_of_one_keeps_every_layer_dense(vit: PreTrainedModel, statistics: Statistics) -> None:
    plan = compressor(keep_ratio=1.0).plan(vit, statistics)
    assert plan.ranks == {}
    assert plan.keep_ratio == 1.0


def test_max_params_is_kept_to(vit: PreTrainedModel, statistics: Statistics) -> None:
    small = compressor(max_params=15_000).compress(vit, statistics=statistics)
    assert 15_000 - 128 < count_costs(small).parameters <= 15_000


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_max_macs_is_kept_to(vit: PreTrainedModel, statistics: Statistics, share: float) -> None:
    limit = int(share * count_costs(vit).macs)
    small = compressor(max_macs=limit).compress(vit, statistics=statistics)
    assert limit - 17 * 128 < count_costs(small).macs <= limit


@pytest.mark.parametrize("bound", [{"keep_ratio": 0.01}, {"max_params": 10}, {"max_macs": 10}])
def test_impossible_bound_is_refused_with_the_lowest_ratio(
    vit: PreTrainedModel, statistics: Statistics, bound: dict[str, Any]
) -> None:
    with pytest.raises(BudgetError, match=r"keep ratio 0\.\d{4} of"):
        compressor(**bound).plan(vit, statistics)


def test_skipped_layers_are_never_planned(vit: PreTrainedModel, statistics: Statistics) -> None:
    plan = compressor(keep_ratio=0.8, skip_modules=["fc1", "layers.0.*"]).plan(vit, statistics)
    assert plan.ranks
    assert all(name.startswith("vit.layers.1.") and not name.endswith("fc1") for name in plan.ranks)


# Plans as files


def test_plan_survives_the_file(vit: PreTrainedModel, statistics: Statistics, tmp_path: Path) -> None:
    plan = compressor(keep_ratio=0.5).plan(vit, statistics)
    plan.save(tmp_path / "folder" / "plan.json")
    assert CompressionPlan.load(tmp_path / "folder" / "plan.json") == plan
    assert json.loads(plan.to_json())["ranks"] == plan.ranks
    assert plan.budget == {"keep_ratio": 0.5}


def test_plan_edited_by_hand_is_what_the_model_gets(
    vit: PreTrainedModel, statistics: Statistics, tmp_path: Path
) -> None:
    path = tmp_path / "plan.json"
    compressor(keep_ratio=0.5).plan(vit, statistics).save(path)
    ranks = {"vit.layers.0.mlp.fc1": 3, "vit.layers.1.attention.q_proj": 32}
    path.write_text(json.dumps({**json.loads(path.read_text()), "ranks": ranks}))
    worker = compressor(keep_ratio=0.5)
    small = worker.compress(vit, statistics=statistics, plan=CompressionPlan.load(path))
    assert small.get_submodule("vit.layers.0.mlp.fc1").down.weight.shape == (3, 32)
    assert small.get_submodule("vit.layers.1.attention.q_proj").up.weight.shape == (32, 32)
    assert small.get_submodule("vit.layers.1.mlp.fc1").weight.shape == (96, 32)
    edited = {report.name: report.rank for report in worker.report.layers if report.rank is not None}
    assert edited == ranks
    expected = count_costs(vit).parameters - 32 * 96 + 3 * 128 - 32 * 32 + 32 * 64
    assert count_costs(small).parameters == expected


def test_plan_needs_only_its_ranks(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text('{"ranks": {"a": 8}}')
    assert CompressionPlan.load(tmp_path / "plan.json") == CompressionPlan({"a": 8})


@pytest.mark.parametrize(
    ("ranks", "named"),
    [
        ({"vit.layers.7.mlp.fc1": 4}, "vit.layers.7.mlp.fc1"),
        ({"classifier": 4}, "classifier"),
        ({"vit.layers.0.mlp.fc1": 33}, "1 … 32"),
        ({"vit.layers.0.mlp.fc1": 0}, "1 … 32"),
        ({"vit.layers.0.mlp.fc1": -4}, "-4"),
        ({"vit.layers.0.mlp.fc1": 4.0}, "4.0"),
        ({"vit.layers.0.mlp.fc1": "4"}, "'4'"),
        ({"vit.layers.0.mlp.fc1": True}, "True"),
        ({"vit.layers.0.mlp.fc1": None}, "None"),
    ],
)
def test_plan_that_the_model_cannot_have_is_refused(
    vit: PreTrainedModel, statistics: Statistics, ranks: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(named)):
        compressor().compress(vit, statistics=statistics, plan=CompressionPlan(ranks))


def test_plan_for_a_skipped_layer_is_refused(vit: PreTrainedModel, statistics: Statistics) -> None:
    plan = CompressionPlan({"vit.layers.0.mlp.fc1": 4})
    plan.check(find_layers(vit))
    with pytest.raises(ConfigError, match="skipped"):
        compressor(skip_modules=["fc1"]).compress(vit, statistics=statistics, plan=plan)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"ranks: 8",
        b'{"ranks": {"a": 8}',
        b"[1, 2]",
        b'"ranks"',
        b"null",
        b"{}",
        b'{"rank": {"a": 8}}',
        b'{"ranks": {"a": 8}, "surprise": 1}',
        b'{"ranks": ["a"]}',
        b'{"ranks": null}',
        b'{"ranks": 8}',
        b"\xff\xfe\x00",
    ],
)
def test_file_that_is_no_plan_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "plan.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"plan\.json"):
        CompressionPlan.load(tmp_path / "plan.json")


def test_missing_plan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no plan"):
        CompressionPlan.load(tmp_path / "none.json")
