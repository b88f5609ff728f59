"""Parametrization by pairs: every value meets every value of every other parameter, in far fewer cases than all."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

Values = Mapping[str, Any] | Sequence[Any]
Pair = tuple[tuple[int, int], tuple[int, int]]


def pairwise(factors: Mapping[str, Values]) -> pytest.MarkDecorator:
    """A mark like `pytest.mark.parametrize` with a chosen part of the product of some parameters' values.

    Args:
        factors: by the name of a parameter its values, or what to call them → its values. A name may be several that
            change together, `"bias, correct_bias"`, with tuples as values.
    """
    named = [_named(values) for values in factors.values()]
    cases = []
    for levels in pair_cover([len(values) for values in named]):
        chosen = [values[level] for values, level in zip(named, levels, strict=True)]
        flat = [group for name, (_, value) in zip(factors, chosen, strict=True) for group in _parts(name, value)]
        cases.append(pytest.param(*flat, id="-".join(label for label, _ in chosen)))
    return pytest.mark.parametrize(", ".join(factors), cases)


def pair_cover(sizes: Sequence[int]) -> list[tuple[int, ...]]:
    """Combinations of levels 0 … size − 1 of factors of those sizes, such that any two levels of two factors meet.

    Greedy, hence not always the fewest; the same every time.
    """
    if len(sizes) < 2:
        raise ValueError("Pairs need two parameters or more; for one there is `pytest.mark.parametrize`.")
    candidates = {levels: _pairs(levels) for levels in itertools.product(*map(range, sizes))}
    left = set[Pair]().union(*candidates.values())
    chosen = []
    while left:
        best = max(candidates, key=lambda levels: len(candidates[levels] & left))
        chosen.append(best)
        left -= candidates[best]
    return sorted(chosen)


def _pairs(levels: tuple[int, ...]) -> set[Pair]:
    return set(itertools.combinations(enumerate(levels), 2))


def _named(values: Values) -> list[tuple[str, Any]]:
    return [*values.items()] if isinstance(values, Mapping) else [(_label(value), value) for value in values]


def _label(value: Any) -> str:
    return getattr(value, "__name__", None) or str(value).replace(" ", "")


def _parts(name: str, value: Any) -> tuple[Any, ...]:
    return value if "," in name else (value,)
