"""Damaged and hostile reports: refused in one sentence, or shown without harm."""

import contextlib
import copy
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hf_vitcompress import CompressionReport
from hf_vitcompress.compensation.course import CompensationReport
from hf_vitcompress.errors import ReportError
from hf_vitcompress.evaluation.latency import LatencyReport
from hf_vitcompress.importance.report import GatePoint, GateReport
from hf_vitcompress.publish.cards import write_card
from hf_vitcompress.publish.cards.merging import END
from hf_vitcompress.report.card_file import Card
from hf_vitcompress.report.outside import LICENSE_LINK, REPOSITORY, for_markdown
from hf_vitcompress.report.provenance import Environment, Origin, is_repo_id
from hf_vitcompress.report.report import LARGEST_FILE, REPORT_FILE
from hf_vitcompress.report.tables import table
from support.cards import POINTS
from support.fake_hub.cards import check_card
from support.published import Made, block_count
from support.reports import EVALUATION, LATENCY

HOSTILE = {
    "an end mark": f"{END} <script>alert(1)</script>",
    "a tag": "<img src=x onerror=alert(1)>",
    "a link": "[here](javascript:alert(1))",
    "an image": "![x](http://evil.example/p.png)",
    "an address": "see https://evil.example and www.evil.example",
    "cells": "a | b | c",
    "the end of code": "x``` y",
    "mathematics": "$\\frac{",
    "a template": "{{ 7 * 7 }}",
    "a heading": "a\n# Injected\n",
    "front matter": "x\n---\nlicense: evil\n---\n",
    "colours": "\x1b[31mred",
    "another direction": "\u202ecba",
    "a long text": "a" * 5000,
}
HARMFUL = re.compile(
    r"<script|<img|\]\(javascript|\]\(http://evil|https://evil|www\.evil|\x1b|\u202e|^# Injected|\$\\frac", re.M
)


@pytest.fixture(scope="module")
def report(made: Made) -> dict[str, Any]:
    """All that a report can hold."""
    gates = GateReport(3, 0.1, 0.1, [GatePoint(1, 1.0, 2, 0.1, 0.3, 0.1, 0.2)], [], 1.0)
    full = replace(
        made.report,
        compensation=CompensationReport("both", 30, 8, POINTS, 3.0),
        gates=gates,
        origin=Origin("me/a", True, "other", "terms", "https://example.org/x", ["en"], ["me/b"], 3, ["F32"]),
        environment=Environment("a processor (2 threads)", 1, {"torch": "2.13.0+cpu"}),
        evaluation=replace(EVALUATION, metrics={"f1": 0.5}, reference_metrics={"f1": 0.6}, dataset="me/c"),
        latency=[LATENCY],
        timed=LatencyReport(0.5, 0.5, LATENCY),
        patch_tokens=(16, 13),
        tokens={"vit.layers.0": 3},
        calibration_dataset="me/d",
        quantization="int8_dynamic",
        settings={**made.report.settings, "target": "vision_model", "skip_modules": ["head*"]},
    )
    return json.loads(json.dumps(full.to_dict()))


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Of every text in a structure; of a list the first item's."""
    if isinstance(value, dict):
        return [place for key, item in value.items() for place in places(item, (*path, key))]
    if isinstance(value, list):
        return [place for item in value[:1] for place in places(item, (*path, 0))]
    return [path] if isinstance(value, str) else []


def changed(report: dict[str, Any], place: tuple[Any, ...], value: Any) -> dict[str, Any]:
    result = copy.deepcopy(report)
    inner = result
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return result


def shown(folder: Path, content: Any) -> tuple[str, str] | None:
    """The text of the card and of the Markdown made of a report; `None` where it is refused in one line."""
    (folder / REPORT_FILE).write_text(content if isinstance(content, str) else json.dumps(content))
    (folder / "README.md").unlink(missing_ok=True)
    try:
        report = CompressionReport.load(folder)
        card = write_card(folder, report)
    except ReportError as error:
        said = str(error).replace(str(folder), "")
        assert said.isprintable()
        assert len(said) < 700
        return None
    assert check_card(str(card))["errors"] == []
    assert Card.parse(str(card)).metadata == card.metadata
    assert str(report)
    return card.text, report.to_markdown()


@pytest.fixture(scope="module")
def scratch(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(made.folder, tmp_path_factory.mktemp("outside") / "small"))


@pytest.fixture(scope="module")
def free(report: dict[str, Any], scratch: Path) -> list[tuple[Any, ...]]:
    """Places that take any words; the others want a name of something."""
    found = []
    for place in places(report):
        (scratch / REPORT_FILE).write_text(json.dumps(changed(report, place, "any (words) at all")))
        with contextlib.suppress(ReportError):
            CompressionReport.load(scratch)
            found.append(place)
    return found


@pytest.mark.parametrize("case", HOSTILE)
def test_no_text_of_a_report_acts_in_a_card(
    case: str, report: dict[str, Any], free: list[tuple[Any, ...]], scratch: Path
) -> None:
    assert ("environment", "hardware") in free
    everywhere = report
    for place in free:
        everywhere = changed(everywhere, place, HOSTILE[case])
    texts = shown(scratch, everywhere)
    for text in texts or ():
        assert not HARMFUL.search(re.sub(r"```yaml\n.*?\n```", "", text, flags=re.S))
    if texts is not None:
        assert (block_count(texts[0]), texts[0].count(END)) == (1, 1)


@pytest.mark.parametrize("case", HOSTILE)
def test_what_names_something_is_refused(
    case: str, report: dict[str, Any], free: list[tuple[Any, ...]], scratch: Path
) -> None:
    named = [place for place in places(report) if place not in free]
    assert ("origin", "base_model") in named
    for place in named:
        (scratch / REPORT_FILE).write_text(json.dumps(changed(report, place, HOSTILE[case])))
        with pytest.raises(ReportError, match="is damaged"):
            CompressionReport.load(scratch)


KEYED = [("seconds",), ("environment", "versions"), ("evaluation", "metrics"), ("settings",)]


@pytest.mark.parametrize("place", KEYED, ids=".".join)
@pytest.mark.parametrize("case", HOSTILE)
def test_no_key_does_either(case: str, place: tuple[str, ...], report: dict[str, Any], scratch: Path) -> None:
    inner: Any = report
    for key in place:
        inner = inner[key]
    value = "1" if place == ("environment", "versions") else 1.0
    for text in shown(scratch, changed(report, place, {**inner, HOSTILE[case]: value})) or ():
        assert not HARMFUL.search(re.sub(r"```yaml\n.*?\n```", "", text, flags=re.S))
        assert text.count(END) <= 1


def test_the_report_itself_is_shown(report: dict[str, Any], scratch: Path) -> None:
    texts = shown(scratch, report)
    assert texts is not None
    assert "a processor (2 threads)" in texts[0]


DAMAGED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a list": lambda r: [r],
    "null": lambda r: None,
    "no JSON": lambda r: "{",
    "nothing": lambda r: "",
    "deep": lambda r: "[" * 100_000,
    "deep settings": lambda r: json.dumps(r).replace(
        '"settings": {', '"settings": {"x": ' + "[" * 9999 + "]" * 9999 + ",", 1
    ),
    "no model": lambda r: {k: v for k, v in r.items() if k != "model"},
    "no costs": lambda r: {k: v for k, v in r.items() if k != "dense"},
    "text for a number": lambda r: changed(r, ("calibration_images",), "many"),
    "a number for text": lambda r: changed(r, ("model",), 3),
    "no parameters": lambda r: changed(r, ("dense", "parameters"), 0),
    "fewer tokens than none": lambda r: changed(r, ("patch_tokens", 1), -1),
    "fewer merged than none": lambda r: changed(r, ("tokens", "vit.layers.0"), -1),
    "a block that is none": lambda r: changed(r, ("tokens", "a b"), 1),
    "fewer than none": lambda r: changed(r, ("compressed", "parameters"), -1),
    "more than there are": lambda r: changed(r, ("dense", "parameters"), 10**30),
    "endless digits": lambda r: changed(r, ("dense", "macs"), 10**4000),
    "not a number": lambda r: changed(r, ("dense", "parameters"), float("nan")),
    "endless seconds": lambda r: changed(r, ("seconds", "plan"), float("inf")),
    "no points": lambda r: changed(r, ("compensation", "points"), []),
    "no points of scores": lambda r: changed(r, ("gates", "points"), []),
    "no parts": lambda r: changed(r, ("parts",), []),
    "a part of nothing": lambda r: changed(r, ("parts", 0, "dense_parameters"), 0),
    "an accuracy of nothing": lambda r: changed(r, ("evaluation", "top1", "value"), float("nan")),
    "a mode that is a list": lambda r: changed(r, ("settings", "mlp"), []),
    "a mode that is an object": lambda r: changed(r, ("settings", "attention"), {"a": 1}),
    "a target that is none": lambda r: changed(r, ("settings", "target"), "a b"),
    "a base model that is none": lambda r: changed(r, ("origin", "base_model"), "../../x"),
    "a licence that is none": lambda r: changed(r, ("origin", "license"), "mit\nx: y"),
    "a link that is none": lambda r: changed(r, ("origin", "license_link"), "javascript:alert(1)"),
    "a quantization that is none": lambda r: changed(r, ("quantization",), "int8 <b>"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_report_is_refused(case: str, report: dict[str, Any], scratch: Path) -> None:
    assert shown(scratch, DAMAGED[case](report)) is None


def test_a_report_that_is_a_pipe_or_too_large_is_not_read(made: Made, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / REPORT_FILE)
    with pytest.raises(ReportError, match="There is no"):
        CompressionReport.load(tmp_path)
    (tmp_path / REPORT_FILE).unlink()
    with (tmp_path / REPORT_FILE).open("wb") as file:
        file.truncate(LARGEST_FILE + 1)
    with pytest.raises(ReportError, match=r"more than 67\.1 MB"):
        CompressionReport.load(tmp_path)


@pytest.mark.parametrize("place", [("dense", "bytes"), ("dense", "macs"), ("origin", "disk_bytes")], ids=".".join)
def test_a_cost_of_0_has_no_share(place: tuple[str, ...], report: dict[str, Any], scratch: Path) -> None:
    assert shown(scratch, changed(report, place, 0)) is not None


@pytest.mark.parametrize("content", ["[]", "3", "{", '{"architectures": 3}', "[" * 100_000])
def test_a_card_of_a_damaged_config_is_refused(content: str, made: Made, scratch: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(scratch, tmp_path / "small"))
    (folder / "config.json").write_text(content)
    with pytest.raises(ReportError, match=r"config\.json' is damaged"):
        write_card(folder, made.report)


# ---- cards of others


def test_front_matter_ends_at_a_line_of_its_own() -> None:
    card = Card.parse("---\nname: 'a ---\n\n  ---\n\n  b'\nlicense: mit\n---\ntext\n")
    assert card.metadata["license"] == "mit"
    assert card.text == "text"
    assert Card.parse("---\n---\ntext") == Card({}, "text")
    assert Card.parse(str(Card({"x": "a\n---\n# b"}, "text"))) == Card({"x": "a\n---\n# b"}, "text")


@pytest.mark.parametrize("header", ["a: " + "[" * 600, "? [a]\n: b", "a: !!python/object:os.system x", "*a"])
def test_metadata_that_cannot_be_read_become_text(header: str) -> None:
    card = Card.parse(f"---\n{header}\n---\ntext")
    assert card.metadata == {}
    assert card.text.startswith("```yaml")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("license", "mit\nx"),
        ("license", "<b>"),
        ("license_name", "a\nb"),
        ("license_link", "javascript:alert(1)"),
        ("license_link", "data:text/html,x"),
        ("base_model", "me/x\n"),
        ("base_model", "me/x](y)"),
        ("base_model", "https://evil.example"),
    ],
)
def test_terms_of_a_card_that_are_none_are_left_out(key: str, value: str) -> None:
    assert Origin().completed({key: value}) == Origin()


@pytest.mark.parametrize("link", ["LICENSE", "https://example.org/terms?x=1#y", "docs/LICENSE.md"])
def test_links_that_are_some_are_kept(link: str) -> None:
    assert LICENSE_LINK.fullmatch(link)
    assert Origin().completed({"license_link": link}).license_link == link


@pytest.mark.parametrize("name", ["google/vit-base-patch16-224", "gpt2", "me/x.y_z-1", "timm/vit_base.augreg2_in21k"])
def test_names_of_repositories_are_some(name: str) -> None:
    assert REPOSITORY.fullmatch(name)
    assert is_repo_id(name)


@pytest.mark.parametrize(
    "text", ["a processor (2 threads)", "Intel(R) Xeon(R) CPU @ 2.20GHz", "2.13.0+cpu", "vision_model", ""]
)
def test_ordinary_text_stays(text: str) -> None:
    assert for_markdown(text) == text


def test_the_terminal_shows_names_as_they_are() -> None:
    console = Console(width=60, record=True, force_terminal=True, color_system="truecolor")
    console.print(table(("[bold]", "x"), [("[red]a[/red]", ":skull:"), ("\x1b[2Jb", "[/]")], title="[link=x]t[/link]"))
    text = console.export_text()
    for shown_text in ("[red]a[/red]", ":skull:", r"\x1b[2Jb", "[/]", "[link=x]t[/link]"):
        assert shown_text in text
