"""The budget: error curves + a bound → a `CompressionPlan`, which layer keeps which rank."""

import heapq
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from .config import Allocation
from .errors import BudgetError, ConfigError
from .families import LayerInfo
from .files import atomic_path

KEEP_TOLERANCE = 0.005
"""How far the kept ratio may lie from the one asked for, as a fraction of it."""


@dataclass
class Curve:
    """What one layer offers the planner.

    Attributes:
        layer: the layer.
        errors: (n + 1,) predicted loss increase at rank 0 … n.
        positions: vectors per image that pass through the layer, for counting MACs.
    """

    layer: LayerInfo
    errors: Tensor
    positions: int

    def cost(self, rank: int | None, unit: "Cost") -> int:
        """Parameters, or MACs per image, at `rank` (`None`: dense); biases and the rest of the model not counted."""
        parameters = self.layer.parameters if rank is None else rank * self.layer.parameters_per_rank
        return parameters * (self.positions if unit == "macs" else 1)

    def error(self, rank: int | None) -> float:
        return 0.0 if rank is None else float(self.errors[min(rank, len(self.errors) - 1)])

    def ranks(self, multiple: int) -> list[int | None]:
        """The choices, cheapest first: multiples of `multiple` below break-even, then dense."""
        return [*range(multiple, self.layer.break_even_rank, multiple), None]


Cost = str
"""`"params"` or `"macs"`."""


@dataclass
class CompressionPlan:
    """Ranks by layer name. Layers that are not named stay dense. Plain data: JSON both ways, editable by hand.

    Attributes:
        ranks: layer name → rank.
        predicted_loss: predicted loss increase (KL from the dense model, nats per image), scaled to measured losses;
            `None` where the metric predicts no loss, or after an edit.
        keep_ratio: parameters of the compressed model ÷ of the original.
        budget: what was asked for, plain data.
    """

    ranks: dict[str, int]
    predicted_loss: float | None = None
    keep_ratio: float | None = None
    budget: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    def save(self, path: str | Path) -> None:
        with atomic_path(path) as temporary:
            temporary.write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "CompressionPlan":
        """Read a plan; only `ranks` is required.

        Raises:
            ConfigError: the file is missing or is no plan.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
            plan = cls(**values)
            if not isinstance(plan.ranks, dict):
                raise TypeError("`ranks` is no mapping")
            return plan
        except FileNotFoundError:
            raise ConfigError(f"There is no plan {str(path)!r}.") from None
        except (json.JSONDecodeError, TypeError, UnicodeDecodeError) as error:
            raise ConfigError(
                f'{str(path)!r} is no plan: {error}. A plan is {{"ranks": {{"<layer name>": <rank>, …}}}}.'
            ) from error

    def check(self, layers: Sequence[LayerInfo]) -> None:
        """Refuse ranks that the model cannot have.

        Raises:
            ConfigError: a layer is unknown, or a rank is not in 1 … min(in, out).
        """
        if not isinstance(self.ranks, dict):
            raise ConfigError(f"The plan's ranks must be a mapping of layer names to ranks, not {self.ranks!r}.")
        known = {layer.name: layer for layer in layers}
        for name, rank in self.ranks.items():
            if name not in known:
                raise ConfigError(f"The plan names {name!r}, which the model does not have (or which is skipped).")
            full = known[name].full_rank
            if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= full:
                raise ConfigError(
                    f"The plan gives {name!r} the rank {rank!r}; it must be a whole number in 1 … {full}."
                )


@dataclass(frozen=True)
class Budget:
    """A bound on the whole model.

    Attributes:
        limit: parameters, or MACs per image, that the compressed model may have.
        original: the dense model's.
        fixed: the part of it that no plan changes (embeddings, norms, heads, skipped layers; for MACs, attention).
        unit: `"params"` or `"macs"`.
        exact: whether the result must also come within `KEEP_TOLERANCE` of the limit from below.
    """

    limit: int
    original: int
    fixed: int
    unit: Cost = "params"
    exact: bool = False


def make_plan(
    curves: Sequence[Curve],
    budget: Budget,
    allocation: Allocation,
    rank_multiple: int = 8,
    weights: Mapping[str, float] | None = None,
) -> CompressionPlan:
    """Spend a budget.

    `"greedy"` starts every layer at its lowest rank and gives the next block of ranks to the layer where it buys most
    error per cost, which is optimal up to one block as long as the curves are convex (see `_greedy` for where they are
    not). `"uniform"` gives every layer the same share of its dense parameters.

    Args:
        weights: factor on each role's curve (missing: 1).

    Raises:
        BudgetError: the bound cannot be met, naming the bound that stands in the way.
    """
    weight_of = weights or {}
    smallest = sum(c.cost(c.ranks(rank_multiple)[0], budget.unit) for c in curves)
    room = budget.limit - budget.fixed
    if room < smallest:
        _raise_unreachable(curves, budget, smallest, rank_multiple)
    choose = _greedy if allocation == "greedy" else _uniform
    chosen = choose(curves, room, budget.unit, rank_multiple, lambda role: weight_of.get(role, 1.0))
    spent = sum(c.cost(rank, budget.unit) for c, rank in zip(curves, chosen, strict=True))
    if budget.exact and abs(budget.fixed + spent - budget.limit) > KEEP_TOLERANCE * budget.limit:
        reached = (budget.fixed + spent) / budget.original
        raise BudgetError(
            f"keep_ratio={budget.limit / budget.original:.4f} cannot be met within {KEEP_TOLERANCE:.1%}: the nearest "
            f"plan below it keeps {reached:.4f}, because ranks are multiples of rank_multiple={rank_multiple}"
            f"{' and every layer gets the same share' if allocation == 'uniform' else ''}. Use a smaller "
            "rank_multiple, or ask for that ratio."
        )
    return CompressionPlan({c.layer.name: rank for c, rank in zip(curves, chosen, strict=True) if rank is not None})


def _raise_unreachable(curves: Sequence[Curve], budget: Budget, smallest: int, rank_multiple: int) -> None:
    lowest = budget.fixed + smallest
    raise BudgetError(
        f"The budget of {budget.limit:,} {budget.unit} is out of reach: the smallest model with these settings has "
        f"{lowest:,} (keep ratio {lowest / budget.original:.4f} of {budget.original:,}). {budget.fixed:,} of them lie "
        f"outside the {len(curves)} layers that may be compressed, and these need {smallest:,} at the lowest rank "
        f"({rank_multiple}). Ask for more, lower rank_multiple, or let more layers be compressed (skip_modules, "
        "target_modules)."
    )


def _greedy(
    curves: Sequence[Curve], room: int, unit: Cost, multiple: int, weight: Callable[[str], float]
) -> list[int | None]:
    """The better of two: steps to the next rank, and steps to whichever rank or dense gains most per cost.

    The first is right where all steps are alike; the second sees that dense, which costs about half the full rank and
    takes away all of the error, can be a bargain: there a curve is not convex.
    """
    tables = [
        [(curve.cost(r, unit), curve.error(r) * weight(curve.layer.role)) for r in curve.ranks(multiple)]
        for curve in curves
    ]

    def total(levels: list[int]) -> float:
        return sum(table[level][1] for table, level in zip(tables, levels, strict=True))

    best = min((_ascend(tables, room, reach) for reach in (1, None)), key=total)
    return [curve.ranks(multiple)[level] for curve, level in zip(curves, best, strict=True)]


def _ascend(tables: list[list[tuple[int, float]]], room: int, reach: int | None) -> list[int]:
    """From the lowest choice of each (cost, error) table, take the step that gains most per cost until none fits.

    A step leads at most `reach` choices up, or anywhere.
    """
    levels = [0] * len(tables)
    room -= sum(table[0][0] for table in tables)

    def best_step(i: int) -> tuple[float, int, int, int] | None:
        table, now = tables[i], levels[i]
        last = len(table) if reach is None else min(now + 1 + reach, len(table))
        steps = []
        for then in range(now + 1, last):
            price = table[then][0] - table[now][0]
            if price <= room:
                steps.append(((table[then][1] - table[now][1]) / max(price, 1), i, then, price))
        return min(steps, default=None)

    queue = [step for i in range(len(tables)) if (step := best_step(i)) is not None]
    heapq.heapify(queue)
    while queue:
        _, i, then, price = heapq.heappop(queue)
        if price <= room:
            room -= price
            levels[i] = then
        if (step := best_step(i)) is not None:
            heapq.heappush(queue, step)
    return levels


def _uniform(
    curves: Sequence[Curve], room: int, unit: Cost, multiple: int, weight: Callable[[str], float]
) -> list[int | None]:
    """The largest common share that fits; what rounding leaves over goes to the layers that lost most by it."""
    narrow = [curve.ranks(multiple)[0] is None for curve in curves]
    if any(narrow):  # no rank below break-even: dense, and the others share what is left
        room -= sum(curve.cost(None, unit) for curve, n in zip(curves, narrow, strict=True) if n)
        others = [curve for curve, n in zip(curves, narrow, strict=True) if not n]
        shared = iter(_uniform(others, room, unit, multiple, weight) if others else [])
        return [None if n else next(shared) for n in narrow]
    share = room / sum(curve.cost(None, unit) for curve in curves)
    if share >= 1:
        return [None] * len(curves)
    wanted = [share * c.layer.parameters / c.layer.parameters_per_rank for c in curves]
    ranks = [max(multiple, int(w / multiple) * multiple) for w in wanted]
    room -= sum(c.cost(r, unit) for c, r in zip(curves, ranks, strict=True))
    for i in sorted(range(len(curves)), key=lambda i: ranks[i] - wanted[i]):
        price = curves[i].cost(multiple, unit)
        if price <= room and ranks[i] + multiple < curves[i].layer.break_even_rank:
            ranks[i] += multiple
            room -= price
    while room < 0:  # the lowest rank was more than the share of some narrow layers
        i = max(range(len(curves)), key=lambda i: ranks[i] - wanted[i] if ranks[i] > multiple else float("-inf"))
        ranks[i] -= multiple
        room += curves[i].cost(multiple, unit)
    return list(ranks)
