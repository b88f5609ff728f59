"""The plan: which module gets which shape, and what each group of layers became."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..model.assembly import Shapes
from ..runtime.files import atomic_path
from .groups.base import LayerGroup


@dataclass
class CompressionPlan:
    """Shapes by module name. Modules that are not named stay dense. Plain data: JSON both ways, editable by hand.

    Attributes:
        layers: module name → shape, exactly as in `config.compression["layers"]` (see `modeling_factored`): of a linear
            layer `{"rank": r}`, `{"in_features": i}`, `{"out_features": o}` or several of them, of attention
            `{"qk_rank": r}`.
        predicted_loss: predicted loss increase (KL from the dense model, nats per image), scaled to measured losses;
            `None` where the metric predicts no loss, or after an edit.
        predicted_interval: its 95 % interval, as far as the images differ that it was measured on.
        keep_ratio: parameters of the compressed model ÷ of the original.
        budget: what was asked for, plain data.
    """

    layers: Shapes
    predicted_loss: float | None = None
    keep_ratio: float | None = None
    budget: dict[str, Any] = field(default_factory=dict)
    predicted_interval: tuple[float, float] | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    def save(self, path: str | Path) -> None:
        with atomic_path(path) as temporary:
            temporary.write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "CompressionPlan":
        """Read a plan; only `layers` is required.

        Raises:
            ConfigError: the file is missing or is no plan.
        """
        try:
            plan = cls(**json.loads(Path(path).read_text(encoding="utf-8")))
            if not isinstance(plan.layers, dict) or not all(isinstance(shape, dict) for shape in plan.layers.values()):
                raise TypeError("`layers` must map layer names to shapes")
            if plan.predicted_interval is not None:
                low, high = plan.predicted_interval
                plan.predicted_interval = low, high
            return plan
        except FileNotFoundError:
            raise ConfigError(f"There is no plan {str(path)!r}.") from None
        except (json.JSONDecodeError, TypeError, UnicodeDecodeError, ValueError) as error:
            raise ConfigError(
                f'{str(path)!r} is no plan: {error}. A plan is {{"layers": {{"<layer name>": {{"rank": <rank>}}, …}}}}.'
            ) from error

    def shapes_of(self, group: LayerGroup) -> Shapes:
        """What the plan says about one group."""
        return {name: self.layers[name] for name in group.module_names if name in self.layers}

    def check(self, groups: Sequence[LayerGroup]) -> None:
        """Refuse shapes that the model cannot have.

        Raises:
            ConfigError: a module is unknown, or cannot have the shape.
        """
        if not isinstance(self.layers, dict):
            raise ConfigError(f"The plan's layers must be a mapping of module names to shapes, not {self.layers!r}.")
        known = {name for group in groups for name in group.module_names}
        for name, shape in self.layers.items():
            if name not in known:
                raise ConfigError(f"The plan names {name!r}, which the model does not have (or which is skipped).")
            if not isinstance(shape, dict) or not shape:
                raise ConfigError(f'The plan gives {name!r} the shape {shape!r}; a shape is like {{"rank": 48}}.')
        for group in groups:
            group.check(self.shapes_of(group))


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
