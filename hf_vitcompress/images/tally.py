"""Which images were read, and which could not be: what is said of them, and how many may be left out."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..errors import DataError, DataWarning

FEW = 16
"""Where there are fewer images, most may be unreadable by chance, and one that can be read is enough."""


@dataclass
class Tally:
    """What has been tried of some images, by number.

    Attributes:
        images: how many there are.
        good: those that were read.
        bad: why each of the others could not be.
    """

    images: int
    good: set[int] = field(default_factory=set)
    bad: dict[int, str] = field(default_factory=dict)

    def add_good(self, number: int) -> None:
        """An image was read, maybe one that could not be before."""
        self.good.add(number)
        self.bad.pop(number, None)

    def add_bad(self, number: int, why: str, name: str) -> None:
        """An image of `name` could not be read.

        Raises:
            DataError: more than half of all images cannot be, though some can; to try the others would not change that.
        """
        self.bad[number] = why
        if self.good and len(self.bad) > self.images / 2:
            check_readable(name, len(self.good), len(self.bad), list(self.bad.values()))


def check_readable(name: str, good: int, bad: int, left_out: Sequence[str]) -> None:
    """Refuse results from the few images that could be read where most could not.

    Args:
        name: of the images.
        good, bad: how many were read, and how many could not be.
        left_out: descriptions of the latter.

    Raises:
        DataError: none could be read; or fewer than half, where there are `FEW` or more.
    """
    if bad > good and (not good or good + bad >= FEW):
        counts = f"{bad} of {good + bad} images of {name} cannot" if good else f"None of the {bad} images of {name} can"
        raise DataError(
            f"{counts} be read{_examples(left_out)}. Repair or remove those that cannot: at most half may be left out."
        )


def tell_left_out(name: str, good: int, bad: int, left_out: Sequence[str]) -> None:
    """Warn of images that were left out; arguments as of `check_readable`."""
    if bad:
        warnings.warn(
            f"{bad} of {good + bad} images of {name} cannot be read and were left out{_examples(left_out[:1])}.",
            DataWarning,
            stacklevel=3,
        )


def _examples(left_out: Sequence[str]) -> str:
    """The first and the last."""
    return f", such as {' and '.join(dict.fromkeys([left_out[0], left_out[-1]]))}" if left_out else ""
