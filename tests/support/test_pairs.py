"""Parametrization by pairs."""

import itertools

import pytest

from support.pairs import pair_cover, pairwise


@pytest.mark.parametrize(
    ("sizes", "most"), [((2, 5), 10), ((5, 3, 3), 15), ((3, 3, 3, 2), 11), ((5, 3, 3, 3), 19), ((2,) * 6, 8)]
)
def test_any_two_levels_meet_in_few_combinations(sizes: tuple[int, ...], most: int) -> None:
    chosen = pair_cover(sizes)
    for (i, m), (j, n) in itertools.combinations(enumerate(sizes), 2):
        assert {(levels[i], levels[j]) for levels in chosen} == set(itertools.product(range(m), range(n)))
    assert {levels[0] for levels in chosen} == set(range(sizes[0]))
    assert len(set(chosen)) == len(chosen) <= most
    assert chosen == pair_cover(sizes)


def test_one_parameter_has_no_pairs() -> None:
    with pytest.raises(ValueError, match="two parameters"):
        pair_cover([3])


def test_a_mark_names_its_cases_and_unpacks_values_that_change_together() -> None:
    mark = pairwise({"metric": ["a", "b"], "bias, corrected": {"both": (True, True), "none": (False, False)}}).mark
    assert mark.args[0] == "metric, bias, corrected"
    assert {case.id: case.values for case in mark.args[1]} == {
        "a-both": ("a", True, True),
        "a-none": ("a", False, False),
        "b-both": ("b", True, True),
        "b-none": ("b", False, False),
    }
