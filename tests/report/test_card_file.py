"""Reading and writing the cards of people: whatever they hold comes through."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from hf_vitcompress.report.card_file import Card


def again(card: Card) -> Card:
    return Card.parse(str(card))


@pytest.mark.parametrize(
    ("content", "metadata", "text"),
    [
        ("---\nlicense: mit\n---\n# A\n", {"license": "mit"}, "# A"),
        ("---\nlicense: mit\n---", {"license": "mit"}, ""),
        ("---\r\nlicense: mit\r\ntags:\r\n- a\r\n---\r\n# A\r\nb\r\n", {"license": "mit", "tags": ["a"]}, "# A\nb"),
        ("\ufeff---\nlicense: mit\n---\n# A\n", {"license": "mit"}, "# A"),
        ("\n---\nlicense: mit\n---\n\n\n# A\n", {"license": "mit"}, "# A"),
        ("---\n---\n# A\n", {}, "# A"),
        ("---\n# nothing yet\n---\n# A\n", {}, "# A"),
        ("---\nlicense:\ntags: []\n---\n# A\n", {"tags": []}, "# A"),
        ("# A\n\n---\nb: c\n---\n", {}, "# A\n\n---\nb: c\n---"),
        ("", {}, ""),
        ("---\nno end\n", {}, "---\nno end"),
    ],
)
def test_metadata_and_text(content: str, metadata: dict[str, Any], text: str) -> None:
    card = Card.parse(content)
    assert (card.metadata, card.text) == (metadata, text)
    if metadata:
        assert again(card) == card


@pytest.mark.parametrize(
    "header",
    ["license: [", "- a\n- b", "just words", "a: 1\n b: 2", "date: 2024-13-45", "\ttabs: 1", "a: *nowhere", "? [a]: b"],
)
def test_damaged_metadata_become_text_that_somebody_can_mend(header: str) -> None:
    card = Card.parse(f"---\n{header}\n---\n# Mine\n")
    assert card.metadata == {}
    assert header.strip() in card.text
    assert card.text.endswith("# Mine")
    assert again(Card({"license": "mit"}, card.text)) == Card({"license": "mit"}, card.text)


def test_norwegian_is_a_language() -> None:
    card = Card.parse("---\nlanguage: no\nlanguages: [en, no, yes, on]\ngated: true\nopen: False\n---\n")
    assert card.metadata == {"language": "no", "languages": ["en", "no", "yes", "on"], "gated": True, "open": False}
    assert yaml.safe_load(str(card).split("---")[1])["language"] == "no"


def test_values_of_every_kind_come_back() -> None:
    metadata = {
        "license": "mit",
        "title": 'Ümläute, 日本語, 🚀 and "quotes": all of them',
        "widget": [{"src": "https://x/y.png", "example_title": "a: b"}],
        "extra_gated_fields": {"Name": "text", "I agree": "checkbox"},
        "value": 0.1,
        "count": 3,
        "inference": False,
        "long": "word " * 60 + "end",
        "lines": "first\nsecond\n",
        "model-index": [{"name": "x", "results": [{"metrics": [{"type": "accuracy", "value": 1 / 3}], "extra": {}}]}],
    }
    card = Card(metadata, "# A\n\n| a | b |\n|---|---|\n| 1 | 2 |")
    assert again(card) == card
    assert str(again(card)) == str(card)


def test_a_file_that_is_not_utf8_keeps_its_words(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes("---\nlicense: mit\n---\nFür alle\n".encode("latin-1"))
    card = Card.load(tmp_path / "README.md")
    assert (card.metadata, card.text) == ({"license": "mit"}, "Für alle")
