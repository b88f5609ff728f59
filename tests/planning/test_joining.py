"""Tables in which modules may be removed, against all pairs of choices."""

import itertools
from typing import Any

import pytest

from hf_vitcompress.planning.allocation import Budget, Table, make_plan
from hf_vitcompress.planning.groups.base import Choice
from hf_vitcompress.planning.groups.removal import is_removed
from hf_vitcompress.planning.joining import joined, removable, smallest_parameters, with_removals
from support.groups import config_of, prepared
from support.students import LOW_RANK, METHODS


def table(name: str, weight: float, macs: int) -> Table:
    """Of errors that are not convex, with the products of attention on top of the layers'."""
    sizes = (1, 2, 4, 5, 8)
    choices = [Choice(p, 7 * p + macs * (p % 3), 9.0 / p**1.3, {name: {"rank": p}}) for p in sizes]
    return Table(name, [*choices, Choice(10, 90, 0.0, {})], weight)


FIRST, SECOND = table("qk", 2.0, 5), table("vo", 1.0, 3)
NOTHING = Choice(0, 0, 0.0, {"qk": {"out_features": 0}}), Choice(1, 0, 30.0, {"vo": {"in_features": 0}})


def test_a_joined_table_has_nothing_of_both_and_the_pairs_that_no_other_beats() -> None:
    found = joined(FIRST, SECOND, NOTHING)
    assert (found.name, found.weight) == ("vo", 1.0)
    nothing, *pairs = found.choices
    assert nothing == Choice(1, 0, 30.0, {**NOTHING[0].shapes, **NOTHING[1].shapes})
    assert pairs[-1] == Choice(20, 180, 0.0, {})
    every = {
        (one.parameters + other.parameters, one.macs + other.macs, 2.0 * one.error + other.error)
        for one, other in itertools.product(FIRST.choices, SECOND.choices)
    }
    offered = {(own.parameters, own.macs, own.error) for own in pairs}
    assert offered <= every
    for unit in (0, 1):
        for other in every:
            assert any(one[unit] <= other[unit] and one[2] <= other[2] for one in offered)
    for one in offered:
        beaten = [other for other in every if other != one and all(a <= b for a, b in zip(other, one, strict=True))]
        assert not beaten


def test_shapes_of_a_joined_choice_are_those_of_both() -> None:
    for choice in joined(FIRST, SECOND, NOTHING).choices[1:]:
        parts = [
            next(own for own in table.choices if own.shapes == {n: s for n, s in choice.shapes.items() if n == name})
            for name, table in (("qk", FIRST), ("vo", SECOND))
        ]
        assert sum(part.parameters for part in parts) == choice.parameters
        assert 2.0 * parts[0].error + parts[1].error == pytest.approx(choice.error)


def test_a_small_budget_takes_nothing_of_both_and_a_larger_one_some() -> None:
    tables = [joined(FIRST, SECOND, NOTHING)]
    for room in range(1, 21):
        plan = make_plan(tables, Budget(room, 20, 0), "greedy")
        assert is_removed(plan.layers) is (room == 1)
        assert plan.layers.keys() <= {"qk", "vo"}


@pytest.mark.parametrize(
    ("settings", "roles"),
    [
        ({}, {"qk", "vo", "mlp"}),
        (METHODS["pruned"], {"heads", "mlp"}),
        ({"skip_modules": ["q_proj"]}, {"mlp"}),  # the values could not go without their queries and keys
        ({"skip_modules": ["v_proj"]}, {"mlp"}),
        ({"mlp": "low_rank"}, {"qk", "vo"}),
        (LOW_RANK, set()),
        ({"allocation": "uniform"}, set()),
        ({"metric": "activation"}, set()),
    ],
)
def test_whole_modules_may_go_where_errors_are_losses_and_nobody_keeps_one_share(
    settings: dict[str, Any], roles: set[str]
) -> None:
    ready = prepared(**{"metric": "fisher", **settings})
    config = ready.groups[0].config
    found = removable(ready.groups, config)
    assert {group.role for group, goes in zip(ready.groups, found, strict=True) if goes} == roles
    tables = [Table(group.name, group.choices(4)) for group in ready.groups]
    offered = with_removals(tables, ready.groups, config)
    assert len(offered) == len(tables) - (2 if {"qk", "vo"} <= roles else 0)
    assert sum(is_removed(choice.shapes) for own in offered for choice in own.choices) == 2 * len(roles - {"qk"})
    smallest = smallest_parameters(ready.groups, config)
    lowest = sum(
        min(choice.parameters for choice in own.choices)
        for own in with_removals(
            [Table(group.name, group.choices(config.rank_multiple)) for group in ready.groups], ready.groups, config
        )
    )
    assert smallest == lowest
    assert ready.lowest_keep_ratio(config.rank_multiple) == (ready.fixed_parameters + smallest) / ready.costs.parameters


def test_a_plan_without_room_for_anything_else_removes_every_module_and_says_so() -> None:
    ready = prepared()
    config = config_of(keep_ratio=None, max_params=ready.fixed_parameters)
    plan = ready.plan(config, exact=False)
    plan.check(ready.groups, ready.subject)
    assert {group.describe(plan.shapes_of(group)) for group in ready.groups} == {"removed"}
    assert plan.keep_ratio == ready.fixed_parameters / ready.costs.parameters
