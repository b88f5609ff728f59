"""The order of work: calibrate, plan, build, compensate, report. No mathematics here."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from .architectures.layers import check_class, find_layers
from .compensation.compensator import Compensator
from .config import CompressionConfig
from .errors import BudgetError, DataError
from .evaluation.costs import count_costs
from .evaluation.reference import Reference, check_classes
from .images.images import ImageSource
from .images.sources import open_images
from .importance.gates import gated_layers
from .importance.learning import gate_checkpoint, learn_gates
from .importance.report import GateReport
from .model.loading import load_dense_model, load_image_processor, load_processor
from .model.towers import check_takes_images, part_of, put_back
from .planning.building import build_model
from .planning.plan import CompressionPlan
from .planning.planner import Prepared, prepare_model
from .planning.search import measure_scaling, search_accuracy
from .planning.selection import selection_method
from .publish.record import CompressionRecord
from .report.provenance import Environment, Origin
from .report.report import CompressionReport
from .runtime.distributed import local_work, new_accelerator
from .runtime.weights import model_digest
from .statistics.calibration import calibrate
from .statistics.loss_correction import CurveScaling
from .statistics.statistics import Statistics

TRIAL_SHARE = 1 / 8
"""How much of the compensation each candidate of a search gets."""


class ViTCompressor:
    """Compresses Vision Transformers of `transformers`.

    Args:
        config: the recipe; the default one at half the parameters if not given.
        image_processor: preprocesses raw images; by default the one beside the model.
        progress: whether to show progress bars.
        accelerator: chooses the device and, under `accelerate launch`, shares the work with the other processes,
            which all end with the same model; by default a new one.
        importance: for `criterion="gates"`, importance scores by name of the reading layer: `(neurons,)` for fc2,
            `(heads,)` for the attention output projection; by default they are learned from the calibration images, see
            `importance.learning`.

    Attributes:
        importance: the scores that are used.
        report: of the last compression, `None` before the first.
        checkpoints: files that compensation keeps so that it can go on; of no use once its result is saved.
        statistics: of the last calibration; pass them to `compress` or `plan` to reach another budget in seconds.

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
        importance: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.config = config or CompressionConfig()
        self.image_processor = image_processor
        self.importance = importance
        self._own_importance = importance is not None
        self._importance_of: PreTrainedModel | None = None
        self._gate_report: GateReport | None = None
        self._calibration_dataset: str | None = None
        self._own_processor = image_processor is not None
        self._processor_of: PreTrainedModel | None = None
        self.accelerator = accelerator or new_accelerator()
        self.progress = progress and self.accelerator.is_main_process
        self.checkpoints: list[Path] = []
        self.report: CompressionReport | None = None
        self.statistics: Statistics | None = None
        self.seconds: dict[str, float] = {}
        self._prepared: tuple[PreTrainedModel, Statistics, CompressionConfig, Prepared] | None = None
        self._whole: tuple[PreTrainedModel, str, PreTrainedModel] | None = None

    def compress(
        self,
        model: str | Path | PreTrainedModel,
        images: Any = None,
        *,
        validation: Any = None,
        statistics: Statistics | None = None,
        plan: CompressionPlan | None = None,
        checkpoint: str | Path | None = None,
        target: str | None = None,
    ) -> PreTrainedModel:
        """Compress a model; the dense one is left as it was.

        Args:
            model: Hub id, local folder or loaded model.
            images: to calibrate and to compensate on, anything `sources.open_images` takes; labels are not used except
                for `label_weight`. Not needed with `statistics`, unless there is compensation.
            validation: images to search `max_accuracy_drop` on; by default `validation_images` of `images`.
            statistics: of an earlier calibration of this model.
            plan: shapes to use instead of planning, for instance edited by hand.
            checkpoint: file that lets an interrupted calibration go on; those of an interrupted compensation are
                named after it, see `checkpoints`.
            target: the config's `target`, for this and all later calls: the model inside `model` to compress, such as
                `"vision_model"` of a CLIP model. Budget and report are of that part.

        Returns:
            the `Factored…` model, with a `target` the whole one, on the dense model's device and in its dtype.
            `save_pretrained` writes the image processor, the recipe, the plan and the report beside it.
        """
        self.seconds, self.checkpoints = {}, []
        if target is not None:
            self.config = replace(self.config, target=target)
        with local_work(self.accelerator, "Opening model and images"):
            dense = self.load(model)
            source = None if images is None else self.open_images(images, dense, limit=self._images_wanted())
            if plan is None and self.config.budget == "max_accuracy_drop":
                check_classes(dense)  # before all the work, and not when the plan is made
            held_out, source = self._hold_out(source, validation, dense)
        if self.config.compensation != "none" and source is None:
            raise DataError(
                f"compensation={self.config.compensation!r} learns from images: give some (images=…, --data), or use "
                'compensation="none".'
            )
        if statistics is None:
            statistics = self.calibrate(dense, source, checkpoint=checkpoint)
        elif self.config.criterion == "gates":
            chosen = None if source is None else source.sample(self.config.num_images, self.config.seed)
            self._learn_gates(dense, chosen, checkpoint)
        if plan is None:
            plan = self.plan(dense, statistics, held_out, source, checkpoint)
        else:
            prepared = self.prepare(dense, statistics)
            plan.check(prepared.parts)
            plan = prepared.completed(plan, self.config)
        small = self.build(dense, statistics, plan)
        if self.config.compensation != "none":
            self.compensate(small, dense, statistics, plan, source, checkpoint)
        return self._back_in_place(small)

    def calibrate(
        self, model: str | Path | PreTrainedModel, images: Any, checkpoint: str | Path | None = None
    ) -> Statistics:
        """Collect the statistics of a model, and correct the predicted losses; see `calibration.calibrate`."""
        config = self.config
        with local_work(self.accelerator, "Opening model and images"):
            dense = self.load(model)
            if images is None:
                raise DataError("Calibration needs images: give some, or the statistics of an earlier calibration.")
            source = self.open_images(images, dense, config.num_images).sample(config.num_images, config.seed)
        self._calibration_dataset = source.hub_id
        layers = find_layers(dense, config.target_modules, config.skip_modules)
        self.statistics = calibrate(
            dense, layers, source, config, self.image_processor, checkpoint, self.progress, self.accelerator
        )
        self._learn_gates(dense, source, checkpoint)
        method = selection_method(config, self.importance)
        if config.measuring_images and method not in self.statistics.scalings:
            with self._timed("measure"):
                prepared = self.prepare(dense, self.statistics)
                images = source.select(range(min(config.measuring_images, len(source))))
                reference = Reference.of(dense, images, self.image_processor, config, self.accelerator)
                scaling = measure_scaling(prepared, reference, config, self.progress)
                self.statistics.scalings[method] = scaling
            self.statistics.timing["measure"] = self.seconds["measure"]
        if checkpoint is not None:
            with local_work(self.accelerator, "Writing the checkpoint"):
                if self.accelerator.is_main_process:
                    self.statistics.save(checkpoint)
        return self.statistics

    def _learn_gates(
        self, dense: PreTrainedModel, images: ImageSource | None, checkpoint: str | Path | None = None
    ) -> None:
        """Learn `importance` for this model, where the config wants scores and there are none of it yet."""
        config = self.config
        wanted = config.criterion == "gates" and gated_layers(dense, config)
        if not wanted or self._own_importance or self._importance_of is dense:
            return
        if images is None:
            raise DataError(
                'criterion="gates" learns scores from images: give some (images=…, --data), or scores that were '
                "learned before (importance=…)."
            )
        kept = gate_checkpoint(checkpoint, dense, images, config, self.accelerator)
        self.checkpoints += [] if kept.path is None else [kept.path]
        with self._timed("gates"):
            self.importance, self._gate_report = learn_gates(
                dense, images, config, self.image_processor, kept, self.progress, self.accelerator
            )
        self._importance_of = dense

    def prepare(self, model: PreTrainedModel, statistics: Statistics) -> Prepared:
        """Factorize every layer; budgets share the result, which is kept for the last model and statistics."""
        # The budget does not matter here.
        config = self.config.with_budget(keep_ratio=1.0)
        kept, known = self._prepared, (config, selection_method(config, self.importance))
        if kept is None or kept[0] is not model or kept[1] is not statistics or (kept[2], kept[3].method) != known:
            with self._timed("factorize"):
                prepared = prepare_model(
                    model, statistics, self.config, self.progress, self.accelerator, self.importance
                )
            self._prepared = kept = (model, statistics, config, prepared)
        prepared = kept[3]
        prior = CurveScaling.prior(prepared.roles if self.config.metric == "fisher" else ())
        prepared.scaling = statistics.scalings.get(prepared.method, prior)
        return prepared

    def plan(
        self,
        model: str | Path | PreTrainedModel,
        statistics: Statistics,
        validation: Any = None,
        images: Any = None,
        checkpoint: str | Path | None = None,
    ) -> CompressionPlan:
        """Spend the budget of the config.

        Args:
            validation: images to search `max_accuracy_drop` on; other budgets need none.
            images: to compensate the candidates of that search on, where the config compensates: each for an eighth
                of the time that the chosen one will get.
            checkpoint: as in `compress`, so that no candidate is compensated twice.
        """
        dense = self.load(model)
        if self.config.budget == "max_accuracy_drop":
            check_classes(dense)
        prepared = self.prepare(dense, statistics)
        with self._timed("plan"):
            if self.config.budget != "max_accuracy_drop":
                return prepared.plan(self.config)
            if validation is None:
                raise BudgetError("max_accuracy_drop is searched on images: give validation images (validation=…).")
            source = self.open_images(validation, dense)
            reference = Reference.of(dense, source, self.image_processor, self.config, self.accelerator)
            plan = search_accuracy(prepared, reference, self.config, self.progress)
            if self.config.compensation == "none":
                return plan
            if images is None:
                raise BudgetError(
                    "max_accuracy_drop takes compensation into account and needs the images to compensate on "
                    '(images=…, --data), or compensation="none".'
                )
            compensator = self._compensator(prepared, statistics, self.open_images(images, dense), checkpoint)
            kept = compensator.checkpoint_for("search", source.name, len(source))
            drops: dict[str, float] = kept.load() or {}

            def drop_of(candidate: CompressionPlan) -> float:
                key = json.dumps(candidate.layers, sort_keys=True)
                if key not in drops:
                    student = build_model(dense, candidate, prepared.parts, self.accelerator)
                    compensator.run(student, candidate, share=TRIAL_SHARE)
                    drops[key] = reference.drop_of(student)
                    kept.save(drops)
                return drops[key]

            self.checkpoints += compensator.checkpoints
            return search_accuracy(prepared, reference, self.config, self.progress, drop_of, plan)

    def build(
        self, model: str | Path | PreTrainedModel, statistics: Statistics, plan: CompressionPlan
    ) -> PreTrainedModel:
        """The factored model of a plan, with its report in `self.report`."""
        dense = self.load(model)
        prepared = self.prepare(dense, statistics)
        plan.check(prepared.parts)
        with self._timed("build"):
            small = build_model(dense, plan, prepared.parts, self.accelerator)
        self.report = self._report(prepared, statistics, plan, small)
        record = CompressionRecord(self.config, plan, self.report)
        small.companions = [record] if self.image_processor is None else [record, self.image_processor]  # type: ignore[assignment]
        return small

    def compensate(
        self,
        small: PreTrainedModel,
        model: str | Path | PreTrainedModel,
        statistics: Statistics,
        plan: CompressionPlan,
        images: Any,
        checkpoint: str | Path | None = None,
    ) -> None:
        """Win back accuracy of `small`, the model that `build` made of `plan`, in place; see `compensation`."""
        dense = self.load(model)
        prepared = self.prepare(dense, statistics)
        with self._timed("compensate"):
            compensator = self._compensator(prepared, statistics, self.open_images(images, dense), checkpoint)
            done = compensator.run(small, plan)
        self.checkpoints += compensator.checkpoints
        if self.report is not None:
            self.report.compensation = done
            self.report.weights = model_digest(small)
            self.report.seconds["compensate"] = self.seconds["compensate"]

    def _compensator(
        self, prepared: Prepared, statistics: Statistics, images: ImageSource, checkpoint: str | Path | None = None
    ) -> Compensator:
        images = images.sample(None, self.config.seed)  # as calibration sees them
        return Compensator(
            prepared, statistics, images, self.config, self.image_processor, checkpoint, self.progress, self.accelerator
        )

    def _images_wanted(self) -> int | None:
        """How many images to open at most."""
        config = self.config
        wanted = config.num_images
        if config.compensation != "none":
            more = config.compensation_images
            wanted = None if wanted is None or more is None else max(wanted, more + config.held_out_images)
        return None if wanted is None else wanted + config.validation_images

    def load(self, model: str | Path | PreTrainedModel) -> PreTrainedModel:
        """The dense model to compress: `model`, or the `target` of the config in it.

        `image_processor` is then the one beside it, unless one was given.
        """
        if self._whole is not None and model is self._whole[2]:
            return self._whole[2]
        loaded = load_dense_model(model, self.accelerator)
        if not self._own_processor and self._processor_of is not loaded:
            self.image_processor, self._processor_of = load_image_processor(loaded), loaded
        if self.config.target is None:
            check_takes_images(loaded)
            self._whole = None
            return loaded
        name, part = part_of(loaded, self.config.target)
        check_class(loaded)
        self._whole = loaded, name, part
        return part

    def _back_in_place(self, small: PreTrainedModel) -> PreTrainedModel:
        """The whole model with `small` as its target; itself where there is none."""
        if self._whole is None:
            return small
        whole = put_back(self._whole[0], self._whole[1], small)
        processor = load_processor(self._whole[0])
        if processor is not None:
            cast(Any, small).companions.append(processor)
        whole.companions = small.companions
        if self.report is not None:
            self.report.model, self.report.weights = type(whole).__name__, model_digest(whole)
        return whole

    def open_images(self, images: Any, model: PreTrainedModel, limit: int | None = None) -> ImageSource:
        """An `ImageSource` with labels in the model's terms; see `sources.open_images`."""
        label2id = model.config.label2id
        return open_images(images, on_bad_image=self.config.on_bad_image, label2id=label2id, limit=limit)

    def _hold_out(
        self, source: ImageSource | None, validation: Any, model: PreTrainedModel
    ) -> tuple[ImageSource | None, ImageSource | None]:
        """Validation images and what remains for calibration."""
        if self.config.budget != "max_accuracy_drop":
            return None, source
        if validation is not None or source is None:
            return None if validation is None else self.open_images(validation, model), source
        count = min(self.config.validation_images, len(source) // 2)
        shuffled = source.sample(None, self.config.seed)
        return shuffled.select(range(count)), shuffled.select(range(count, len(shuffled)))

    def _report(
        self, prepared: Prepared, statistics: Statistics, plan: CompressionPlan, small: PreTrainedModel
    ) -> CompressionReport:
        return CompressionReport(
            model=type(small).__name__,
            dense=prepared.costs,
            compressed=count_costs(small, statistics.image_shape),
            parts=prepared.part_reports(plan),
            predicted_loss=plan.predicted_loss,
            calibration_images=statistics.images,
            bad_images=statistics.bad_images,
            seconds={**statistics.timing, **self.seconds},
            settings=self.config.to_dict(),
            budget_curve=prepared.budget_curve(self.config),
            gates=self._gate_report if self._importance_of is prepared.model else None,
            origin=Origin.of(prepared.model if self._whole is None else self._whole[0]),
            calibration_dataset=self._calibration_dataset,
            environment=Environment.here(self.accelerator),
            weights=model_digest(small),
        )

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = time.perf_counter() - start
