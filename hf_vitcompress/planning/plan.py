"""The plan: which module gets which shape, and what each group of layers became."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..architectures.merging import check_tokens
from ..architectures.subject import Subject
from ..config import BUDGETS, CompressionConfig
from ..config.reading import read_json
from ..errors import ConfigError, did_you_mean, one_line, shown
from ..evaluation.latency import LatencyReport
from ..model.assembly import Shapes
from ..runtime.files import write_text
from .groups.base import LayerGroup
from .groups.removal import check_together


@dataclass(frozen=True)
class SearchReport:
    """What the search of `max_accuracy_drop` found for the plan that it chose.

    Attributes:
        drop: accuracy of the dense model − of the plan's; without labels, the share of images on which the two predict
            different classes. A fraction: 0.01 is one point.
        images: validation images that it was measured on; where labels count, those that have one.
        labelled: whether labels counted.
        compensated: whether the plan's model was compensated first, for a part of the time (see `compensation.trials`).
        dataset: Hub id of the images; `None` for others.
        split: of the data set or folder; `None` if it has only one.
    """

    drop: float
    images: int
    labelled: bool
    compensated: bool = False
    dataset: str | None = None
    split: str | None = None

    @property
    def quantity(self) -> str:
        """What `drop` is."""
        return "accuracy drop" if self.labelled else "disagreement"

    @property
    def name(self) -> str:
        """The same, with the images: the name of its row."""
        return f"{self.quantity} found on validation, n={self.images}"

    @property
    def amount(self) -> str:
        """How much it is."""
        return f"{100 * self.drop:.2f} points" if self.labelled else f"{self.drop:.2%}"


MEASURED = ("search", "latency")
"""Attributes of a plan that are of its model, and in no file."""


@dataclass
class CompressionPlan:
    """Shapes by module name. Modules that are not named stay dense. Plain data: JSON both ways, editable by hand.

    Attributes:
        layers: module name → shape, exactly as in `config.compression["layers"]` (see `modeling_factored`): of a linear
            layer `{"rank": r}`, `{"in_features": i}`, `{"out_features": o}` or several of them, of attention
            `{"qk_rank": r}`. A feed-forward or attention that is removed has 0 `out_features` where features are made
            and 0 `in_features` where they are read.
        tokens: block's module name → how many tokens it merges at its end, as in `config.compression["tokens"]`.
        predicted_loss: predicted loss increase (KL from the dense model, nats per image), scaled to measured losses;
            `None` where the metric predicts no loss, or after an edit.
        predicted_interval: its 95 % interval, as far as the images differ that it was measured on.
        keep_ratio: parameters of the compressed model ÷ of the original.
        budget: what was asked for, plain data; empty where shapes were given instead.
        search: of an accuracy drop, if it chose this plan; in no file, as an edit would belie it.
        latency: what a budget of time asked for, and what was predicted and measured; in no file either.
    """

    layers: Shapes
    predicted_loss: float | None = None
    keep_ratio: float | None = None
    budget: dict[str, Any] = field(default_factory=dict)
    predicted_interval: tuple[float, float] | None = None
    tokens: dict[str, int] = field(default_factory=dict)
    search: SearchReport | None = field(default=None, init=False, compare=False, repr=False)
    latency: LatencyReport | None = field(default=None, init=False, compare=False, repr=False)

    def to_json(self) -> str:
        return json.dumps({key: value for key, value in asdict(self).items() if key not in MEASURED}, indent=2) + "\n"

    def save(self, path: str | Path) -> None:
        write_text(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> "CompressionPlan":
        """Read a plan; only `layers` is required.

        Raises:
            ConfigError: the file is missing or is no plan.
        """
        content = read_json(path, "plan")
        try:
            plan = cls(**content)
            plan.check_types()
            plan.predicted_interval = _pair(plan.predicted_interval)
        except (TypeError, ConfigError) as error:  # the former if it is no mapping, or has other names
            raise ConfigError(
                f'{shown(str(path))} is no plan: {_plainly(error)}. A plan is {{"layers": {{"<layer name>": {{"rank": '
                "<rank>}, …}}."
            ) from error
        return plan

    def check_types(self) -> None:
        """Refuse what no plan can hold, whatever the model.

        Raises:
            ConfigError: naming the entry.
        """
        if not isinstance(self.layers, dict):
            raise ConfigError(
                f"The plan's layers must be a mapping of module names to shapes, not {shown(self.layers)}."
            )
        for name, shape in self.layers.items():
            if not isinstance(shape, dict) or not shape:
                raise ConfigError(
                    f'The plan gives {shown(name)} the shape {shown(shape)}; a shape is like {{"rank": 48}}.'
                )
        if not isinstance(self.tokens, dict):
            raise ConfigError(
                f"The plan's tokens must be a mapping of blocks to numbers of tokens, not {shown(self.tokens)}."
            )
        for key in ("predicted_loss", "keep_ratio"):
            value = getattr(self, key)
            if value is not None and not _is_number(value):
                raise ConfigError(f"The plan's {key} must be a number or null, not {shown(value)}.")
        if not isinstance(self.budget, dict):
            raise ConfigError(f'The plan\'s budget must be like {{"keep_ratio": 0.5}}, not {shown(self.budget)}.')

    def settings(self, config: CompressionConfig) -> dict[str, Any]:
        """Those of `config` that its model is made by, plain data: without budgets that the plan was not made for."""
        made_for = self.budget == config.budgets
        return {name: value for name, value in config.to_dict().items() if made_for or name not in BUDGETS}

    def shapes_of(self, group: LayerGroup) -> Shapes:
        """What the plan says about one group."""
        return {name: self.layers[name] for name in group.module_names if name in self.layers}

    def check(self, groups: Sequence[LayerGroup], subject: Subject) -> None:
        """Refuse shapes and merged tokens that the model cannot have.

        Args:
            groups: of the layers of `subject`.

        Raises:
            ConfigError: a module is unknown, or cannot have the shape or merge so many tokens.
            UnsupportedModelError: the tokens of the model cannot be merged.
        """
        self.check_types()
        known = [name for group in groups for name in group.module_names]
        for name in self.layers:
            if name not in known:
                raise ConfigError(
                    f"The plan names {shown(name)}, which the model does not have (or which is skipped)."
                    f"{did_you_mean(name, known)}"
                )
        for group in groups:
            group.check(self.shapes_of(group))
        check_together(groups, {group.name: self.shapes_of(group) for group in groups})
        check_tokens(subject.model, self.tokens, subject.reading)


def is_plan(path: str | Path) -> bool:
    """Whether a file is a plan."""
    try:
        CompressionPlan.load(path)
    except (ConfigError, OSError):
        return False
    return True


def _pair(values: Any) -> tuple[float, float] | None:
    if values is None:
        return None
    if not isinstance(values, list) or len(values) != 2 or not all(map(_is_number, values)):
        raise ConfigError(f"The plan's predicted_interval must be two numbers or null, not {shown(values)}.")
    return values[0], values[1]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _plainly(error: Exception) -> str:
    """Without the name of the method that Python's own message begins with."""
    return one_line(error).replace("CompressionPlan.__init__() ", "").replace("hf_vitcompress.planning.plan.", "")


@dataclass(frozen=True)
class GroupReport:
    """One group of layers in the result: those that were compressed together.

    Attributes:
        name, role, block: of the group (see `groups.base`).
        layers: names of its layers.
        kept: what is left, in a few words.
        shapes: the same by module name, as in the plan; empty where it stayed dense.
        parameters, dense_parameters: weight entries, biases not counted.
        predicted_loss: its share of the predicted loss; `None` where no loss is predicted.
    """

    name: str
    role: str
    block: int
    layers: list[str]
    kept: str
    shapes: dict[str, dict[str, int]]
    parameters: int
    dense_parameters: int
    predicted_loss: float | None
