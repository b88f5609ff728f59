"""The classes of a model, and which of them the class names of images stand for."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

UNLABELLED = -100
"""The label of an image whose class is not known, or not among the model's: torch's losses pass over it."""

_NUMBERED = re.compile(r"(?:label|class)?[\s_-]*(\d{1,9})", re.IGNORECASE | re.ASCII)
"""A name that says the index of a class: `3`, `03`, `LABEL_3`."""
_WORDNET = re.compile(r"n\d{8}", re.ASCII)
"""The folders of ImageNet: codes in whose order its classes are numbered."""


Spelling = Callable[[str], list[str]]
"""How a name may be written otherwise."""
Table = dict[str, set[int]]
"""The classes of each spelling."""


@dataclass(frozen=True)
class Classes:
    """The classes of a model.

    Attributes:
        names: by index; empty where the classes have no names of their own, as `LABEL_0` is none.
        count: how many there are; `None` if the model does not say.
        single: whether an image has one class, and not several or a number that is to be predicted.
    """

    names: Mapping[int, str]
    count: int | None
    single: bool = True

    @classmethod
    def of(cls, config: PreTrainedConfig) -> "Classes":
        """Those of a config: the names that the pipeline shows (`id2label`), or else those of `label2id`."""
        shown = _indexed((index, name) for index, name in (getattr(config, "id2label", None) or {}).items())
        other = _indexed((index, name) for name, index in (getattr(config, "label2id", None) or {}).items())
        count = getattr(config, "num_labels", None)
        problem = getattr(config, "problem_type", None)
        single = count != 1 if problem is None else problem == "single_label_classification"
        return cls(shown if _named(shown) else other if _named(other) else {}, count, single)

    @classmethod
    def of_label2id(cls, label2id: Mapping[str, Any]) -> "Classes":
        """Those of a mapping from names to indices."""
        names = _indexed((index, name) for name, index in label2id.items())
        return cls(names if _named(names) else {}, len(label2id))


@dataclass(frozen=True)
class NameMatch:
    """Which classes of a model some names stand for.

    Attributes:
        indices: of each name the model's class, or `UNLABELLED`.
        how: they were matched; empty where none was.
    """

    indices: Sequence[int]
    how: str


def match_names(names: Sequence[str], classes: Classes) -> NameMatch:
    """Match names, in the order of their own numbers, to a model's classes: by name, by number or by position."""
    of = f"of {classes.count or len(classes.names)} classes"
    found = _by_name(names, classes)
    if known := _known(found):
        return NameMatch(found, f"by name ({known} {of})")
    found = _by_number(names, classes.count)
    if known := _known(found):
        return NameMatch(found, f"by the numbers in their names ({known} {of})")
    if len(names) == classes.count and (not classes.names or all(map(_WORDNET.fullmatch, names))):
        return NameMatch(range(len(names)), f"by position ({len(names)} {of})")
    return NameMatch([UNLABELLED] * len(names), "")


def _indexed(pairs: Iterable[tuple[Any, Any]]) -> dict[int, str]:
    """Names by index, as far as the index is one."""
    return {int(index): str(name) for index, name in pairs if str(index).strip().isdecimal()}


def _named(names: Mapping[int, str]) -> bool:
    return any(name != f"LABEL_{index}" for index, name in names.items())


def _known(indices: Sequence[int]) -> int:
    """How many classes are among them."""
    return len(set(indices) - {UNLABELLED})


def _by_name(names: Sequence[str], classes: Classes) -> list[int]:
    tables = [(spelling, _table(classes.names, spelling)) for spelling in SPELLINGS]
    as_many = len(names) == classes.count
    return [_class_of(name, tables, position if as_many else None) for position, name in enumerate(names)]


def _class_of(name: str, tables: Sequence[tuple[Spelling, Table]], position: int | None) -> int:
    """The one class that is spelt alike; of several, as two kinds of crane, that at the same position."""
    for spelling, table in tables:
        alike = set().union(*(table.get(key, set()) for key in spelling(name)))
        if len(alike) == 1:
            return alike.pop()
        if alike:
            return position if position in alike else UNLABELLED
    return UNLABELLED


def _table(names: Mapping[int, str], spelling: Spelling) -> Table:
    """Which classes are spelt like that."""
    found: Table = defaultdict(set)
    for index, name in names.items():
        for key in spelling(name):
            found[key].add(index)
    return found


def _plain(name: str) -> list[str]:
    """In small letters, its words apart by spaces; nothing where it has no letter."""
    words = re.sub(r"[\W_]+", " ", unicodedata.normalize("NFKC", name).casefold()).strip()
    return [words] if words else []


def _synonyms(name: str) -> list[str]:
    """`tench, Tinca tinca` is either."""
    return [word for part in re.split("[,;]", name) for word in _plain(part)]


SPELLINGS: tuple[Spelling, ...] = (lambda name: [name], _plain, _synonyms)
"""In which ways two names may be the same, the strictest first."""


def _by_number(names: Sequence[str], count: int | None) -> list[int]:
    """The numbers that most of the names are, if they can be indices of so many classes."""
    numbers = [int(found[1]) if (found := _NUMBERED.fullmatch(name.strip())) else UNLABELLED for name in names]
    are_indices = count is not None and max(numbers, default=0) < count
    if not are_indices or 2 * numbers.count(UNLABELLED) >= len(numbers):
        return [UNLABELLED] * len(numbers)
    return numbers
