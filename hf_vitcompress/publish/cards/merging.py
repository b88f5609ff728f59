"""Renewing a card that a person may have edited: only the marked block and the metadata that is ours change."""

import re
from collections.abc import Mapping
from typing import Any

from ...report.card_file import Card

START = "<!-- hf_vitcompress: begin. Everything up to the end mark is renewed with each push; write above or below. -->"
END = "<!-- hf_vitcompress: end -->"
BEGINNING = "<!-- hf_vitcompress: begin"
# The last beginning before an end: what follows one whose end was deleted is somebody's text.
BLOCK = re.compile(f"{BEGINNING}(?:(?!{BEGINNING}).)*?{END}", re.DOTALL)

METRIC_SUFFIX = " (hf_vitcompress)"
"""Ends the names of the results in a card's model index that are ours to replace."""

OURS = ("base_model", "base_model_relation", "library_name", "pipeline_tag")
UNITED = ("tags", "datasets", "metrics", "language")
TRAITS = ("low-rank", "structured-pruning", "knowledge-distillation", "quantized")
"""Tags that say how a model was compressed; they go when it was compressed otherwise."""


def own_text(card: Card) -> str:
    """What a person wrote around the marked block."""
    return BLOCK.sub("", card.text).strip()


def renewed(existing: Card, fresh: Card) -> Card:
    """`existing` with the block of `fresh` in place of its own, or after its text, and the metadata of both."""
    found = BLOCK.search(fresh.text)
    block = found[0] if found else fresh.text.strip()
    before, after = existing.text.strip(), ""
    if old := BLOCK.search(existing.text):
        before, after = existing.text[: old.start()].strip(), BLOCK.sub("", existing.text[old.end() :]).strip()
    text = "\n\n".join(part for part in (before, block, after) if part)
    return Card(merged_metadata(existing.metadata, fresh.metadata), text)


def merged_metadata(existing: Mapping[str, Any], fresh: Mapping[str, Any]) -> dict[str, Any]:
    """The person's metadata; what is a fact of the compression comes from `fresh`, lists are united."""
    merged = {**existing, **{key: value for key, value in fresh.items() if key in OURS or key not in existing}}
    for key in UNITED:
        theirs, ours = _listed(existing.get(key)), _listed(fresh.get(key))
        if key == "tags":
            theirs = [tag for tag in theirs if tag not in TRAITS or tag in ours]
        merged[key] = [*theirs, *(value for value in ours if value not in theirs)]
    merged["model-index"] = merged_index(existing.get("model-index"), fresh.get("model-index"))
    return {key: value for key, value in merged.items() if value or key not in (*UNITED, "model-index")}


def merged_index(existing: Any, fresh: Any) -> Any:
    """Model index with our results replaced. Those of others are `existing`'s, or `fresh`'s where it has none.

    What does not look like a model index is not touched: the Hub will say what is wrong with it.
    """
    if existing is not None and not isinstance(existing, list):
        return existing
    index = [left for entry in existing or [] if (left := _without_ours(entry)) is not None]
    place = next((entry for entry in index if _has_results(entry)), None)
    if place is None:
        return [*index, *_listed(fresh)]
    entries = [entry for entry in _listed(fresh) if isinstance(entry, dict)]
    ours = [result for entry in entries for result in _listed(entry.get("results")) if _is_ours(result)]
    place["results"] = [*place["results"], *ours]
    return index


def _has_results(entry: Any) -> bool:
    """One without any stays as it is: with ours in it, it would be taken for ours at the next renewal."""
    return isinstance(entry, dict) and isinstance(entry.get("results"), list) and bool(entry["results"])


def _without_ours(entry: Any) -> Any:
    """A copy of an entry of a model index with the results of others; `None` where all were ours."""
    results = entry.get("results") if isinstance(entry, dict) else None
    if not isinstance(results, list):
        return entry
    left = [_others(result) if _is_ours(result) else result for result in results]
    left = [result for result in left if result is not None]
    return None if results and not left else {**entry, "results": left}


def _is_ours(result: Any) -> bool:
    """Whether a result has a metric of ours, maybe beside others'."""
    return isinstance(result, dict) and any(_is_our_metric(metric) for metric in _listed(result.get("metrics")))


def _others(result: Mapping[str, Any]) -> dict[str, Any] | None:
    kept = [metric for metric in _listed(result.get("metrics")) if not _is_our_metric(metric)]
    return {**result, "metrics": kept} if kept else None


def _is_our_metric(metric: Any) -> bool:
    return isinstance(metric, dict) and str(metric.get("name", "")).endswith(METRIC_SUFFIX)


def _listed(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]
