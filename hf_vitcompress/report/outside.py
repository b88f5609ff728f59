"""Values from outside in reports and cards: a file may come from anybody, and people read it in a browser.

What is a name of something must look like one; all other text loses what Markdown and HTML would act on.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from ..runtime.text import printable

LONGEST_TEXT = 300
LARGEST = 10**18
"""No model has as many parameters, and no run as many images."""

REPOSITORY = re.compile(r"[A-Za-z0-9](?:[\w.-]{0,95})(?:/[A-Za-z0-9_](?:[\w.-]{0,95}))?", re.ASCII)
LICENSE = re.compile(r"[A-Za-z0-9][\w.+-]{0,63}", re.ASCII)
LICENSE_NAME = re.compile(r"[A-Za-z0-9][\w .,+()-]{0,127}", re.ASCII)
LICENSE_LINK = re.compile(r"https?://[\w./%~?=&#+-]{1,300}|[A-Za-z0-9_][\w./-]{0,200}", re.ASCII)
LANGUAGE = re.compile(r"[a-z]{2,3}|code|multilingual")

Found = TypeVar("Found")

_WORDS = re.compile(r"(?!.*(://|www\.))[\w .,:/&+×-]{0,200}")
_MODULE = re.compile(r"[\w.]{1,200}")
_PATTERNS: dict[str, re.Pattern[str]] = {
    "model": re.compile(r"[A-Za-z_]\w{0,127}", re.ASCII),
    "quantization": re.compile(r"\w{1,64}", re.ASCII),
    "weights": re.compile(r"[0-9a-f]{0,128}"),
    "later_weights": re.compile(r"[0-9a-f]{0,128}"),
    "origin.base_model": REPOSITORY,
    "origin.license": LICENSE,
    "origin.license_name": LICENSE_NAME,
    "origin.license_link": LICENSE_LINK,
    "origin.language": LANGUAGE,
    "origin.datasets": REPOSITORY,
    "origin.dtypes": re.compile(r"\w{1,16}", re.ASCII),
    "parts.name": _MODULE,
    "parts.role": _WORDS,
    "compensation.points.stage": _WORDS,
    "compensation.method": _WORDS,
    "evaluation.precision": _WORDS,
    "settings.target": _MODULE,
    "a key of tokens": _MODULE,
    **{
        f"settings.{name}": _WORDS for name in ("metric", "mlp", "attention", "allocation", "criterion", "compensation")
    },
    **{f"settings.{name}": _WORDS for name in ("optimizer", "calibration_loss")},
}
"""What the text at a place in a report looks like; the numbers of lists are left out of a place."""
_WORDS_OF_SETTINGS = {place for place in _PATTERNS if place.startswith("settings.")}
"""Of the settings nothing is known but what a card reads; the others may be of any earlier version."""


def problem_of(report: Any) -> str | None:
    """Where in a report, and what is wrong there; `None` of one that a compression may have written."""
    return next(_problems(report, ""), None)


def _problems(value: Any, place: str) -> Iterator[str]:
    if place in _WORDS_OF_SETTINGS and not isinstance(value, str | None):
        yield f"{place}: {str(value)[:20]} is no text"
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _problems(getattr(value, field.name), f"{place}.{field.name}".removeprefix("."))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _problems(str(key), f"a key of {place}")
            yield from _problems(item, f"{place}.{key}")
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _problems(item, place)
    elif isinstance(value, str):
        yield from _text_problems(value, place)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield from _number_problems(value, place)


def _text_problems(text: str, place: str) -> Iterator[str]:
    pattern = _PATTERNS.get(place)
    if len(text) > LONGEST_TEXT or printable(text) != text:
        yield f"{place}: a text with control characters or of more than {LONGEST_TEXT} letters"
    elif pattern is not None and not pattern.fullmatch(text):
        yield f"{place}: {text!r} is none"


def _number_problems(number: float, place: str) -> Iterator[str]:
    if place in _SHARES and not 0 < number < LARGEST:
        yield f"{place}: {str(number)[:20]} is none"
        return
    negative = number < 0 and (place.rpartition(".")[2] in _COUNTS or place.startswith("tokens."))
    if negative or (isinstance(number, int) and abs(number) > LARGEST):
        yield f"{place}: {str(number)[:20]} is none" if abs(number) <= LARGEST else f"{place}: a number without end"


_SHARES = {"timed.asked", "timed.predicted", "timed.measured.ratio"}
"""What a card divides by."""
_COUNTS = {"parameters", "dense_parameters", "macs", "bytes", "images", "calibration_images", "bad_images", "rounds"}
_COUNTS |= {"patch_tokens"}


def for_markdown(value: Found) -> Found:
    """A copy of text, or of a structure of texts, in which nothing is a tag, a link, a mark-up or the end of a cell."""
    if isinstance(value, str):
        return _escaped(value)  # type: ignore[return-value]
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: for_markdown(getattr(value, field.name)) for field in fields(value)})
    if isinstance(value, dict):
        return {for_markdown(key): for_markdown(item) for key, item in value.items()}  # type: ignore[return-value]
    if isinstance(value, list | tuple):
        return type(value)(for_markdown(item) for item in value)
    return value


_REPLACED = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;", "`": "&#96;", "\\": "&#92;", "*": "&#42;"}
_REPLACED |= {"[": "&#91;", "]": "&#93;", "$": "&#36;", "~": "&#126;"}
_TABLE = str.maketrans(_REPLACED)
_LINKS = re.compile(r"://|www\.", re.IGNORECASE)
"""What GitHub makes a link of without any mark-up."""


def _escaped(text: str) -> str:
    return _LINKS.sub(_unlinked, " ".join(text.split()).translate(_TABLE))


def _unlinked(found: re.Match[str]) -> str:
    return found[0].replace("/", "&#47;").replace(".", "&#46;")


def matching(pattern: re.Pattern[str]) -> Callable[[Any], bool]:
    """Whether a value is text that the pattern describes."""
    return lambda value: isinstance(value, str) and pattern.fullmatch(value) is not None
