"""A dense model made ready for planning: its parts and their predicted errors, whatever the budgets that follow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..architectures.families import Role
from ..architectures.layers import (
    LayerInfo,
    by_block,
    feature_pairs,
    find_layers,
    has_standard_attention,
    prunable_heads,
)
from ..config import CompressionConfig
from ..errors import BudgetError, CalibrationError, ConfigError
from ..evaluation.costs import Costs, count_costs
from ..runtime.distributed import deal, gather_objects, local_work, new_accelerator
from ..runtime.weights import fingerprint
from ..statistics.loss_correction import CurveScaling
from ..statistics.statistics import Statistics
from .allocation import Budget, Table, make_plan
from .groups.base import Choice, Part
from .groups.heads import HeadsPart
from .groups.layer import LayerPart
from .groups.pair import PairPart
from .groups.query_key import QueryKeyPart
from .plan import CompressionPlan, PartReport
from .selection import selection_method

BUDGET_CURVE_RATIOS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.45, 0.4, 0.35, 0.3, 0.25, 0.2)

Group = tuple[type[Part], Sequence[LayerInfo]]
"""Layers that are compressed together, and as what."""


@dataclass
class Prepared:
    """Everything about a model that does not depend on the budget.

    Attributes:
        model: the dense model, unchanged.
        layers: what may be compressed.
        parts: the same, as it is compressed.
        costs: of the dense model, for images such as it was calibrated on.
        method: by which features and ranks are chosen, see `selection.selection_method`.
        scaling: corrections of the predicted losses; without any points until they are measured.
    """

    model: PreTrainedModel
    layers: list[LayerInfo]
    parts: list[Part]
    costs: Costs
    method: str
    scaling: CurveScaling
    _choices: dict[int, list[list[Choice]]] = field(default_factory=dict)

    @property
    def fixed_parameters(self) -> int:
        """Parameters that no plan changes, and biases."""
        return self.costs.parameters - sum(part.dense_parameters for part in self.parts)

    @property
    def roles(self) -> list[str]:
        return list(dict.fromkeys(part.role for part in self.parts))

    def choices(self, multiple: int) -> list[list[Choice]]:
        """Of each part."""
        if multiple not in self._choices:
            self._choices[multiple] = [part.choices(multiple) for part in self.parts]
        return self._choices[multiple]

    def lowest_keep_ratio(self, multiple: int) -> float:
        """Every part at its smallest."""
        smallest = sum(min(choice.parameters for choice in choices) for choices in self.choices(multiple))
        return (self.fixed_parameters + smallest) / self.costs.parameters

    def budget(self, config: CompressionConfig) -> Budget:
        """The bound of `config` on the whole model; not for `max_accuracy_drop`, which has none."""
        if config.max_macs is not None:
            fixed = self.costs.macs - sum(part.choice({}).macs for part in self.parts)
            return Budget(config.max_macs, self.costs.macs, fixed, "macs")
        if config.max_params is not None:
            return Budget(config.max_params, self.costs.parameters, self.fixed_parameters)
        assert config.keep_ratio is not None
        limit = int(config.keep_ratio * self.costs.parameters)
        return Budget(limit, self.costs.parameters, self.fixed_parameters, exact=True)

    def plan(
        self, config: CompressionConfig, weights: Mapping[str, float] | None = None, exact: bool = True
    ) -> CompressionPlan:
        """Spend the budget of `config`.

        Args:
            weights: factors on the roles' errors instead of the measured ones.
            exact: whether `keep_ratio` must be met within its tolerance, and not just kept to.
        """
        budget = self.budget(config)
        if not exact:
            budget = Budget(budget.limit, budget.original, budget.fixed, budget.unit)
        weights = self.scaling.weights if weights is None else weights
        tables = [
            Table(part.name, choices, weights.get(part.role, 1.0))
            for part, choices in zip(self.parts, self.choices(config.rank_multiple), strict=True)
        ]
        return self.completed(make_plan(tables, budget, config.allocation, config.rank_multiple), config)

    def completed(self, plan: CompressionPlan, config: CompressionConfig) -> CompressionPlan:
        """The plan with its keep ratio, predicted loss and budget filled in."""
        kept = sum(part.choice(plan.shapes_of(part)).parameters for part in self.parts)
        return CompressionPlan(
            plan.layers,
            self.scaling.loss(self.predicted(plan, self.scaling.weights)),
            (self.fixed_parameters + kept) / self.costs.parameters,
            {config.budget: getattr(config, config.budget)},
        )

    def predicted(self, plan: CompressionPlan, weights: Mapping[str, float]) -> float:
        """The sum of the plan's weighted errors, not yet scaled to measured losses."""
        return sum(part.choice(plan.shapes_of(part)).error * weights.get(part.role, 1.0) for part in self.parts)

    def budget_curve(self, config: CompressionConfig) -> list[tuple[float, float]]:
        """(keep ratio, predicted loss) over the budgets this model can have, without building any of them."""
        curve = []
        for ratio in BUDGET_CURVE_RATIOS:
            try:
                plan = self.plan(config.with_budget(keep_ratio=ratio), exact=False)
            except BudgetError:
                break  # and the ones below it
            if plan.predicted_loss is not None:
                curve.append((ratio, plan.predicted_loss))
        return curve

    def part_reports(self, plan: CompressionPlan) -> list[PartReport]:
        """Each part's shapes and its share of the scaled predicted loss."""
        total = self.predicted(plan, self.scaling.weights)
        loss = self.scaling.loss(total)
        reports = []
        for part in self.parts:
            shapes = plan.shapes_of(part)
            choice = part.choice(shapes)
            own = choice.error * self.scaling.weights.get(part.role, 1.0)
            reports.append(
                PartReport(
                    name=part.name,
                    role=part.role,
                    block=part.block,
                    layers=[layer.name for layer in part.layers],
                    kept=part.describe(shapes),
                    shapes=shapes,
                    parameters=choice.parameters,
                    dense_parameters=part.dense_parameters,
                    predicted_loss=None if loss is None else loss * own / total if total else 0.0,
                )
            )
        return reports


def prepare_model(
    model: PreTrainedModel,
    statistics: Statistics,
    config: CompressionConfig,
    progress: bool = True,
    accelerator: Accelerator | None = None,
    importance: Mapping[str, Tensor] | None = None,
) -> Prepared:
    """Predict the errors of every part of a dense model; several processes share the work and all get every result.

    Args:
        importance: for `criterion="gates"`, learned scores of what flows into fc2 (neurons,) and o (heads,), by the
            name of that layer.

    Raises:
        CalibrationError: the statistics belong to another model, another metric or fewer layers.
    """
    layers = find_layers(model, config.target_modules, config.skip_modules)
    _check_statistics(statistics, model, config, layers)
    statistics.to(model.device).check_layers(layers)
    parts = make_parts(model, layers, statistics, config, importance)
    _solve_all(parts, progress, accelerator or new_accelerator())
    # For the images that the parts' own costs are for, which the config need not know.
    costs = count_costs(model, statistics.image_shape)
    return Prepared(model, layers, parts, costs, selection_method(config, importance), scaling=CurveScaling())


def make_parts(
    model: PreTrainedModel,
    layers: Sequence[LayerInfo],
    statistics: Statistics,
    config: CompressionConfig,
    importance: Mapping[str, Tensor] | None = None,
) -> list[Part]:
    """The parts of every block, as the config's `attention` and `mlp` want them, not yet solved.

    Layers whose partners are skipped are factored alone.

    Raises:
        ConfigError: nothing is left to compress, or attention that is to lose heads cannot.
    """
    pairs = {pair[0].block: pair for pair in feature_pairs(layers, config)}
    groups: list[Group] = []
    for block, members in by_block(layers).items():
        groups += _attention_groups(model, members, config)
        if block in pairs:
            groups.append((PairPart, pairs[block]))
        elif config.mlp in ("auto", "low_rank"):
            groups += _alone(members, ("gate", "fc1", "fc2"))
    if not groups:
        raise ConfigError(
            f"attention={config.attention!r} and mlp={config.mlp!r} leave nothing of the {len(layers)} layers to "
            "compress."
        )
    return [kind(together, model, statistics, config, importance) for kind, together in groups]


def _attention_groups(
    model: PreTrainedModel, members: Mapping[Role, LayerInfo], config: CompressionConfig
) -> list[Group]:
    """Of a block's layers by role."""
    if config.attention == "none":
        return []
    if config.attention == "prune":
        heads = prunable_heads(model, members)
        return [(HeadsPart, heads)] if heads else []
    left, groups = dict(members), []
    first = members.get("q") or members.get("v")
    if config.attention == "joint" and first is not None and has_standard_attention(model, first.parent):
        pairs: tuple[tuple[type[Part], tuple[Role, Role]], ...] = ((QueryKeyPart, ("q", "k")), (PairPart, ("v", "o")))
        for kind, roles in pairs:
            if set(roles) <= set(left):
                groups.append((kind, [left.pop(role) for role in roles]))
    return groups + _alone(left, ("qkv", "q", "k", "v", "o"))


def _alone(members: Mapping[Role, LayerInfo], roles: Sequence[Role]) -> list[Group]:
    return [(LayerPart, [members[role]]) for role in roles if role in members]


def _solve_all(parts: Sequence[Part], progress: bool, accelerator: Accelerator) -> None:
    """Dealt out over the processes by cost; the solutions then go to all of them."""
    owners = deal([part.work for part in parts], accelerator.num_processes)
    mine = [i for i, owner in enumerate(owners) if owner == accelerator.process_index]
    bar = tqdm(mine, desc="factorizing", unit=" parts", disable=not (progress and accelerator.is_main_process))
    with local_work(accelerator, "Factorization"):
        solutions = {i: parts[i].solve() for i in bar}
    for found in gather_objects(accelerator, solutions):
        for i, solution in found.items():
            parts[i].solution = solution


def _check_statistics(
    statistics: Statistics, model: PreTrainedModel, config: CompressionConfig, layers: Sequence[LayerInfo]
) -> None:
    if statistics.fingerprint != fingerprint(model):
        raise CalibrationError(
            f"The statistics were collected from another model than this {type(model).__name__} (or from other "
            "weights of it). Calibrate this one."
        )
    seen = statistics.images + statistics.bad_images
    if seen != statistics.settings.get("images", seen):
        raise CalibrationError(
            f"The calibration was interrupted after {seen} of {statistics.settings['images']} images. Finish it first, "
            "by giving its images again (--data) with the same statistics file."
        )
    if statistics.settings.get("metric") != config.metric:
        raise CalibrationError(
            f"The statistics were collected for metric={statistics.settings.get('metric')!r} and the config asks for "
            f"{config.metric!r}. Calibrate again, or use that metric."
        )
    if config.needs_gradients and statistics.settings.get("calibration_loss", "output") != config.calibration_loss:
        raise CalibrationError(
            f"The statistics were collected with another calibration_loss than {config.calibration_loss!r}. Calibrate "
            "again, or use that one."
        )
    known = set(statistics.settings.get("prunable_inputs", []))
    for *_, reader in feature_pairs(layers, config):
        if reader.name not in known:
            raise CalibrationError(
                f"The statistics do not cover the neurons before {reader.name!r}, which mlp={config.mlp!r} may prune. "
                'Calibrate again with that setting, or use mlp="low_rank".'
            )
