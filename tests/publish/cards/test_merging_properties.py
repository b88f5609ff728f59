"""What holds for every renewal of a card, whatever a person wrote into it."""

from collections.abc import Iterator
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from hf_vitcompress.publish.cards.merging import (
    END,
    METRIC_SUFFIX,
    OURS,
    START,
    TRAITS,
    UNITED,
    merged_index,
    own_text,
    renewed,
)
from hf_vitcompress.report.card_file import Card
from support.properties import few_examples

words = st.text("abcxyz ÄßЖ*_#-|`<>!\\", max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=5,
)
ids = st.sampled_from(["en", "de", "me/a", "me/b", "mine", "vision", *TRAITS])
lists = st.lists(ids, max_size=4, unique=True) | ids


@st.composite
def texts(draw: Any, mark: str = "") -> str:
    """Lines, maybe with a mark that has lost its other half."""
    lines = draw(st.lists(words | st.just("# Title") | st.just("```\ncode\n```"), max_size=4))
    return "\n".join([*lines, *draw(st.lists(st.just(mark), max_size=1)), *draw(st.lists(words, max_size=2))])


@st.composite
def metrics(draw: Any, ours: bool = False) -> dict[str, Any]:
    name = draw(words) + (METRIC_SUFFIX if ours else "")
    return {"type": "accuracy", "value": draw(st.integers(0, 9)), "name": name, "more": draw(values)}


@st.composite
def indices(draw: Any, ours: bool) -> list[dict[str, Any]]:
    """A model index with results of others, or also of ours."""
    results = st.lists(metrics() | metrics(ours=True) if ours else metrics(), min_size=1, max_size=2).map(
        lambda found: {"dataset": {"name": "d"}, "metrics": found}
    )
    return [
        {"name": draw(words), "results": draw(st.lists(results, max_size=3))} for _ in range(draw(st.integers(1, 2)))
    ]


@st.composite
def metadata(draw: Any) -> dict[str, Any]:
    """Of a card that a person may have edited."""
    known = {**dict.fromkeys(OURS, ids), **dict.fromkeys(UNITED, lists), "license": words, "model-index": indices(True)}
    return draw(st.fixed_dictionaries({}, optional={**known, "widget": values, "odd key": values}))


@st.composite
def existing_cards(draw: Any) -> tuple[Card, str]:
    """A card with or without our block, and the text around it."""
    if draw(st.booleans()):
        before, after = draw(texts(START)), draw(texts(END))
        return Card(draw(metadata()), f"{before}\n{START}\nold\n{END}\n{after}"), f"{before}\n{after}"
    text = draw(texts(draw(st.sampled_from([START, END]))))
    return Card(draw(metadata()), text), text


@st.composite
def fresh_cards(draw: Any) -> Card:
    """What we write: our facts, our block, one result."""
    ours = our_index(draw(metrics(ours=True)))
    optional = {**dict.fromkeys(OURS, ids), **dict.fromkeys(UNITED, st.lists(ids, max_size=3, unique=True))}
    facts = draw(st.fixed_dictionaries({}, optional={**optional, "license": words, "model-index": st.just(ours)}))
    return Card(facts, f"{START}\n{draw(words)}\n{END}")


def our_index(metric: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"name": "small", "results": [{"dataset": {"name": "d"}, "metrics": [metric]}]}]


def results_of_others(index: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    for entry in index or []:
        for result in entry["results"]:
            yield from ((entry["name"], m) for m in result["metrics"] if not m["name"].endswith(METRIC_SUFFIX))


@few_examples
@given(existing_cards(), fresh_cards(), fresh_cards())
def test_what_a_person_wrote_around_the_block_survives(card_and_text: tuple[Card, str], one: Card, two: Card) -> None:
    card, text = card_and_text
    once = renewed(card, one)
    assert own_text(once).split() == text.split()
    assert once.text.count(one.text) == 1
    assert renewed(once, two).text == renewed(card, two).text


@few_examples
@given(existing_cards(), fresh_cards(), fresh_cards())
def test_what_a_person_said_in_the_metadata_survives(card_and_text: tuple[Card, str], one: Card, two: Card) -> None:
    theirs = card_and_text[0].metadata
    merged = renewed(renewed(card_and_text[0], one), two).metadata
    for key in theirs.keys() - {*OURS, *UNITED, "model-index"}:
        assert merged[key] == theirs[key]
    for key in theirs.keys() & {*OURS}:
        assert merged[key] == two.metadata.get(key, one.metadata.get(key, theirs[key]))
    for key in theirs.keys() & {*UNITED}:
        said = theirs[key] if isinstance(theirs[key], list) else [theirs[key]]
        kept = [value for value in said if key != "tags" or value not in TRAITS]
        assert [value for value in merged.get(key, []) if value in kept] == kept
    others = list(results_of_others(theirs.get("model-index")))
    assert list(results_of_others(merged.get("model-index")))[: len(others)] == others


@few_examples
@given(existing_cards(), fresh_cards())
def test_renewing_twice_is_renewing_once(card_and_text: tuple[Card, str], fresh: Card) -> None:
    once = renewed(card_and_text[0], fresh)
    assert renewed(once, fresh) == once


@few_examples
@given(indices(ours=True), metrics(ours=True))
def test_an_index_keeps_the_results_of_others_and_twice_is_once(index: list[dict[str, Any]], metric: Any) -> None:
    once = merged_index(index, our_index(metric))
    assert list(results_of_others(once)) == list(results_of_others(index))
    assert [found for entry in once for result in entry["results"] for found in result["metrics"]].count(metric) == 1
    assert merged_index(once, our_index(metric)) == once


@few_examples
@given(existing_cards(), fresh_cards())
def test_a_card_that_was_written_to_a_file_is_renewed_to_the_same(card_and_text: tuple[Card, str], fresh: Card) -> None:
    once = renewed(card_and_text[0], fresh)
    assert renewed(Card.parse(str(once)), fresh).text == once.text
