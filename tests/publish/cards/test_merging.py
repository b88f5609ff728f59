"""Renewing cards: what a person wrote stays, what is ours is replaced."""

import copy
from typing import Any

import pytest

from hf_vitcompress.publish.cards.merging import (
    END,
    METRIC_SUFFIX,
    START,
    merged_index,
    merged_metadata,
    own_text,
    renewed,
)
from hf_vitcompress.report.card_file import Card

OUR_TAGS = ["hf_vitcompress", "vision", "low-rank"]


def block(text: str) -> str:
    return f"{START}\n{text}\n{END}"


def metric(value: float, name: str | None = None) -> dict[str, Any]:
    return {"type": "accuracy", "value": value, **({"name": name} if name else {})}


def result(*metrics: Any, dataset: str = "cifar10", **more: Any) -> dict[str, Any]:
    return {
        "task": {"type": "image-classification"},
        "dataset": {"type": dataset, "name": dataset},
        "metrics": list(metrics),
        **more,
    }


def index(*results: Any, name: str = "x") -> list[dict[str, Any]]:
    return [{"name": name, "results": list(results)}]


OURS = metric(0.9, f"top-1, n=200{METRIC_SUFFIX}")
FRESH = Card({"library_name": "transformers", "tags": OUR_TAGS, "model-index": index(result(OURS))}, block("new"))


@pytest.mark.parametrize(
    ("existing", "text"),
    [
        ("", block("new")),
        ("  \n", block("new")),
        ("# Mine", f"# Mine\n\n{block('new')}"),
        (block("old"), block("new")),
        (f"above\n{block('old')}\nbelow", f"above\n\n{block('new')}\n\nbelow"),
        (f"\n\nabove\n\n\n\n{block('old')}", f"above\n\n{block('new')}"),
        (block("old\n\n```yaml\na: b\n```"), block("new")),
        (f"a\n\n{block('old')}\n\nb\n\n{block('older')}\n\nc", f"a\n\n{block('new')}\n\nb\n\n\n\nc"),
    ],
)
def test_the_block_is_replaced_or_appended(existing: str, text: str) -> None:
    card = renewed(Card({}, existing), FRESH)
    assert card.text == text
    assert renewed(card, FRESH) == card
    assert renewed(Card.parse(str(card)), FRESH) == card


def test_what_a_block_holds_is_not_taken_for_a_pattern() -> None:
    fresh = Card({}, block(r"\1 \g<0> \\ $1 C:\new"))
    assert renewed(Card({}, block("old")), fresh).text == fresh.text


@pytest.mark.parametrize("broken", [f"{START}\nold", f"old\n{END}", f"{END}\n{START}"])
def test_words_beside_a_broken_block_survive_every_push(broken: str) -> None:
    card = Card({}, f"above\n\n{broken}\n\nbelow")
    for _ in range(3):
        card = renewed(card, FRESH)
        assert card.text.startswith("above")
        assert "below" in card.text
        assert card.text.count("\nnew\n") == 1


def test_a_block_of_another_version_is_known() -> None:
    earlier = "<!-- hf_vitcompress: begin -->\nold\n<!-- hf_vitcompress: end -->"
    assert renewed(Card({}, f"above\n\n{earlier}"), FRESH).text == f"above\n\n{block('new')}"


def test_own_text_is_what_is_around_the_block() -> None:
    assert own_text(Card({}, f"above\n\n{block('old')}\n\nbelow")).split() == ["above", "below"]
    assert own_text(Card({}, block("old"))) == ""


# ---- metadata


def test_what_a_person_says_stays() -> None:
    theirs = {
        "license": "mit",
        "language": ["de"],
        "tags": ["mine"],
        "datasets": ["me/a"],
        "metrics": ["f1"],
        "widget": [{"src": "x"}],
    }
    merged = merged_metadata(
        theirs, {"license": "apache-2.0", "language": ["en"], "datasets": ["b/b"], "tags": OUR_TAGS}
    )
    assert merged == {
        **theirs,
        "language": ["de", "en"],
        "tags": ["mine", *OUR_TAGS],
        "datasets": ["me/a", "b/b"],
    }
    assert list(merged) == list(theirs), "in their order"


def test_facts_of_the_compression_are_ours() -> None:
    theirs = {"base_model": "a/a", "base_model_relation": "adapter", "library_name": "timm", "pipeline_tag": "other"}
    ours = {
        "base_model": "b/b",
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "pipeline_tag": "image-classification",
    }
    assert merged_metadata(theirs, ours) == ours
    assert merged_metadata(theirs, {}) == theirs, "what we do not know is theirs"


def test_a_tag_that_no_longer_holds_goes() -> None:
    theirs = {"tags": ["mine", "hf_vitcompress", "low-rank", "quantized"]}
    assert merged_metadata(theirs, {"tags": ["hf_vitcompress", "structured-pruning"]})["tags"] == [
        "mine",
        "hf_vitcompress",
        "structured-pruning",
    ]


@pytest.mark.parametrize("tags", ["vision", ["vision"], ["vision", {"odd": 1}], 5, None])
def test_lists_of_any_form_are_united(tags: Any) -> None:
    merged = merged_metadata({"tags": tags}, {"tags": OUR_TAGS})["tags"]
    assert merged[-2:] == ["hf_vitcompress", "low-rank"] or merged[-3:] == OUR_TAGS
    assert merged.count("vision") == 1


def test_merging_changes_nothing_in_place_and_twice_is_once() -> None:
    theirs = {"tags": ["mine"], "model-index": index(result(metric(0.8)), result(OURS))}
    ours = copy.deepcopy(FRESH.metadata)
    before = copy.deepcopy((theirs, ours))
    once = merged_metadata(theirs, ours)
    assert (theirs, ours) == before
    assert merged_metadata(once, ours) == once


# ---- model index


def test_results_of_others_stay_to_the_last_key() -> None:
    other = result(metric(0.8) | {"verified": True, "odd": [1]}, dataset="other", source={"url": "https://x"}, odd=1)
    assert merged_index(index(other), index(result(OURS))) == index(other, result(OURS))


def test_our_result_is_replaced() -> None:
    old = metric(0.7, f"top-1, n=100{METRIC_SUFFIX}")
    assert merged_index(index(result(old)), index(result(OURS), name="y")) == index(result(OURS), name="y")
    both = index(result(metric(0.8)), result(old))
    assert merged_index(both, index(result(OURS))) == index(result(metric(0.8)), result(OURS))


def test_a_metric_that_somebody_added_to_our_result_stays() -> None:
    shared = result(metric(0.5, "top-5"), metric(0.7, f"top-1, n=100{METRIC_SUFFIX}"))
    assert merged_index(index(shared), index(result(OURS))) == index(result(metric(0.5, "top-5")), result(OURS))


def test_our_result_goes_where_nothing_was_measured() -> None:
    assert not merged_index(index(result(OURS)), None)
    assert merged_index(index(result(metric(0.8)), result(OURS)), None) == index(result(metric(0.8)))


def test_several_models_stay_several() -> None:
    two = [*index(result(metric(0.8)), name="a"), *index(result(metric(0.7)), name="b")]
    merged = merged_index(two, index(result(OURS)))
    assert [entry["name"] for entry in merged] == ["a", "b"]
    assert merged[0]["results"] == [result(metric(0.8)), result(OURS)]
    assert merged[1] == two[1]


def test_results_that_both_have_are_not_doubled() -> None:
    both = index(result(metric(0.8)), result(OURS))
    assert merged_index(both, both) == both


def test_a_result_that_somebody_mended_or_deleted_does_not_come_back() -> None:
    local = index(result(metric(0.8)), result(metric(0.6), dataset="b"), result(OURS))
    remote = index(result(metric(0.85)), result(OURS))
    assert merged_index(remote, local) == index(result(metric(0.85)), result(OURS))


def test_results_written_locally_travel_to_a_card_without_any() -> None:
    local = index(result(metric(0.8)), result(OURS))
    assert merged_index(None, local) == merged_index(index(result(OURS)), local) == local


@pytest.mark.parametrize(
    "odd", ["words", {"name": "x"}, [1], [{"name": "x"}], [{"results": "none"}], index("odd"), index(result("odd"))]
)
def test_what_is_no_model_index_is_not_touched(odd: Any) -> None:
    merged = merged_index(odd, index(result(OURS)))
    kept = merged if isinstance(odd, list) else [merged]
    for entry in odd if isinstance(odd, list) else [odd]:
        assert entry in kept or {**entry, "results": [*entry["results"], result(OURS)]} in kept
