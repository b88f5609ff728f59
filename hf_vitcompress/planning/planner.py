"""A dense model made ready for planning: its groups of layers and their predicted errors, whatever the budgets."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..architectures.inputs import image_shape
from ..architectures.layers import (
    LayerInfo,
    block_names,
    find_layers,
)
from ..architectures.subject import Subject
from ..config import BUDGET_SETTINGS, CompressionConfig
from ..errors import BudgetError, CalibrationError
from ..evaluation.costs import Costs, count_costs
from ..metrics import METRICS
from ..model.assembly import Tokens
from ..runtime.distributed import deal, gather_objects, local_work
from ..runtime.run import Run
from ..statistics.loss_correction import LossCorrection
from ..statistics.statistics import Statistics
from .allocation import Budget, Table, make_plan
from .belonging import check_statistics
from .clock import Clock
from .grouping import make_groups
from .groups.base import COUNTED, Choice, Cost, Given, LayerGroup
from .joining import smallest_parameters, with_removals
from .plan import CompressionPlan
from .selection import selection_method
from .tokens import NOTHING_MERGED, Merged, wants_merging, with_fewer_tokens

BUDGET_CURVE_RATIOS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.45, 0.4, 0.35, 0.3, 0.25, 0.2)


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
    _choices: dict[tuple[int, int], list[list[Choice]]] = field(default_factory=dict)

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
    def image_shape(self) -> tuple[int, ...]:
        """Of one image's `pixel_values`, as calibration saw it."""
        return self.statistics.image_shape or image_shape(self.subject.model)

    @property
    def dense_choices(self) -> list[Choice]:
        """What changes nothing, of each group."""
        return [group.choice({}) for group in self.groups]

    @property
    def roles(self) -> list[str]:
        return list(dict.fromkeys(group.role for group in self.groups))

    def choices(self, multiple: int, clock: Clock | None = None) -> list[list[Choice]]:
        """Of each group; with a clock, also those that are the best for their time."""
        key = multiple, 0 if clock is None else id(clock.profile)
        if key not in self._choices:
            costs = COUNTED if clock is None else (*COUNTED, clock.cost)
            self._choices[key] = [group.choices(multiple, costs) for group in self.groups]
        return self._choices[key]

    def lowest_keep_ratio(self, multiple: int) -> float:
        """Every group at its smallest."""
        smallest = smallest_parameters(self.groups, replace(self.groups[0].config, rank_multiple=multiple))
        return (self.fixed_parameters + smallest) / self.costs.parameters

    def budgets(self, config: CompressionConfig, clock: Clock | None = None) -> list[Budget]:
        """The bounds of `config` on the whole model; `max_accuracy_drop` has none.

        Args:
            clock: predicts latencies, for budgets of time.
        """
        found = parameter_budgets(config, self.costs.parameters, self.fixed_parameters)
        if config.max_macs is not None:
            fixed = self.costs.macs - sum(choice.macs for choice in self.dense_choices)
            found.append(Budget(config.max_macs, self.costs.macs, fixed, "macs"))
        if config.times:
            assert clock is not None
            found.append(clock.budget())
        return found

    def plan(
        self,
        config: CompressionConfig,
        weights: Mapping[str, float] | None = None,
        exact: bool = True,
        clock: Clock | None = None,
        schedules: Sequence[Merged] = (),
    ) -> CompressionPlan:
        """Spend the budgets of `config`.

        Args:
            weights: factors on the roles' errors instead of the measured ones.
            exact: whether to warn of a plan that stays further below the budget than its tolerance.
            clock: predicts latencies, for budgets of time.
            schedules: of merged tokens, to choose from; by default all that `config` allows.
        """
        best, failure = None, None
        for merged in schedules or self.schedules(config):
            try:
                plan = self._planned(config, weights, exact and best is None, clock, merged)
            except BudgetError as error:
                failure = failure or error
                continue
            if best is None or (plan.predicted_loss or 0.0) < (best.predicted_loss or 0.0):
                best = plan
        if best is None:
            assert failure is not None
            raise failure
        return best

    def schedules(self, config: CompressionConfig) -> list[Merged]:
        """Nothing merged first, and what was measured where that lowers a cost of the budget."""
        comparable = self.correction.loss(1.0) is not None  # what merging loses is measured
        if not (self.statistics.merging and comparable and wants_merging(self.subject, config)):
            return [NOTHING_MERGED]
        return [NOTHING_MERGED, *(self._merged(one.tokens, one.loss) for one in self.statistics.merging)]

    def _merged(self, tokens: Tokens, loss: float = 0.0) -> Merged:
        rows = dict.fromkeys(block_names(self.subject.model), self.groups[0].positions)
        return Merged.of(tokens, loss, rows, self.groups[0].layers[0].in_features) if tokens else NOTHING_MERGED

    def _planned(
        self,
        config: CompressionConfig,
        weights: Mapping[str, float] | None,
        exact: bool,
        clock: Clock | None,
        merged: Merged,
    ) -> CompressionPlan:
        """The plan with these tokens merged."""
        budgets = [
            replace(budget, exact=exact, fixed=budget.fixed + budget.cost(merged.own))
            for budget in self.budgets(config, clock)
        ]
        tables = self._tables(config, weights, clock, merged, [budget.cost for budget in budgets])
        plan = make_plan(tables, budgets, config.allocation, config.rank_multiple)
        return self.completed(replace(plan, tokens=dict(merged.tokens)), config)

    def _tables(
        self,
        config: CompressionConfig,
        weights: Mapping[str, float] | None,
        clock: Clock | None,
        merged: Merged,
        costs: Sequence[Cost],
    ) -> list[Table]:
        """What the groups offer with these tokens merged."""
        weights = self.correction.weights if weights is None else weights
        tables = [
            Table(
                group.name,
                [with_fewer_tokens(choice, merged.gone(group.layers[0])) for choice in choices],
                weights.get(group.role, 1.0),
            )
            for group, choices in zip(self.groups, self.choices(config.rank_multiple, clock), strict=True)
        ]
        return with_removals(tables, self.groups, config, costs)

    def fastest(self, config: CompressionConfig, clock: Clock, schedules: Sequence[Merged]) -> CompressionPlan:
        """The plan that the clock finds the fastest of all with one of these schedules, whatever it loses."""
        found = []
        for merged in schedules:
            tables = self._tables(config, None, clock, merged, [clock.cost])
            choices = [min(table.choices, key=clock.cost) for table in tables]
            shapes = {name: shape for choice in choices for name, shape in choice.shapes.items()}
            plan = CompressionPlan(shapes, tokens=dict(merged.tokens))
            found.append((sum(map(clock.cost, [*choices, merged.own])), plan))
        return self.completed(min(found, key=lambda own: own[0])[1], config)

    def taken(self, plan: CompressionPlan) -> list[Choice]:
        """What a plan takes of each group, with the tokens that it leaves, and what merging them takes."""
        merged = self._merged(plan.tokens)
        choices = [(group.choice(plan.shapes_of(group)), merged.gone(group.layers[0])) for group in self.groups]
        return [*(with_fewer_tokens(*choice) for choice in choices), merged.own]

    def completed(self, plan: CompressionPlan, config: CompressionConfig, given: bool = False) -> CompressionPlan:
        """The plan with its keep ratio, predicted loss and budget filled in.

        Args:
            given: whether the shapes were given, and no budget was spent.
        """
        kept = sum(group.choice(plan.shapes_of(group)).parameters for group in self.groups)
        loss = self.correction.loss(self.predicted(plan, self.correction.weights))
        merging = self._loss_of_merging(plan.tokens)
        loss = None if loss is None or merging is None else loss + merging
        return CompressionPlan(
            plan.layers,
            loss,
            (self.fixed_parameters + kept) / self.costs.parameters,
            {} if given else dict(config.budgets),
            None if loss is None else self.correction.interval(loss),
            plan.tokens,
        )

    def _loss_of_merging(self, tokens: Tokens) -> float | None:
        """As it was measured with dense weights; `None` where it was not."""
        if not any(tokens.values()):
            return 0.0
        return next((one.loss for one in self.statistics.merging if one.tokens == tokens), None)

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


def parameter_budgets(config: CompressionConfig, original: int, fixed: int) -> list[Budget]:
    """The bounds that `max_params` and `keep_ratio` set.

    Args:
        original: parameters of the dense model.
        fixed: those of them that no plan changes.
    """
    limits = [None if config.keep_ratio is None else int(config.keep_ratio * original), config.max_params]
    return [Budget(limit, original, fixed) for limit in limits if limit is not None]


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
    check_statistics(statistics, subject, config, layers)
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
    settings = {name: value for name, value in config.to_dict().items() if name not in (*BUDGET_SETTINGS, "tokens")}
    return json.dumps([method, settings], sort_keys=True)


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
