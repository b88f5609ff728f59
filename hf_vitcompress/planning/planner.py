"""A dense model made ready for planning: its groups of layers and their predicted errors, whatever the budgets."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..architectures.families import Role
from ..architectures.layers import (
    LayerInfo,
    by_block,
    feature_pairs,
    find_layers,
    has_standard_attention,
    may_narrow_values,
    prunable_heads,
)
from ..architectures.subject import Subject
from ..config import BUDGETS, CompressionConfig
from ..errors import BudgetError, CalibrationError, ConfigError
from ..evaluation.costs import Costs, count_costs
from ..metrics import METRICS
from ..runtime.distributed import deal, gather_objects, local_work
from ..runtime.identity import differences
from ..runtime.run import Run
from ..statistics.identity import subject_identity, weights_in
from ..statistics.loss_correction import LossCorrection
from ..statistics.statistics import Statistics
from .allocation import Budget, Table, make_plan
from .groups.base import Choice, Given, LayerGroup
from .groups.heads import HeadsGroup
from .groups.layer import SingleLayerGroup
from .groups.pair import PairGroup
from .groups.query_key import QueryKeyGroup
from .plan import CompressionPlan
from .selection import selection_method

BUDGET_CURVE_RATIOS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.45, 0.4, 0.35, 0.3, 0.25, 0.2)

Members = tuple[type[LayerGroup], Sequence[LayerInfo]]
"""Layers that are compressed together, and as what."""


@dataclass
class Planner:
    """Everything about a model that does not depend on the budget.

    Attributes:
        subject: the dense model, unchanged.
        statistics: of it.
        layers: what may be compressed.
        groups: the same, as they are compressed together.
        costs: of the dense model, for images such as it was calibrated on.
        method: by which features and ranks are chosen, see `selection.selection_method`.
    """

    subject: Subject
    statistics: Statistics
    layers: list[LayerInfo]
    groups: list[LayerGroup]
    costs: Costs
    method: str
    _choices: dict[int, list[list[Choice]]] = field(default_factory=dict)

    @property
    def correction(self) -> LossCorrection:
        """Of the predicted losses; without any points until they are measured."""
        is_loss = METRICS[self.groups[0].config.metric].is_loss
        return self.statistics.corrections.get(self.method) or LossCorrection.prior(self.roles if is_loss else ())

    @property
    def fixed_parameters(self) -> int:
        """Parameters that no plan changes, and biases."""
        return self.costs.parameters - sum(group.dense_parameters for group in self.groups)

    @property
    def roles(self) -> list[str]:
        return list(dict.fromkeys(group.role for group in self.groups))

    def choices(self, multiple: int) -> list[list[Choice]]:
        """Of each group."""
        if multiple not in self._choices:
            self._choices[multiple] = [group.choices(multiple) for group in self.groups]
        return self._choices[multiple]

    def lowest_keep_ratio(self, multiple: int) -> float:
        """Every group at its smallest."""
        smallest = sum(min(choice.parameters for choice in choices) for choices in self.choices(multiple))
        return (self.fixed_parameters + smallest) / self.costs.parameters

    def budget(self, config: CompressionConfig) -> Budget:
        """The bound of `config` on the whole model; not for `max_accuracy_drop`, which has none."""
        if config.max_macs is not None:
            fixed = self.costs.macs - sum(group.choice({}).macs for group in self.groups)
            return Budget(config.max_macs, self.costs.macs, fixed, "macs")
        return parameter_budget(config, self.costs.parameters, self.fixed_parameters)

    def plan(
        self, config: CompressionConfig, weights: Mapping[str, float] | None = None, exact: bool = True
    ) -> CompressionPlan:
        """Spend the budget of `config`.

        Args:
            weights: factors on the roles' errors instead of the measured ones.
            exact: whether to warn of a plan that stays further below the budget than its tolerance.
        """
        budget = replace(self.budget(config), exact=exact)
        weights = self.correction.weights if weights is None else weights
        tables = [
            Table(group.name, choices, weights.get(group.role, 1.0))
            for group, choices in zip(self.groups, self.choices(config.rank_multiple), strict=True)
        ]
        return self.completed(make_plan(tables, budget, config.allocation, config.rank_multiple), config)

    def completed(self, plan: CompressionPlan, config: CompressionConfig) -> CompressionPlan:
        """The plan with its keep ratio, predicted loss and budget filled in."""
        kept = sum(group.choice(plan.shapes_of(group)).parameters for group in self.groups)
        # What merged tokens cost is no part of the groups' errors.
        loss = (
            None if any(plan.tokens.values()) else self.correction.loss(self.predicted(plan, self.correction.weights))
        )
        return CompressionPlan(
            plan.layers,
            loss,
            (self.fixed_parameters + kept) / self.costs.parameters,
            {config.budget: getattr(config, config.budget)},
            None if loss is None else self.correction.interval(loss),
            plan.tokens,
        )

    def predicted(self, plan: CompressionPlan, weights: Mapping[str, float]) -> float:
        """The sum of the plan's weighted errors, not yet scaled to measured losses."""
        return sum(group.choice(plan.shapes_of(group)).error * weights.get(group.role, 1.0) for group in self.groups)

    def budget_curve(self, config: CompressionConfig) -> list[tuple[float, float]]:
        """(keep ratio, predicted loss) over the budgets this model can have, without building any of them."""
        curve: list[tuple[float, float]] = []
        if self.correction.loss(1.0) is None:
            return curve
        for ratio in BUDGET_CURVE_RATIOS:
            try:
                plan = self.plan(config.with_budget(keep_ratio=ratio), exact=False)
            except BudgetError:
                break  # and the ones below it
            if plan.predicted_loss is not None:
                curve.append((ratio, plan.predicted_loss))
        return curve


def parameter_budget(config: CompressionConfig, original: int, fixed: int) -> Budget:
    """The bound that `max_params` or `keep_ratio` sets.

    Args:
        original: parameters of the dense model.
        fixed: those of them that no plan changes.
    """
    if config.max_params is not None:
        return Budget(config.max_params, original, fixed)
    assert config.keep_ratio is not None
    return Budget(int(config.keep_ratio * original), original, fixed)


def make_planner(
    subject: Subject, statistics: Statistics, run: Run, importance: Mapping[str, Tensor] | None = None
) -> Planner:
    """Predict the errors of every group of layers of a dense model.

    Several processes share the work and all get every result. What was solved is kept in `statistics.solutions`, so
    that the planner of another budget takes seconds.

    Args:
        importance: for `criterion="gates"`, learned scores of what flows into fc2 (neurons,) and o (heads,), by the
            name of that layer.

    Raises:
        CalibrationError: the statistics belong to another model, another metric or fewer layers.
    """
    model, config = subject.model, run.config
    layers = find_layers(model, config.target_modules, config.skip_modules)
    _check_statistics(statistics, subject, config, layers)
    statistics.to(model.device).check_layers(layers)
    given = Given(model, statistics, config, importance or {})
    groups = make_groups(layers, given)
    method = selection_method(config, importance)
    known = statistics.solutions.setdefault(_key(config, method), [])
    if not known:
        _solve_all(groups, run)
        known += [group.solution for group in groups]
    for group, solution in zip(groups, known, strict=True):
        group.solution = solution
    # For the images that the groups' own costs are for, which the config need not know.
    return Planner(subject, statistics, layers, groups, count_costs(model, statistics.image_shape), method)


def _key(config: CompressionConfig, method: str) -> str:
    """All that solutions depend on, besides the moments and weights."""
    settings = {name: value for name, value in config.to_dict().items() if name not in BUDGETS}
    return json.dumps([method, settings], sort_keys=True)


def make_groups(layers: Sequence[LayerInfo], given: Given) -> list[LayerGroup]:
    """The groups of every block, as the config's `attention` and `mlp` want them, not yet solved.

    Layers whose partners are skipped are factored alone.

    Raises:
        ConfigError: nothing is left to compress, or attention that is to lose heads cannot.
    """
    model, config = given.model, given.config
    pairs = {pair[0].block: pair for pair in feature_pairs(layers, config)}
    groups: list[Members] = []
    for block, members in by_block(layers).items():
        groups += _attention_groups(model, members, config)
        if block in pairs:
            groups.append((PairGroup, pairs[block]))
        elif config.mlp in ("auto", "low_rank"):
            groups += _alone(members, ("gate", "fc1", "fc2"))
    if not groups:
        raise ConfigError(
            f"attention={config.attention!r} and mlp={config.mlp!r} leave nothing of the {len(layers)} layers to "
            "compress."
        )
    return [kind(together, given) for kind, together in groups]


def _attention_groups(
    model: PreTrainedModel, members: Mapping[Role, LayerInfo], config: CompressionConfig
) -> list[Members]:
    """Of a block's layers by role."""
    if config.attention == "none":
        return []
    if config.attention == "prune":
        heads = prunable_heads(model, members)
        return [(HeadsGroup, heads)] if heads else []
    left, groups = dict(members), []
    first = members.get("q") or members.get("v")
    if config.attention == "joint" and first is not None and has_standard_attention(model, first.parent):
        pairs: tuple[tuple[type[LayerGroup], tuple[Role, Role]], ...] = (
            (QueryKeyGroup, ("q", "k")),
            (PairGroup, ("v", "o")),
        )
        for kind, roles in pairs:
            if set(roles) <= set(left) and (kind is QueryKeyGroup or may_narrow_values(model, left["v"], left["o"])):
                groups.append((kind, [left.pop(role) for role in roles]))
    return groups + _alone(left, ("qkv", "qk", "kv", "q", "k", "v", "o"))


def _alone(members: Mapping[Role, LayerInfo], roles: Sequence[Role]) -> list[Members]:
    return [(SingleLayerGroup, [members[role]]) for role in roles if role in members]


def _solve_all(groups: Sequence[LayerGroup], run: Run) -> None:
    """Dealt out over the processes by cost; the solutions then go to all of them."""
    accelerator = run.accelerator
    owners = deal([group.work for group in groups], accelerator.num_processes)
    mine = [i for i, owner in enumerate(owners) if owner == accelerator.process_index]
    solutions = {}
    with local_work(accelerator, "Factorization"), run.bar("factorizing", "groups", total=len(groups)) as bar:
        for i in mine:
            solutions[i] = _solved(groups[i])
            bar.update(min(accelerator.num_processes, len(groups) - bar.n))
    for found in gather_objects(accelerator, solutions):
        for i, solution in found.items():
            groups[i].solution = solution


def _solved(group: LayerGroup) -> Any:
    try:
        return group.solve()
    except torch.linalg.LinAlgError as error:
        raise CalibrationError(
            f"What the statistics hold about {group.name!r} are not the moments of any activations and gradients. "
            'Calibrate again, with precision="float32" if it happens again.'
        ) from error


def _check_statistics(
    statistics: Statistics, subject: Subject, config: CompressionConfig, layers: Sequence[LayerInfo]
) -> None:
    now = subject_identity(subject)
    different = differences(statistics.identity, now)
    if different or statistics.weights != weights_in(now):
        raise CalibrationError(
            f"The statistics were collected from {different or 'another model'}. Calibrate this "
            f"{type(subject.model).__name__}, or give what they were collected from."
        )
    if not statistics.is_complete:
        seen = statistics.images + statistics.bad_images
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
