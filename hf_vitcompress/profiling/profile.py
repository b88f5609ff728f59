"""A latency profile: measured seconds of the operations of a model, and what others take in between.

The grid is coarse, because a product's time is nearly linear in each of its sizes; what hardware adds for sizes that do
not fill its registers or tiles is measured on its own, by the remainder of the size (`Steps`).
"""

import hashlib
import json
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..config.reading import read_json
from ..errors import ConfigError, shown
from ..runtime.files import write_text
from .operations import Activation, Attention, Merge, Operation, Product

STEP = 64
"""Sizes on the grid are multiples of this number where they can be; remainders are counted from it."""

FORMAT = 1

LONGEST = 86_400.0
"""Seconds that a batch may take; more is no measurement, and sums of it are infinite."""

EIGHTHS = 8
"""Of `STEP`, at which remainders are measured."""


@dataclass(frozen=True)
class Conditions:
    """What a profile was measured under; another device, or another model, needs another one.

    Attributes:
        device: name of the device.
        threads: that torch used.
        precision: of the weights, such as `"float32"`.
        batch_size: images of a batch.
        image_shape: of one image's `pixel_values`.
        attention: implementation of the model's attention, such as `"sdpa"`.
        model: class and sizes of the model, as text.
        torch: version of torch.
    """

    device: str
    threads: int
    precision: str
    batch_size: int
    image_shape: tuple[int, ...]
    attention: str
    model: str
    torch: str


@dataclass(frozen=True)
class Grid:
    """Seconds of operations of one kind, by their sizes.

    Attributes:
        axes: values of each size, rising.
        seconds: of a batch, for all combinations, the last size fastest.
    """

    axes: tuple[tuple[int, ...], ...]
    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        if any(not axis or axis[0] < 1 or list(axis) != sorted(set(axis)) for axis in self.axes):
            raise ValueError("the sizes on an axis do not rise")
        if len(self.seconds) != math.prod(map(len, self.axes)):
            raise ValueError("as many seconds are needed as there are combinations of sizes")
        if not all(0 <= one <= LONGEST for one in self.seconds):
            raise ValueError("seconds are no times of a batch")

    def at(self, sizes: Sequence[float]) -> float:
        """Between the points linear in each size; below and above them along the last piece, and never negative."""
        corners = [(0, 1.0)]
        for axis, size in zip(self.axes, sizes, strict=True):
            if len(axis) == 1:
                corners = [(place, weight * size / axis[0]) for place, weight in corners]
                continue
            i = min(max(bisect_right(axis, size) - 1, 0), len(axis) - 2)
            share = (size - axis[i]) / (axis[i + 1] - axis[i])
            corners = [
                (place * len(axis) + i + up, weight * (share if up else 1 - share))
                for place, weight in corners
                for up in (0, 1)
            ]
        return max(0.0, sum(weight * self.seconds[place] for place, weight in corners))


@dataclass(frozen=True)
class Steps:
    """By how much a size is to be taken for larger, by its remainder modulo `STEP` in eighths."""

    inputs: tuple[float, ...] = (0.0,) * EIGHTHS
    outputs: tuple[float, ...] = (0.0,) * EIGHTHS

    def __post_init__(self) -> None:
        for own in (self.inputs, self.outputs):
            if len(own) != EIGHTHS or not all(0 <= one <= STEP for one in own):
                raise ValueError(f"steps are {EIGHTHS} numbers from 0 to {STEP}")


@dataclass
class LatencyProfile:
    """How long the operations of a model take on a device.

    Attributes:
        conditions: that it was measured under.
        dense: seconds of the dense model for a batch.
        products: by vectors that pass through for one image, the grid over inputs and outputs.
        activations: over rows and width.
        attentions: by features of a query in one head, the grid over rows, keys, heads and features of a value.
        merging: over rows and width; `None` where tokens are not merged.
        steps: what odd sizes of a product cost.
    """

    conditions: Conditions
    dense: float
    products: dict[int, Grid]
    activations: Grid | None = None
    attentions: dict[int, Grid] = field(default_factory=dict)
    merging: Grid | None = None
    steps: Steps = Steps()
    _known: dict[Operation, float] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.products or not 0 < self.dense <= LONGEST:
            raise ValueError("the dense model and its products take time")

    def seconds(self, operation: Operation) -> float:
        """Of a batch."""
        if operation not in self._known:
            self._known[operation] = self._looked_up(operation)
        return self._known[operation]

    def _looked_up(self, operation: Operation) -> float:
        match operation:
            case Product(rows, inputs, outputs):
                sizes = (inputs + _added(self.steps.inputs, inputs), outputs + _added(self.steps.outputs, outputs))
                return self._by_rows(rows, sizes)
            case Activation(rows, width):
                return 0.0 if self.activations is None else self.activations.at((rows, width))
            case Attention(rows, keys, heads, head_dim, value_dim):
                grid = self.attentions.get(head_dim)
                return 0.0 if grid is None else grid.at((rows, keys, heads, value_dim))
            case Merge(rows, width):
                return 0.0 if self.merging is None else self.merging.at((rows, width))
        raise TypeError(f"{operation!r} is no operation.")

    def _by_rows(self, rows: int, sizes: tuple[float, float]) -> float:
        """Between the numbers of vectors that were measured, linear."""
        known = self._rows
        if len(known) == 1:
            return self.products[known[0]].at(sizes) * rows / known[0]
        i = min(max(bisect_right(known, rows) - 1, 0), len(known) - 2)
        low, high = known[i], known[i + 1]
        share = (rows - low) / (high - low)
        return max(0.0, (1 - share) * self.products[low].at(sizes) + share * self.products[high].at(sizes))

    @cached_property
    def _rows(self) -> list[int]:
        return sorted(self.products)

    def to_json(self) -> str:
        content = asdict(self)
        del content["_known"]
        return json.dumps({"format": FORMAT, "digest": content_digest(content), **content}) + "\n"

    def save(self, path: str | Path) -> None:
        """Write as JSON."""
        write_text(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> "LatencyProfile":
        """Read what `save` wrote.

        Raises:
            ConfigError: the file is missing, damaged, edited or no profile.
        """
        from pydantic import TypeAdapter, ValidationError

        content = read_json(path, "latency profile", remedy="Make it again with `vitcompress profile`.")
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise ConfigError(f"{shown(str(path))} is no latency profile; `vitcompress profile` makes one.")
        digest = content.pop("digest", None)
        try:
            profile: LatencyProfile = TypeAdapter(cls).validate_python(content)
        except ValidationError as error:
            raise _damaged(path, _problem(error.errors()[0])) from error
        if digest != content_digest(content):
            raise _damaged(path, "it was changed after it was written")
        return profile

    def check(self, conditions: Conditions) -> None:
        """Refuse to predict for another model or device.

        Raises:
            ConfigError: naming what differs.
        """
        mine, asked = asdict(self.conditions), asdict(conditions)
        for name, value in mine.items():
            if asked[name] != value:
                what = name.replace("_", " ")
                raise ConfigError(
                    f"The latency profile was measured for the {what} {_text(value)}, and this run has "
                    f"{_text(asked[name])}. Measure another one: leave the profile out, or run `vitcompress profile`."
                )


def content_digest(content: Mapping[str, Any]) -> str:
    """SHA-256 of a profile's content, without format and digest, before it is written or as it was read."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def is_profile(path: str | Path) -> bool:
    """Whether a file is a latency profile."""
    try:
        LatencyProfile.load(path)
    except (ConfigError, OSError):
        return False
    return True


def _damaged(path: str | Path, problem: str) -> ConfigError:
    name = shown(str(path))
    return ConfigError(f"The latency profile {name} is damaged ({problem}); make it again with `vitcompress profile`.")


def _problem(error: Any) -> str:
    """What pydantic found first, with the place, and without the prefix that it gives to errors of ours."""
    place = ".".join(str(part)[:40] for part in error["loc"])
    return f"{place and place + ': '}{error['msg'].removeprefix('Value error, ')}"


def _text(value: Any) -> str:
    return " × ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _added(steps: tuple[float, ...], size: int) -> float:
    """What a size is to be taken for larger by."""
    eighths = size % STEP * len(steps) / STEP
    low = int(eighths)
    if low == eighths:
        return steps[low]
    # Between two measured remainders hardware has to fill up to the next one.
    return steps[(low + 1) % len(steps)] + ((low + 1) - eighths) * STEP / len(steps)
