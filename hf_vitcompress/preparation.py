"""A dense model made ready for planning: factorized once, whatever the budgets that follow."""

from collections.abc import Mapping
from dataclasses import dataclass

from accelerate import Accelerator
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from .calibration import fingerprint
from .config import CompressionConfig
from .costs import Costs, count_costs
from .distribution import deal, from_owner, local_work, new_accelerator
from .errors import BudgetError, CalibrationError
from .factorization import Factorization, factorize
from .families import LayerInfo, find_layers, linear_layer
from .planning import Budget, CompressionPlan, Curve, make_plan
from .report import LayerReport
from .scaling import CurveScaling
from .statistics import Statistics

BUDGET_CURVE_RATIOS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.45, 0.4, 0.35, 0.3, 0.25, 0.2)


@dataclass
class Prepared:
    """Everything about a model that does not depend on the budget.

    Attributes:
        model: the dense model, unchanged.
        layers: what may be compressed.
        factorizations: by layer name.
        curves: the planner's view of them, in the order of `layers`.
        costs: of the dense model.
        scaling: corrections of the predicted losses; without any points until they are measured.
    """

    model: PreTrainedModel
    layers: list[LayerInfo]
    factorizations: dict[str, Factorization]
    curves: list[Curve]
    costs: Costs
    scaling: CurveScaling

    @property
    def fixed_parameters(self) -> int:
        """Parameters that no plan changes."""
        return self.costs.parameters - sum(layer.parameters for layer in self.layers)

    def lowest_keep_ratio(self, rank_multiple: int) -> float:
        """Every layer at its lowest rank."""
        smallest = sum(curve.cost(curve.ranks(rank_multiple)[0], "params") for curve in self.curves)
        return (self.fixed_parameters + smallest) / self.costs.parameters

    def budget(self, config: CompressionConfig) -> Budget:
        """The bound of `config` on the whole model; not for `max_accuracy_drop`, which has none."""
        if config.max_macs is not None:
            fixed = self.costs.macs - sum(curve.cost(None, "macs") for curve in self.curves)
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
            weights: factors on the roles' curves instead of the measured ones.
            exact: whether `keep_ratio` must be met within its tolerance, and not just kept to.
        """
        budget = self.budget(config)
        if not exact:
            budget = Budget(budget.limit, budget.original, budget.fixed, budget.unit)
        weights = self.scaling.weights if weights is None else weights
        plan = make_plan(self.curves, budget, config.allocation, config.rank_multiple, weights)
        return self.completed(plan, config)

    def completed(self, plan: CompressionPlan, config: CompressionConfig) -> CompressionPlan:
        """The plan with its keep ratio, predicted loss and budget filled in."""
        kept = sum(curve.cost(plan.ranks.get(curve.layer.name), "params") for curve in self.curves)
        return CompressionPlan(
            plan.ranks,
            self.scaling.loss(self.predicted(plan, self.scaling.weights)),
            (self.fixed_parameters + kept) / self.costs.parameters,
            {config.budget: getattr(config, config.budget)},
        )

    def predicted(self, plan: CompressionPlan, weights: Mapping[str, float]) -> float:
        """The sum of the plan's weighted errors, not yet scaled to measured losses."""
        return sum(c.error(plan.ranks.get(c.layer.name)) * weights.get(c.layer.role, 1.0) for c in self.curves)

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

    def layer_reports(self, plan: CompressionPlan) -> list[LayerReport]:
        """Each layer's rank and its share of the scaled predicted loss."""
        total = self.predicted(plan, self.scaling.weights)
        loss = self.scaling.loss(total)
        reports = []
        for curve in self.curves:
            layer, rank = curve.layer, plan.ranks.get(curve.layer.name)
            own = curve.error(rank) * self.scaling.weights.get(layer.role, 1.0)
            reports.append(
                LayerReport(
                    name=layer.name,
                    role=layer.role,
                    block=layer.block,
                    shape=(layer.out_features, layer.in_features),
                    rank=rank,
                    parameters=curve.cost(rank, "params"),
                    dense_parameters=layer.parameters,
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
) -> Prepared:
    """Factorize every layer of a dense model; several processes share the work and all get every result.

    Raises:
        CalibrationError: the statistics belong to another model, another metric or fewer layers.
    """
    _check_statistics(statistics, model, config)
    layers = find_layers(model, config.target_modules, config.skip_modules)
    statistics.to(model.device).check_layers(layers)
    factorizations = _factorize_all(model, layers, statistics, config, progress, accelerator or new_accelerator())
    curves = []
    for layer in layers:
        errors = factorizations[layer.name].errors
        if config.metric != "fisher" and float(errors[0]) > 0:
            errors = errors / errors[0]  # by energy, as Azizi et al.: other metrics do not compare across layers
        positions = round(statistics.tokens[layer.input_name] / max(statistics.images, 1))
        curves.append(Curve(layer, errors, positions))
    return Prepared(model, layers, factorizations, curves, count_costs(model), statistics.scaling or CurveScaling())


def _factorize_all(
    model: PreTrainedModel,
    layers: list[LayerInfo],
    statistics: Statistics,
    config: CompressionConfig,
    progress: bool,
    accelerator: Accelerator,
) -> dict[str, Factorization]:
    """Dealt out over the processes by cost; each layer's factors then go from their owner to the others."""
    # Eigenvalues of the narrow side, and products with the whole weight.
    costs = [
        float(layer.full_rank**2 * (10 * layer.full_rank + layer.in_features + layer.out_features)) for layer in layers
    ]
    owners = dict(zip([layer.name for layer in layers], deal(costs, accelerator.num_processes), strict=True))
    mine = [layer for layer in layers if owners[layer.name] == accelerator.process_index]
    bar = tqdm(mine, desc="factorizing", unit=" layers", disable=not (progress and accelerator.is_main_process))
    results: dict[str, Factorization] = {}
    with local_work(accelerator, "Factorization"):
        for layer in bar:
            results[layer.name] = factorize(layer, linear_layer(model, layer.name), statistics, config)
    if accelerator.num_processes == 1:
        return results
    for layer in layers:
        centered = config.correct_bias and linear_layer(model, layer.name).bias is not None
        own = results.get(layer.name) or Factorization.empty(layer, centered, model.device)
        owner = owners[layer.name]
        up, down, errors = (from_owner(accelerator, tensor, owner) for tensor in (own.up, own.down, own.errors))
        mean = None if own.mean is None else from_owner(accelerator, own.mean, owner)
        results[layer.name] = Factorization(up, down, errors, mean)
    return {layer.name: results[layer.name] for layer in layers}


def _check_statistics(statistics: Statistics, model: PreTrainedModel, config: CompressionConfig) -> None:
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
