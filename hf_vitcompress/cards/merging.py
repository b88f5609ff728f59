"""Renewing a card that a person may have edited: only the marked block and the metadata that is ours change."""

import re
from typing import Any

import yaml
from huggingface_hub import ModelCard

START = "<!-- hf_vitcompress: begin. Everything up to the end mark is renewed with each push; write above or below. -->"
END = "<!-- hf_vitcompress: end -->"
BLOCK = re.compile(r"<!-- hf_vitcompress: begin.*?<!-- hf_vitcompress: end -->", re.DOTALL)

METRIC_SUFFIX = " (hf_vitcompress)"
"""Ends the names of the results in a card's model index that are ours to replace."""

OURS = ("base_model", "base_model_relation", "library_name", "pipeline_tag")
UNITED = ("tags", "datasets", "metrics", "language")


def own_text(card: ModelCard) -> str:
    """What a person wrote around the marked block."""
    return BLOCK.sub("", card.text).strip()


def renewed(existing: ModelCard, fresh: ModelCard) -> ModelCard:
    """`existing` with the block of `fresh` in place of its own, or after its text, and the metadata of both."""
    found = BLOCK.search(fresh.text)
    block = found[0] if found else fresh.text.strip()
    if BLOCK.search(existing.text):
        text = BLOCK.sub(lambda _: block, existing.text, count=1)
    else:
        text = f"{existing.text.strip()}\n\n{block}" if existing.text.strip() else block
    return make_card(merged_metadata(existing.data.to_dict(), fresh.data.to_dict()), text)


def make_card(metadata: dict[str, Any], text: str) -> ModelCard:
    header = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True, width=120)
    return ModelCard(f"---\n{header}---\n\n{text.strip()}\n", ignore_metadata_errors=True)


def read_card(content: str) -> ModelCard:
    """A card whose metadata may be damaged; the text is kept in any case."""
    return ModelCard(content, ignore_metadata_errors=True)


def merged_metadata(existing: dict[str, Any], fresh: dict[str, Any]) -> dict[str, Any]:
    """The person's metadata; what is a fact of the compression comes from `fresh`, lists are united."""
    merged = {**fresh, **existing, **{key: fresh[key] for key in OURS if key in fresh}}
    for key in UNITED:
        if values := list(dict.fromkeys([*_listed(existing.get(key)), *_listed(fresh.get(key))])):
            merged[key] = values
    index = merged_index(existing.get("model-index"), fresh.get("model-index"))
    merged.pop("model-index", None)
    return {**merged, **({"model-index": index} if index else {})}


def merged_index(existing: Any, fresh: Any) -> list[dict[str, Any]]:
    """Model index with the results of others kept and ours replaced."""
    index = [dict(entry) for entry in existing if isinstance(entry, dict)] if isinstance(existing, list) else []
    for entry in index:
        entry["results"] = [left for result in entry.get("results") or [] if (left := _without_ours(result))]
    index = [entry for entry in index if entry["results"]]
    if not fresh:
        return index
    if not index:
        return fresh
    index[0]["results"] += fresh[0]["results"]
    return index


def _without_ours(result: dict[str, Any]) -> dict[str, Any] | None:
    kept = [m for m in result.get("metrics") or [] if not str(m.get("name", "")).endswith(METRIC_SUFFIX)]
    return {**result, "metrics": kept} if kept else None


def _listed(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]
