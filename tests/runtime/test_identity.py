"""What tells results of different things apart, and the words for it."""

import pytest

from hf_vitcompress.runtime.identity import Identity, differences, facts_of, identity_digest


def test_short_values_stay_readable_and_long_ones_become_digests() -> None:
    facts = facts_of({"eps": 1e-12, "act": "gelu", "size": {"width": 8, "height": 4}, "long": list(range(99))})
    assert facts["eps"] == "1e-12"
    assert facts["act"] == '"gelu"'
    assert facts["size"] == '{"height": 4, "width": 8}'
    assert len(facts["long"]) == 64
    assert facts["long"] != facts_of({"long": list(range(98))})["long"]


def test_what_is_no_plain_data_counts_by_its_type_and_not_by_its_address() -> None:
    assert facts_of({"x": object()}) == facts_of({"x": object()})
    assert facts_of({"x": object()}) != facts_of({"x": Exception()})


NOW: Identity = {"another model": {"weights": "a" * 64}, "other settings": {"seed": "0", "metric": "1"}}


@pytest.mark.parametrize(
    ("then", "told"),
    [
        (NOW, ""),
        ({}, ""),
        ({"another model": {}}, ""),
        (
            {"another model": {"weights": "b" * 64, "gone": "1"}},
            "another model (weights bbbbbbbbbbbb…, now aaaaaaaaaaaa…)",
        ),
        ({**NOW, "other settings": {"seed": "7", "metric": "1"}}, "other settings (seed 7, now 0)"),
        (
            {"another model": {"weights": "c"}, "other settings": {"seed": "7"}},
            "another model (weights c, now aaaaaaaaaaaa…) and other settings (seed 7, now 0)",
        ),
    ],
)
def test_differences_are_named(then: Identity, told: str) -> None:
    assert differences(then, NOW) == told


def test_of_many_differences_the_first_are_named() -> None:
    then, now = ({"other settings": {name: str(value) for name in "abcdef"}} for value in (1, 2))
    assert differences(then, now) == "other settings (a 1, now 2; b 1, now 2; c 1, now 2; 3 more)"


def test_every_fact_counts_in_the_digest() -> None:
    others = [{}, {**NOW, "other settings": {"seed": "0"}}, {**NOW, "other settings": {"seed": "1", "metric": "1"}}]
    assert len({identity_digest(identity) for identity in (NOW, *others)}) == 4
    assert identity_digest(dict(reversed(NOW.items()))) == identity_digest(NOW)
