"""Combinations of ranks that no other beats, against all of them."""

import itertools

import pytest
import torch
from torch import Tensor

from hf_vitcompress.planning.pareto import rank_options, ranks_below, undominated


def curves(layers: int, ranks: int, seed: int = 0) -> list[Tensor]:
    """(ranks + 1,) each, falling to 0; not convex."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.rand(layers, ranks, generator=generator, dtype=torch.float64) ** 3
    return [torch.cat([own.flip(0).cumsum(0).flip(0), own.new_zeros(1)]) for own in steps]


def test_the_undominated_are_those_that_nothing_equals_or_beats() -> None:
    generator = torch.Generator().manual_seed(0)
    costs = torch.randint(0, 30, (200,), generator=generator).tolist()
    errors = torch.randint(0, 30, (200,), generator=generator).double().tolist()
    found = undominated(costs, errors)
    points = [(costs[i], errors[i]) for i in found]
    assert points == sorted(points)
    assert len(set(points)) == len(points)
    for point in zip(costs, errors, strict=True):
        assert any(one[0] <= point[0] and one[1] <= point[1] for one in points)
    for one, other in itertools.permutations(points, 2):
        assert not (other[0] <= one[0] and other[1] <= one[1])


def test_of_equals_the_first_is_taken_and_of_nothing_none() -> None:
    assert undominated([3, 3, 1, 1], [0.0, 0.0, 1.0, 1.0]) == [2, 0]
    assert undominated([], []) == []


@pytest.mark.parametrize("sides", [(20,), (20, 14), (20, 20, 24), (20, 20, 9)])
@pytest.mark.parametrize("multiple", [1, 3])
def test_options_are_the_best_of_all_combinations(sides: tuple[int, ...], multiple: int) -> None:
    width, own = 16, curves(len(sides), 16)
    found = rank_options(sides, width, own, multiple, error=0.25)
    every = [[None, *ranks_below(side, width, multiple)] for side in sides]
    points = {}
    for ranks in itertools.product(*every):
        weights = sum(s * width if r is None else r * (s + width) for s, r in zip(sides, ranks, strict=True))
        error = 0.25
        for curve, rank in zip(own, ranks, strict=True):
            error += 0.0 if rank is None else float(curve[rank])
        points[ranks] = weights, error
    for option in found:
        assert points[option.ranks] == (option.weights, option.error)
    for weights, error in points.values():
        assert any(one.weights <= weights and one.error <= error for one in found)
    assert [option.weights for option in found] == sorted(option.weights for option in found)
    assert [option.error for option in found] == sorted((option.error for option in found), reverse=True)
    assert found[-1].ranks == (None,) * len(sides)


def test_without_curves_all_is_dense() -> None:
    assert rank_options((20, 30), 8, None, 1, error=0.5) == [(400, 0.5, (None, None))]
