"""How long something is trained: minutes of this machine, or passes over the images."""

import math
import re
from dataclasses import dataclass
from typing import Literal

from .errors import ConfigError, shown

FORM = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(min(?:ute)?s?|epochs?)\s*")


@dataclass(frozen=True)
class Duration:
    """`5 minutes` or `2 epochs`.

    Minutes fix the number of steps by timing a few of them, so that two runs need not be alike; epochs make a run
    repeatable to the bit.
    """

    value: float
    unit: Literal["minutes", "epochs"]

    @classmethod
    def parse(cls, text: str) -> "Duration":
        """The duration in `text`, such as `"5 minutes"`, `"5min"` or `"1 epoch"`.

        Raises:
            ConfigError: the text is not a duration, or the duration is 0 or infinite.
        """
        found = FORM.fullmatch(text)
        if found is None or float(found[1]) in (0, math.inf):
            raise ConfigError(f"{shown(text)} is no duration. Give one above 0, such as '5 minutes' or '2 epochs'.")
        return cls(float(found[1]), "epochs" if found[2].startswith("epoch") else "minutes")

    @property
    def minutes(self) -> float | None:
        """Number of minutes; `None` if the duration is in epochs."""
        return self.value if self.unit == "minutes" else None

    @property
    def epochs(self) -> float | None:
        """Number of epochs; `None` if the duration is in minutes."""
        return self.value if self.unit == "epochs" else None

    def scaled(self, share: float) -> "Duration":
        """The duration times `share`."""
        return Duration(share * self.value, self.unit)

    def __str__(self) -> str:
        return f"{self.value:g} {self.unit}"
