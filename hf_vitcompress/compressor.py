"""The order of work: calibrate, plan, build, compensate, report. No mathematics here."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from .architectures.layers import find_layers
from .architectures.subject import Subject
from .compensation.compensator import Compensator
from .compensation.trials import plan_for_accuracy
from .config import CompressionConfig
from .errors import DataError
from .evaluation.labels import checked_labels
from .evaluation.reference import Reference
from .images.images import ImageSource
from .images.options import VALIDATION, DataOptions
from .images.shares import calibration_shares, validation_shares
from .images.sources import open_images
from .importance.gates import gated_layers
from .importance.learning import gates_for
from .importance.report import LearnedImportance
from .model.stored import round_weights
from .model.subject import open_subject
from .model.towers import put_back
from .planning.building import build_model
from .planning.foresight import check_arguments, check_feasible, check_search
from .planning.latency import plan_for_latency
from .planning.plan import CompressionPlan
from .planning.planner import Planner, make_planner
from .planning.profiles import profile_of
from .planning.search import is_measured, measure_losses
from .planning.selection import selection_method
from .profiling.profile import LatencyProfile
from .publish.record import CompressionRecord
from .publish.saved import accompany
from .report.provenance import Environment, Origin
from .report.report import CompressionReport
from .runtime.distributed import local_work, new_accelerator
from .runtime.identity import identity_digest
from .runtime.random_state import independent_of_caller
from .runtime.run import Run
from .runtime.weights import model_digest
from .statistics.calibration import calibrate, images_to_learn
from .statistics.statistics import Statistics

Model = str | Path | PreTrainedModel | Subject
"""Hub id, local folder, loaded model, or what `ViTCompressor.open` returned."""


class ViTCompressor:
    """Compresses Vision Transformers of `transformers`.

    `compress` does everything. The stages are there one by one, too: `calibrate`, `plan`, `build` and `compensate`.

    Args:
        config: the recipe; the default one at half the parameters if not given.
        image_processor: turns raw images into tensors; by default the one beside the model.
        progress: whether to show progress bars.
        accelerator: chooses the device and, under `accelerate launch`, shares the work with the other processes,
            which all end with the same model; by default a new one.
        importance: importance scores by name of the reading layer: `(neurons,)` for fc2, `(heads,)` for the attention
            output projection. The criterion `"gates"` uses them; by default it learns them from the calibration images.
        profile: latency profile of the device, for budgets of time; by default it is measured.

    Attributes:
        run: the recipe, the processes and the progress bars, as every stage gets them.
        importance: the scores that were used last.
        profile: the latency profile that was used last.
        report: of the last compression, `None` before the first.
        checkpoints: files that let an interrupted compensation go on; of no use once its result is saved.
        statistics: of the last calibration; pass them to `compress` or `plan` to reach another budget in seconds.
        seconds: by stage, of the last compression, including the time before an interruption.

    Examples:
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
        profile: LatencyProfile | None = None,
    ) -> None:
        check_arguments(config=config, accelerator=accelerator, image_processor=image_processor)
        check_arguments(importance=importance, profile=profile)
        self.run = Run(config or CompressionConfig(), accelerator or new_accelerator(), progress)
        self.image_processor = image_processor
        self.importance, self.profile = importance, profile
        self.report: CompressionReport | None = None
        self.statistics: Statistics | None = None
        self.checkpoints: list[Path] = []
        self.seconds: dict[str, float] = {}
        self._given_importance, self._given_profile = importance, profile
        self._learned: dict[str, LearnedImportance] = {}  # by identity of the statistics they were learned with

    @property
    def config(self) -> CompressionConfig:
        """The recipe."""
        return self.run.config

    @property
    def accelerator(self) -> Accelerator:
        """The device, and the processes that share the work."""
        return self.run.accelerator

    @independent_of_caller()
    def compress(
        self,
        model: Model,
        images: Any = None,
        *,
        validation: Any = None,
        statistics: Statistics | None = None,
        plan: CompressionPlan | None = None,
        checkpoint: str | Path | None = None,
    ) -> PreTrainedModel:
        """Compress a model; the dense one is left as it was.

        Args:
            model: Hub id, local folder or loaded model. With a `target` in the config, budget and report are of that
                part of it.
            images: to calibrate and to compensate on, anything `open_images` takes; labels are not used except for
                `label_weight`. Not needed with `statistics`, unless there is compensation.
            validation: images to search `max_accuracy_drop` on; by default `validation_images` of `images`.
            statistics: of an earlier calibration of this model.
            plan: shapes to use instead of planning, for instance edited by hand; the config has the budget that it was
                planned for, or none.
            checkpoint: file that lets an interrupted calibration go on; those of an interrupted compensation are
                named after it, see `checkpoints`.

        Returns:
            the `Factored…` model, with a `target` the whole one, on the dense model's device and in its dtype. Where
            the files of `model` are of a narrower type, the weights are rounded to that and stored in it.
            `save_pretrained` writes the image processor, the recipe, the plan and the report beside it.
        """
        self.seconds, self.checkpoints = {}, []
        with local_work(self.accelerator, "Opening model and images"):
            check_arguments(statistics=statistics, plan=plan, checkpoint=checkpoint)
            # Images before the model: what is wrong with them is known in no time.
            source = None if images is None else self.open_images(images, limit=self.run.images_wanted)
            searched = self.config.searches_accuracy
            held_out = self.open_images(validation, options=VALIDATION) if searched and validation is not None else None
            subject = self.open(model)
            source, held_out = (own and self.open_images(own, subject) for own in (source, held_out))
            if searched and held_out is None and source is not None:
                held_out, source = validation_shares(source, self.config)
            check_feasible(subject, self.config, plan, source, held_out, self._given_importance, self._given_profile)
        if statistics is None:
            statistics = self.calibrate(subject, source, checkpoint=checkpoint)
        else:
            chosen = None if source is None else calibration_shares(source, self.config)[0]
            self._choose_importance(subject, chosen, statistics, checkpoint)
        planner = self.planner(subject, statistics)
        given = None if plan is None else planner.completed(plan, self.config, given=True)
        plan = given or self._plan(planner, held_out, source, checkpoint)
        small = self._build(planner, plan)
        if self.config.compensation != "none":
            self._compensate(small, planner, plan, source, checkpoint)
        return self._back_in_place(small, subject)

    # ---- stage by stage

    def open(self, model: Model) -> Subject:
        """The dense model to compress, with its image processor: `model`, or the `target` of the config in it."""
        if isinstance(model, Subject):
            return model
        return open_subject(model, self.config.target, self.image_processor, self.accelerator)

    def open_images(
        self, images: Any, model: Model | None = None, limit: int | None = None, options: DataOptions | None = None
    ) -> ImageSource:
        """Images of any kind, with labels in the model's terms if there is one; see `images.open_images`."""
        labels = limit is None or self.config.uses_labels  # a limit is for images to compress with
        source = open_images(images, None, self.config.on_bad_image, None, limit, options, labels)
        return source if model is None else checked_labels(source, self.open(model).model, self.config)

    @independent_of_caller()
    def calibrate(self, model: Model, images: Any, checkpoint: str | Path | None = None) -> Statistics:
        """Collect the statistics of a model, and correct the predicted losses; see `statistics.calibration`."""
        config = self.config
        with local_work(self.accelerator, "Opening model and images"):
            check_arguments(checkpoint=checkpoint)
            if images is None:
                raise DataError("Calibration needs images: give some, or the statistics of an earlier calibration.")
            source, subject = self.open_images(images, limit=config.num_images), self.open(model)
            source = images_to_learn(subject.model, self.open_images(source, subject), config)
            source, measured = calibration_shares(source, config)
        layers = find_layers(subject.model, config.target_modules, config.skip_modules)
        statistics = self.statistics = calibrate(subject, layers, source, self.run, checkpoint)
        self._choose_importance(subject, source, statistics, checkpoint)
        method = selection_method(config, self.importance)
        if len(measured) and not is_measured(subject, statistics, method, config):
            planner = self.planner(subject, statistics)
            with self._timed("measure"):
                measure_losses(planner, Reference.of(subject, measured, self.run), self.run)
            statistics.timing["measure"] = self.seconds["measure"]
        if checkpoint is not None:
            with local_work(self.accelerator, "Writing the checkpoint"):
                if self.run.is_main:
                    statistics.save(checkpoint)
        return statistics

    def planner(self, model: Model, statistics: Statistics) -> Planner:
        """Predict the errors of every group of layers; budgets share the result."""
        check_arguments(needed=True, statistics=statistics)
        subject = self.open(model)
        with self._timed("factorize"):
            return make_planner(subject, statistics, self.run, self.importance)

    @independent_of_caller()
    def plan(
        self,
        model: Model,
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
        return self._plan(self.planner(model, statistics), validation, images, checkpoint)

    @independent_of_caller()
    def build(self, model: Model, statistics: Statistics, plan: CompressionPlan) -> PreTrainedModel:
        """The factored model of a plan, with its report in `report`."""
        check_arguments(needed=True, plan=plan)
        planner = self.planner(model, statistics)
        plan.check(planner.groups, planner.subject)
        return self._build(planner, plan)

    @independent_of_caller()
    def compensate(
        self,
        small: PreTrainedModel,
        model: Model,
        statistics: Statistics,
        plan: CompressionPlan,
        images: Any,
        checkpoint: str | Path | None = None,
    ) -> None:
        """Win back accuracy of `small`, the model that `build` made of `plan`, in place; see `compensation`."""
        self._compensate(small, self.planner(model, statistics), plan, images, checkpoint)

    # ---- their parts

    def _choose_importance(
        self, subject: Subject, images: ImageSource | None, statistics: Statistics, checkpoint: str | Path | None
    ) -> None:
        """Set `importance` to the scores for this model: those that were given, or learned ones."""
        config, self.importance = self.config, self._given_importance
        if config.criterion != "gates" or self._given_importance is not None or not gated_layers(subject.model, config):
            return
        if (key := identity_digest(statistics.identity)) not in self._learned:
            with self._timed("gates"):
                self._learned[key], kept = gates_for(subject, images, self.run, checkpoint)
            self.seconds["gates"] += kept.spent
            self.checkpoints += [] if kept.path is None else [kept.path]
        self.importance = self._learned[key].scores

    def _plan(self, planner: Planner, validation: Any, images: Any, checkpoint: str | Path | None) -> CompressionPlan:
        with self._timed("plan"):
            if self.config.times:
                earlier = None if self._given_profile else self.profile
                self.profile = profile_of(planner.subject, self.run, self._given_profile, planner.image_shape, earlier)
                return plan_for_latency(planner, self.run, self.profile)
            if not self.config.searches_accuracy:
                return planner.plan(self.config)
            check_search(planner.subject.model, self.config, validation is not None, images is not None)
            compensates = self.config.compensation != "none"
            compensator = self._compensator(planner, images, checkpoint) if compensates else None
            source = self.open_images(validation, planner.subject, options=VALIDATION)
            plan = plan_for_accuracy(planner, source, self.run, compensator)
        if compensator is not None:
            self.checkpoints += compensator.checkpoints
            self.seconds["plan"] += compensator.spent
        return plan

    def _build(self, planner: Planner, plan: CompressionPlan) -> PreTrainedModel:
        with self._timed("build"):
            small = build_model(planner.subject.model, plan, planner.groups, self.accelerator)
        learned = self._learned.get(identity_digest(planner.statistics.identity))
        gates = learned.report if learned is not None and learned.scores is self.importance else None
        self.report = CompressionReport.of(
            planner,
            plan,
            small,
            self.config,
            seconds={**planner.statistics.timing, **self.seconds},
            gates=gates,
            origin=Origin.of(planner.subject.whole),
            environment=Environment.here(self.accelerator, planner.subject.model),
        )
        record = CompressionRecord(self.config, plan, self.report)
        accompany(small, planner.subject, record, self.image_processor)
        return small

    def _compensate(
        self,
        small: PreTrainedModel,
        planner: Planner,
        plan: CompressionPlan,
        images: Any,
        checkpoint: str | Path | None,
    ) -> None:
        with self._timed("compensate"):
            compensator = self._compensator(planner, images, checkpoint)
            done = compensator.run(small, plan)
        self.checkpoints += compensator.checkpoints
        self.seconds["compensate"] += compensator.spent
        if self.report is not None:
            self.report.compensation, self.report.weights = done, model_digest(small)
            self.report.seconds["compensate"] = self.seconds["compensate"]

    def _compensator(self, planner: Planner, images: Any, checkpoint: str | Path | None) -> Compensator:
        source = self.open_images(images, planner.subject, self.run.images_wanted)
        return Compensator(planner, source.sample(None, self.config.seed), self.run, checkpoint)  # as calibration does

    def _back_in_place(self, small: PreTrainedModel, subject: Subject) -> PreTrainedModel:
        """The whole model with `small` as its target, itself where there is none; its weights as they are stored."""
        whole = put_back(subject, small) if subject.name else small
        round_weights(whole, subject.stored)
        if self.report is not None:
            self.report.model, self.report.weights = type(whole).__name__, model_digest(whole)
        return whole

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        """Add the seconds of the block to those of the stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start
