"""The order of work: calibrate, plan, build, report. No mathematics here."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from .building import approximated, build_model
from .calibration import calibrate, fingerprint, resolve_precision
from .companions import CompressionRecord
from .config import CompressionConfig
from .costs import Costs, count_costs
from .data import ImageSource, open_images
from .errors import BudgetError, CalibrationError, DataError
from .evaluation import divergence, is_classifier, model_outputs
from .factorization import Factorization, factorize
from .families import LayerInfo, find_layers, linear_layer
from .loading import load_dense_model, load_image_processor
from .planning import Budget, CompressionPlan, Curve, make_plan
from .report import CompressionReport, LayerReport
from .scaling import CurveScaling, fit_scaling
from .statistics import Statistics

BUDGET_CURVE_RATIOS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.45, 0.4, 0.35, 0.3, 0.25, 0.2)


@dataclass
class Prepared:
    """A dense model made ready for planning: everything that does not depend on the budget.

    Attributes:
        model: the dense model, unchanged.
        layers: what may be compressed.
        factorizations: by layer name.
        curves: the planner's view of them, in the order of `layers`.
        costs: of the dense model.
    """

    model: PreTrainedModel
    layers: list[LayerInfo]
    factorizations: dict[str, Factorization]
    curves: list[Curve]
    costs: Costs

    def predicted(self, plan: CompressionPlan, weights: Mapping[str, float]) -> float:
        """The sum of the plan's weighted errors, not yet scaled to measured losses."""
        return sum(c.error(plan.ranks.get(c.layer.name)) * weights.get(c.layer.role, 1.0) for c in self.curves)

    @property
    def lowest_keep_ratio(self) -> float:
        """Every layer at rank 1."""
        saved = sum(layer.parameters - layer.parameters_per_rank for layer in self.layers)
        return 1 - saved / self.costs.parameters


class ViTCompressor:
    """Compresses Vision Transformers of `transformers`.

    Args:
        config: the recipe; the default one at half the parameters if not given.
        image_processor: preprocesses raw images; by default the one beside the model.
        progress: whether to show progress bars.
        accelerator: chooses the device; by default a new one.

    Attributes:
        report: of the last compression, `None` before the first.
        statistics: of the last calibration; pass them to `compress` or `plan` to reach another budget in seconds.
        plan_: the last plan.

    Example:
        >>> compressor = ViTCompressor(CompressionConfig(keep_ratio=0.4))
        >>> small = compressor.compress("facebook/deit-base-patch16-224", "folder/of/images")
        >>> small.save_pretrained("deit-40")
    """

    def __init__(
        self,
        config: CompressionConfig | None = None,
        image_processor: Any = None,
        progress: bool = True,
        accelerator: Accelerator | None = None,
    ) -> None:
        self.config = config or CompressionConfig()
        self.image_processor = image_processor
        self.progress = progress
        self.accelerator = accelerator
        self.report: CompressionReport | None = None
        self.statistics: Statistics | None = None
        self.plan_: CompressionPlan | None = None
        self.seconds: dict[str, float] = {}
        self._prepared: tuple[int, CompressionConfig, str, Prepared] | None = None

    def compress(
        self,
        model: str | Path | PreTrainedModel,
        images: Any = None,
        *,
        validation: Any = None,
        statistics: Statistics | None = None,
        plan: CompressionPlan | None = None,
        checkpoint: str | Path | None = None,
    ) -> PreTrainedModel:
        """Compress a model; the dense one is left as it was.

        Args:
            model: Hub id, local folder or loaded model.
            images: calibration images, anything `data.open_images` takes; labels are not used. Not needed with
                `statistics`.
            validation: images to search `max_accuracy_drop` on; by default `validation_images` of `images`.
            statistics: of an earlier calibration of this model.
            plan: ranks to use instead of planning, for instance edited by hand.
            checkpoint: file that lets an interrupted calibration go on.

        Returns:
            the `Factored…` model, on the dense model's device and in its dtype. `save_pretrained` writes the image
            processor, the recipe, the plan and the report beside it.
        """
        dense = self.load(model)
        source = None if images is None else self._open(images, dense)
        held_out, source = self._hold_out(source, validation, dense)
        statistics = statistics or self.calibrate(dense, source, checkpoint=checkpoint)
        if plan is None:
            plan = self.plan(dense, statistics, validation=held_out)
        else:
            prepared = self.prepare(dense, statistics)
            plan.check(prepared.layers)
            plan = self._completed(plan, prepared, statistics)
        return self.build(dense, statistics, plan)

    def calibrate(
        self, model: str | Path | PreTrainedModel, images: Any, checkpoint: str | Path | None = None
    ) -> Statistics:
        """Collect the statistics of a model, and correct the predicted losses; see `calibration.calibrate`."""
        dense = self.load(model)
        if images is None:
            raise DataError("Calibration needs images: give some, or the statistics of an earlier calibration.")
        config = self.config
        source = self._open(images, dense).sample(config.num_images, config.seed)
        measuring = min(config.measuring_images, len(source) // 4) if config.correct_curves else 0
        layers = find_layers(dense, config.target_modules, config.skip_modules)
        order = range(len(source))
        moments = source.select(order[measuring:])
        self.statistics = calibrate(
            dense, layers, moments, config, self.image_processor, checkpoint, self.progress, self.accelerator
        )
        if measuring:
            with self._timed("measure"):
                self._measure_scaling(dense, self.statistics, source.select(order[:measuring]))
            self.statistics.timing["measure"] = self.seconds["measure"]
        if checkpoint is not None:
            self.statistics.save(checkpoint)
        return self.statistics

    def prepare(self, model: PreTrainedModel, statistics: Statistics) -> Prepared:
        """Factorize every layer once; budgets share the result.

        Raises:
            CalibrationError: the statistics belong to another model or another metric.
        """
        key = (id(model), self.config.with_budget(), fingerprint(model))
        if self._prepared is not None and self._prepared[:3] == key and self._prepared[3].model is model:
            return self._prepared[3]
        _check_statistics(statistics, model, self.config)
        layers = find_layers(model, self.config.target_modules, self.config.skip_modules)
        statistics.check_layers(layers)
        with self._timed("factorize"):
            factorizations = {
                layer.name: factorize(layer, linear_layer(model, layer.name), statistics, self.config)
                for layer in tqdm(layers, desc="factorizing", unit=" layers", disable=not self.progress)
            }
        curves = []
        for layer in layers:
            errors = factorizations[layer.name].errors
            if self.config.metric != "fisher" and float(errors[0]) > 0:
                errors = errors / errors[0]  # by energy, as Azizi et al.: other metrics do not compare across layers
            positions = round(statistics.tokens[layer.input_name] / max(statistics.images, 1))
            curves.append(Curve(layer, errors, positions))
        prepared = Prepared(model, layers, factorizations, curves, count_costs(model))
        self._prepared = (*key, prepared)
        return prepared

    def plan(
        self, model: str | Path | PreTrainedModel, statistics: Statistics, validation: Any = None
    ) -> CompressionPlan:
        """Spend the budget of the config; no images needed, except for `max_accuracy_drop`."""
        dense = self.load(model)
        prepared = self.prepare(dense, statistics)
        with self._timed("plan"):
            if self.config.budget == "max_accuracy_drop":
                if validation is None:
                    raise BudgetError("max_accuracy_drop is searched on images: give validation images (validation=…).")
                plan = self._search_accuracy(prepared, statistics, self._open(validation, dense))
            else:
                plan = self._plan(prepared, statistics, self._budget(prepared, self.config))
        self.plan_ = self._completed(plan, prepared, statistics)
        return self.plan_

    def build(
        self, model: str | Path | PreTrainedModel, statistics: Statistics, plan: CompressionPlan
    ) -> PreTrainedModel:
        """The factored model of a plan, with its report in `self.report`."""
        dense = self.load(model)
        prepared = self.prepare(dense, statistics)
        plan.check(prepared.layers)
        with self._timed("build"):
            small = build_model(dense, plan, prepared.factorizations)
        self.plan_ = plan
        self.report = self._report(prepared, statistics, plan, small)
        record = CompressionRecord(self.config, plan, self.report)
        small.companions = [record] if self.image_processor is None else [record, self.image_processor]  # type: ignore[assignment]
        return small

    def budget_curve(self, model: PreTrainedModel, statistics: Statistics) -> list[tuple[float, float]]:
        """(keep ratio, predicted loss) over the budgets this model can have, without building any of them."""
        prepared = self.prepare(model, statistics)
        curve = []
        for ratio in BUDGET_CURVE_RATIOS:
            try:
                plan = self._plan(
                    prepared, statistics, self._budget(prepared, self.config.with_budget(keep_ratio=ratio))
                )
            except BudgetError:
                continue
            completed = self._completed(plan, prepared, statistics)
            if completed.predicted_loss is not None:
                curve.append((ratio, completed.predicted_loss))
        return curve

    def load(self, model: str | Path | PreTrainedModel) -> PreTrainedModel:
        """The dense model, with `image_processor` set to the one beside it if none was given."""
        loaded = load_dense_model(model, self.accelerator)
        if self.image_processor is None:
            self.image_processor = load_image_processor(model)
        return loaded

    def _open(self, images: Any, model: PreTrainedModel) -> ImageSource:
        return open_images(images, on_bad_image=self.config.on_bad_image, label2id=dict(model.config.label2id))  # type: ignore[arg-type]

    def _hold_out(
        self, source: ImageSource | None, validation: Any, model: PreTrainedModel
    ) -> tuple[ImageSource | None, ImageSource | None]:
        """Validation images and what remains for calibration."""
        if self.config.budget != "max_accuracy_drop":
            return None, source
        if validation is not None or source is None:
            return None if validation is None else self._open(validation, model), source
        count = min(self.config.validation_images, len(source) // 2)
        shuffled = source.sample(None, self.config.seed)
        return shuffled.select(range(count)), shuffled.select(range(count, len(shuffled)))

    def _plan(
        self,
        prepared: Prepared,
        statistics: Statistics,
        budget: Budget,
        weights: Mapping[str, float] | None = None,
    ) -> CompressionPlan:
        if weights is None:
            weights = statistics.scaling.weights if statistics.scaling is not None else {}
        return make_plan(prepared.curves, budget, self.config.allocation, self.config.rank_multiple, weights)

    def _budget(self, prepared: Prepared, config: CompressionConfig) -> Budget:
        costs, curves = prepared.costs, prepared.curves
        if config.max_macs is not None:
            fixed = costs.macs - sum(c.cost(None, "macs") for c in curves)
            return Budget(config.max_macs, costs.macs, fixed, "macs")
        fixed = costs.parameters - sum(layer.parameters for layer in prepared.layers)
        if config.max_params is not None:
            return Budget(config.max_params, costs.parameters, fixed)
        assert config.keep_ratio is not None
        return Budget(int(config.keep_ratio * costs.parameters), costs.parameters, fixed, exact=True)

    def _completed(self, plan: CompressionPlan, prepared: Prepared, statistics: Statistics) -> CompressionPlan:
        """The plan with its keep ratio and predicted loss filled in."""
        scaling = statistics.scaling or CurveScaling()
        saved = sum(
            layer.parameters - plan.ranks[layer.name] * layer.parameters_per_rank
            for layer in prepared.layers
            if layer.name in plan.ranks
        )
        return CompressionPlan(
            plan.ranks,
            scaling.loss(prepared.predicted(plan, scaling.weights)),
            1 - saved / prepared.costs.parameters,
            {self.config.budget: getattr(self.config, self.config.budget)},
        )

    def _measure_scaling(self, model: PreTrainedModel, statistics: Statistics, images: ImageSource) -> None:
        """Set `statistics.scaling` from losses measured on `images`."""
        prepared = self.prepare(model, statistics)
        reference, batches, precision = self._reference(model, images)
        classes = is_classifier(model)

        def measure(weights: Mapping[str, float], keep_ratio: float) -> tuple[float, float]:
            budget = self._budget(prepared, self.config.with_budget(keep_ratio=keep_ratio))
            plan = self._plan(prepared, statistics, Budget(budget.limit, budget.original, budget.fixed), weights)
            with approximated(model, plan.ranks, prepared.factorizations):
                outputs, _ = model_outputs(model, batches, precision)
            bar.update()
            return prepared.predicted(plan, weights), float(divergence(reference, outputs, classes).mean())

        roles = list(dict.fromkeys(layer.role for layer in prepared.layers))
        smallest = sum(c.cost(c.ranks(self.config.rank_multiple)[0], "params") for c in prepared.curves)
        fixed = prepared.costs.parameters - sum(layer.parameters for layer in prepared.layers)
        lowest = (fixed + smallest + 1) / prepared.costs.parameters
        search = self.config.metric == "fisher" and self.config.allocation == "greedy"
        with tqdm(desc="measuring", unit=" models", disable=not self.progress) as bar:
            statistics.scaling = fit_scaling(measure, roles, search, lowest)

    def _reference(self, model: PreTrainedModel, images: ImageSource) -> tuple[Tensor, list, str]:
        """The dense model's outputs on `images`, the decoded batches, and the precision to measure in."""
        precision = resolve_precision(self.config.precision, model.device)
        batches = list(images.batches(self.image_processor, self.config.batch_size * 2))
        return model_outputs(model, batches, precision)[0], batches, precision

    def _search_accuracy(self, prepared: Prepared, statistics: Statistics, images: ImageSource) -> CompressionPlan:
        """The smallest plan whose accuracy on `images` is within `max_accuracy_drop`, by bisection."""
        model, allowed = prepared.model, self.config.max_accuracy_drop or 0.0
        if not is_classifier(model):
            raise BudgetError(
                f"max_accuracy_drop needs a classifier, and {type(model).__name__} has no classes. Use keep_ratio."
            )
        reference, batches, precision = self._reference(model, images)
        dense_classes = reference.argmax(-1)
        labels = [b.labels for b in batches]
        truth = dense_classes if any(x is None for x in labels) else torch.cat(labels)
        dense_accuracy = (dense_classes == truth).double().mean()
        low, high, best = prepared.lowest_keep_ratio, 1.0, CompressionPlan({})
        with tqdm(desc="searching", unit=" models", disable=not self.progress) as bar:
            while high - low > 0.01:
                ratio = (low + high) / 2
                budget = self._budget(prepared, self.config.with_budget(keep_ratio=ratio))
                try:
                    plan = self._plan(prepared, statistics, Budget(budget.limit, budget.original, budget.fixed))
                except BudgetError:
                    low = ratio
                    continue
                with approximated(model, plan.ranks, prepared.factorizations):
                    outputs, _ = model_outputs(model, batches, precision)
                drop = float(dense_accuracy - (outputs.argmax(-1) == truth).double().mean())
                bar.set_postfix({"keep ratio": f"{ratio:.3f}", "drop": f"{drop:.4f}"})
                bar.update()
                if drop <= allowed:
                    high, best = ratio, plan
                else:
                    low = ratio
        return best

    def _report(
        self, prepared: Prepared, statistics: Statistics, plan: CompressionPlan, small: PreTrainedModel
    ) -> CompressionReport:
        scaling = statistics.scaling or CurveScaling()
        return CompressionReport(
            model=type(small).__name__,
            dense=prepared.costs,
            compressed=count_costs(small),
            layers=layer_reports(prepared, plan, scaling),
            predicted_loss=plan.predicted_loss,
            calibration_images=statistics.images,
            bad_images=statistics.bad_images,
            seconds={**statistics.timing, **self.seconds},
            settings=self.config.to_dict(),
            budget_curve=self.budget_curve(prepared.model, statistics),
        )

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = time.perf_counter() - start


def layer_reports(prepared: Prepared, plan: CompressionPlan, scaling: CurveScaling) -> list[LayerReport]:
    """Each layer's rank and its share of the scaled predicted loss."""
    total = prepared.predicted(plan, scaling.weights)
    loss = scaling.loss(total)
    reports = []
    for curve in prepared.curves:
        layer, rank = curve.layer, plan.ranks.get(curve.layer.name)
        own = curve.error(rank) * scaling.weights.get(layer.role, 1.0)
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


def _check_statistics(statistics: Statistics, model: PreTrainedModel, config: CompressionConfig) -> None:
    if statistics.fingerprint != fingerprint(model):
        raise CalibrationError(
            f"The statistics were collected from another model than this {type(model).__name__} (or from other "
            "weights of it). Calibrate this one."
        )
    if statistics.settings.get("metric") != config.metric:
        raise CalibrationError(
            f"The statistics were collected for metric={statistics.settings.get('metric')!r} and the config asks for "
            f"{config.metric!r}. Calibrate again, or use that metric."
        )


__all__: Sequence[str] = ["Prepared", "ViTCompressor", "layer_reports"]
