"""Which part of a data set is taken, and which of its columns."""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import DataError, DataWarning

_KINDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""What people call the splits, as `datasets` knows it."""
_WORDS = {word: kind for kind, words in _KINDS.items() for word in words}
_FOLDER = re.compile(rf"({'|'.join(_WORDS)})(?:[-_ ]?(?:images?|set|data|split))?", re.IGNORECASE)


@dataclass(frozen=True)
class DataOptions:
    """Which part of a data set is taken, and which of its columns.

    Attributes:
        split: by name; by default the first of `prefer` that there is.
        prefer: kinds of splits, of `train`, `validation` and `test`; if there is none of them, `train` or the first.
        config: configuration of a Hub data set that has several.
        revision: branch, tag or commit of a Hub data set.
        image_column: by default the only column of images, or the one that is called so.
        label_column: by default `label` or what else people call it, or the only column of classes.
    """

    split: str | None = None
    prefer: Sequence[str] = ("train",)
    config: str | None = None
    revision: str | None = None
    image_column: str | None = None
    label_column: str | None = None


VALIDATION = DataOptions(prefer=("validation", "test"))
TESTING = DataOptions(prefer=("test", "validation"))
"""What images to choose by and to judge by are taken from, unless somebody says otherwise."""


def chosen_split(names: Sequence[str], name: str, options: DataOptions) -> str:
    """The split to take of the data set `name`; a warning says if it is not what was looked for.

    Raises:
        DataError: it has no such split, or none at all.
    """
    if not names:
        raise DataError(f"No image found in {name}: it has no splits.")
    if options.split:
        found = _like(names, options.split)
        if found is None:
            raise DataError(f"{name} has no split {options.split!r}; it has {', '.join(names)}.")
        return found
    for kind in options.prefer:
        if (found := _like(names, kind)) is not None:
            return found
    found = _like(names, "train") or names[0]
    if "train" not in options.prefer:
        warnings.warn(
            f"{name} has no {' or '.join(options.prefer)} split: the images of {found!r} are taken. Figures on them "
            "flatter a model that was trained on them. Another split is chosen by --split.",
            DataWarning,
            stacklevel=2,
        )
    return found


def one_split(names: Sequence[str], name: str, options: DataOptions) -> tuple[str, str | None]:
    """`chosen_split`, and its name again where there is a choice or one was asked for, else `None`."""
    chosen = chosen_split(names, name, options)
    return chosen, chosen if len(names) > 1 or options.split else None


def in_split(name: str, split: str | None) -> str:
    """What messages and reports call a split of the data set `name`, or all of it."""
    return name if split is None else f"{name}, split {split}"


def _like(names: Sequence[str], wanted: str) -> str | None:
    """That split, or else one of its kind."""
    if wanted in names:
        return wanted
    return next((name for name in names if kind_of(name) == kind_of(wanted)), None)


def kind_of(split: str) -> str:
    """`train`, `validation` or `test` for the names that people give them; otherwise the name itself."""
    return _WORDS.get(split.lower(), split)


def split_of_folder(name: str) -> str | None:
    """The kind of split that a folder of that name holds: `val/`, `train_images/`; `None` of any other."""
    found = _FOLDER.fullmatch(name)
    return None if found is None else kind_of(found[1])


def split_of_file(stem: str) -> str | None:
    """The kind of split that a file of that name belongs to, such as `train-00000-of-00004`; `None` of any other."""
    return next((_WORDS[word] for word in re.split(r"[-._ 0-9]+", stem.lower()) if word in _WORDS), None)
