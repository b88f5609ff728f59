"""One pass over the images: forward, a few backward passes, and the moments of what flows through each layer.

The loss whose gradients are collected is defined in one place, `outputs`. Activations are never cached: a batch's
moments are added up as soon as the batch has passed.
"""

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from ..architectures.inputs import subject_inputs
from ..architectures.layers import LayerInfo, feature_pairs
from ..architectures.outputs import read_outputs
from ..architectures.running import evaluation_mode, passing
from ..architectures.subject import Subject
from ..architectures.values import joint_pairs, value_pairs
from ..config import CompressionConfig
from ..errors import CalibrationError, CalibrationWarning, DataError, DataWarning
from ..images.digest import facts_of_images
from ..images.images import Batch, ImageSource
from ..metrics import METRICS
from ..runtime.devices import autocast, resolve_precision
from ..runtime.distributed import from_main, gather_objects, local_work, own_share
from ..runtime.identity import PACKAGE, SETTINGS, differences
from ..runtime.run import Run
from .accumulators import Sampler
from .fisher_probes import probe_losses, takes_targets, task_loss
from .identity import IMAGES, identity_of
from .moments import GradientMoment, Moment
from .observer import Observer
from .statistics import Statistics
from .variety import Counts, Variety, check_variety

CHECKPOINT_SECONDS = 30.0

# Fields of the config that change the statistics; a checkpoint made under others is not continued.
_RELEVANT = (
    "metric",
    "calibration_loss",
    "token_weighting",
    "fisher_probes",
    "batch_size",
    "precision",
    "seed",
    "on_bad_image",
)


def calibrate(
    subject: Subject, layers: Sequence[LayerInfo], images: ImageSource, run: Run, checkpoint: str | Path | None = None
) -> Statistics:
    """Collect the statistics of `layers` over `images`.

    Args:
        subject: the dense model; it is left as it was, on its device, in its mode.
        layers: what to observe, from `layers.find_layers`.
        images: all of them are used, in their order.
        run: the config's `metric` decides which moments are needed.
        checkpoint: a file that is written every half minute and continued from when it exists; a calibration that
            was killed ends with the same statistics as one that was not.

    Raises:
        CalibrationError: an activation or a gradient is not finite, all gradients are 0, all images are alike, the
            checkpoint belongs to something else, or the model has no loss of its own and `calibration_loss` asks for
            it.
        DataError: that loss needs targets and the images have none.
        DistributedError: another process failed or has ended; what all had seen at the last checkpoint is in it.
    """
    start = time.perf_counter()
    model, config, accelerator = subject.model, run.config, run.accelerator
    images = images_to_learn(model, images, config)
    statistics = _begin(subject, layers, images, run, checkpoint)
    start -= statistics.timing.get("calibrate", 0.0)  # before an interruption
    done = -(-(statistics.images + statistics.bad_images) // config.batch_size)
    sampler = Sampler(len(images), config.seed)
    observer = Observer(statistics, layers, sampler, config.token_weighting)
    passes = _Passes(subject, config, statistics.settings["precision"], observer)
    shapes: dict[int, list[int]] = {}
    variety = Variety(images, Counts(**statistics.settings.get("variety", {})))
    bar = run.bar("calibrating", "images", total=len(images), initial=statistics.images + statistics.bad_images)
    with bar, evaluation_mode(model), observer.attached(model):

        def observe(share: range) -> None:
            bad_before = len(images.tally.bad)
            for batch in images.batches(subject.processor, config.batch_size, share):
                if not shapes:
                    shapes[batch.index] = list(batch.pixel_values.shape[1:])
                variety.look(batch, config.batch_size)
                with passing(model, batch.pixel_values):
                    passes.observe(batch)
                statistics.images += len(batch.pixel_values)
                bar.update(min(len(batch.pixel_values) * accelerator.num_processes, len(images) - round(bar.n)))
            statistics.bad_images += len(images.tally.bad) - bad_before
            _check_finite(observer)

        count = images.batch_count(config.batch_size)
        for _ in _rounds(statistics, observe, range(done, count), accelerator, endless=checkpoint is None):
            bar.update(statistics.images + statistics.bad_images - bar.n)
            _record_shape(statistics, shapes, accelerator)
            variety.gather(accelerator, statistics)
            _record_left_out(statistics, images, accelerator, _learns_labels(config))
            statistics.timing["calibrate"] = time.perf_counter() - start
            if checkpoint is not None:
                with local_work(accelerator, "Writing the checkpoint"):
                    if run.is_main:
                        statistics.save(checkpoint)
    images.account(accelerator, statistics.images, statistics.bad_images)
    _check_gradients(statistics, model)
    _warn_if_few_tokens(statistics, layers)
    check_variety(statistics, layers, variety.counts, images.name)
    statistics.timing["calibrate"] = time.perf_counter() - start
    return statistics


def _begin(
    subject: Subject, layers: Sequence[LayerInfo], images: ImageSource, run: Run, checkpoint: str | Path | None
) -> Statistics:
    """Empty statistics, or those of the checkpoint, the same on all processes."""
    model, config, accelerator = subject.model, run.config, run.accelerator
    settings = {name: getattr(config, name) for name in _RELEVANT}
    settings |= {"layers": [layer.name for layer in layers], "data": images.name, "images": len(images)}
    settings["precision"] = resolve_precision(config.precision, model.device)
    settings["prunable_inputs"] = [group[-1].name for group in feature_pairs(layers, config)]
    settings |= {"dataset": images.hub_id, "split": images.split}
    labels = _learns_labels(config)
    statistics = Statistics(settings=settings, identity=identity_of(subject, images, accelerator, labels))
    with local_work(accelerator, "Reading the checkpoint"):
        if run.is_main and checkpoint is not None and Path(checkpoint).is_file():
            resumed = _resume(checkpoint, statistics, images, labels)
            # Images that were left out count as done. Those that have been repaired since would never be read.
            if not images.repaired(set(resumed.settings.get("left_out", ()))):
                statistics = resumed.to(model.device)
    if statistics.images == 0:
        statistics.bad_images = 0
        _allocate(statistics, layers, config, model)
    # The other processes may not see the main one's files.
    statistics.sum_over_processes(accelerator)
    plain = statistics.corrections, statistics.timing, statistics.settings, statistics.identity
    statistics.corrections, statistics.timing, statistics.settings, statistics.identity = from_main(accelerator, plain)
    return statistics


def _rounds(
    statistics: Statistics, observe: Callable[[range], None], batches: range, accelerator: Accelerator, endless: bool
) -> Iterator[None]:
    """Observe `batches`, dealt out over the processes; at every yield the statistics are of all processes.

    They are summed over the processes once per round. A round lasts about `CHECKPOINT_SECONDS`, or to the end.
    """
    done, length = batches.start, len(batches) if endless else 4
    while done < batches.stop:
        end = min(done + length * accelerator.num_processes, batches.stop)
        start = time.perf_counter()
        if not accelerator.is_main_process:
            statistics.clear()  # the main process keeps what was summed before
        with local_work(accelerator, "Calibration"):
            observe(own_share(accelerator, end, done))
        statistics.sum_over_processes(accelerator)
        seconds = (time.perf_counter() - start) / length
        if not endless:
            length = from_main(accelerator, max(1, round(CHECKPOINT_SECONDS / seconds)))
        done = end
        yield


def _record_shape(statistics: Statistics, shapes: dict[int, list[int]], accelerator: Accelerator) -> None:
    """Note the shape of one image, for counting costs.

    Args:
        shapes: by index of the batch, of the first one that this process has read.
    """
    if "image_shape" not in statistics.settings:
        found = [item for own in gather_objects(accelerator, shapes) for item in own.items()]
        if found:
            statistics.settings["image_shape"] = min(found)[1]


def _record_left_out(statistics: Statistics, images: ImageSource, accelerator: Accelerator, labels: bool) -> None:
    """Note the numbers of the images that could not be read, so that they are tried again when this goes on.

    Their content does not count any more: they may be repaired, or damaged in another way.
    """
    numbers = {number for own in gather_objects(accelerator, list(images.tally.bad)) for number in own}
    known = statistics.settings.get("left_out", [])
    statistics.settings["left_out"] = sorted(numbers.union(known))
    if statistics.settings["left_out"] != known and accelerator.is_main_process:
        statistics.identity[IMAGES] = facts_of_images(images, labels, statistics.settings["left_out"])
    statistics.identity = from_main(accelerator, statistics.identity)


def _learns_labels(config: CompressionConfig) -> bool:
    return config.calibration_loss == "task" and config.needs_gradients


def images_to_learn(model: PreTrainedModel, images: ImageSource, config: CompressionConfig) -> ImageSource:
    """The images that can be calibrated on: those with labels or targets, where the loss needs them.

    Raises:
        DataError: it does, and none has one.
    """
    if not (_learns_labels(config) and takes_targets(model)):
        return images
    if images.labels is None and images.targets is None:
        raise DataError(
            f'calibration_loss="task" takes the loss that {type(model).__name__} computes for targets, and '
            f"{images.name} has none. Give labelled images, or a DataLoader whose batches have `labels` as the model "
            'takes them; or calibrate with calibration_loss="output", which needs none.'
        )
    labelled = images.labelled()
    if len(labelled) < len(images):
        left_out = len(images) - len(labelled)
        warnings.warn(
            f"{left_out} of {len(images)} images of {images.name} have no label or target that the model's loss takes, "
            "and are left out of the calibration.",
            DataWarning,
            stacklevel=2,
        )
    return labelled


@dataclass
class _Passes:
    """The forward and backward passes over one batch after the other."""

    subject: Subject
    config: CompressionConfig
    precision: str
    observer: Observer

    def observe(self, batch: Batch) -> None:
        """Run the model on a batch, and let the observer add what it saw."""
        config, model = self.config, self.subject.model
        inputs = subject_inputs(self.subject, batch.pixel_values, batch.inputs)
        self.observer.mask, self.observer.sampler.batch = inputs.get("pixel_attention_mask"), batch.index
        pixel_values = inputs["pixel_values"]
        if not config.needs_gradients:
            with torch.no_grad(), autocast(pixel_values, self.precision):
                model(**inputs)
            self.observer.finish_batch()
            return
        probes = 1 if config.calibration_loss == "task" else config.fisher_probes
        pixel_values.requires_grad_(True)
        with torch.enable_grad():
            with autocast(pixel_values, self.precision):
                losses = self._losses(inputs, batch)
            for probe, loss in enumerate(losses, start=1):
                torch.autograd.grad(loss, pixel_values, retain_graph=probe < probes)
        self.observer.finish_batch(len(pixel_values), probes)

    def _losses(self, inputs: dict[str, Tensor], batch: Batch) -> Iterator[Tensor]:
        """Scalars that are sums over the images, to be differentiated one by one."""
        model = self.subject.model
        if self.config.calibration_loss == "task":
            return iter([len(batch.pixel_values) * task_loss(model, inputs, batch.targets_on(model.device))])
        generator = torch.Generator().manual_seed((self.config.seed * 1_000_003 + batch.index) % 2**63)
        return probe_losses(read_outputs(self.subject, model(**inputs), inputs), self.config.fisher_probes, generator)


def _allocate(
    statistics: Statistics, layers: Sequence[LayerInfo], config: CompressionConfig, model: PreTrainedModel
) -> None:
    """Make room for the moments that the metric needs, on the narrow side of each layer; see `statistics`."""
    metric, device = METRICS[config.metric], model.device
    full = metric.input == "full"
    pairs = [*feature_pairs(layers, config), *value_pairs(model, layers)]
    paired = {layer.name for pair in pairs for layer in pair}
    whole = paired | {layer.name for pair in joint_pairs(model, layers) for layer in pair}
    needed = {layer.input_name for layer in layers if layer.in_features <= layer.out_features or layer.name in whole}
    for layer in layers:
        in_full = full and layer.input_name in needed
        if layer.input_name not in statistics.inputs:
            statistics.inputs[layer.input_name] = Moment.empty(layer.in_features, in_full, device)
        if full and not in_full:
            statistics.outputs[layer.name] = Moment.empty(layer.out_features, True, device)
        if metric.needs_gradients:
            size = layer.out_features if layer.name in paired else layer.full_rank
            shape = (size, size) if metric.output == "full" else (layer.out_features,)
            statistics.gradients[layer.name] = GradientMoment.empty(shape, device)


def _check_finite(observer: Observer) -> None:
    statistics = observer.statistics
    finite = {name: moment.is_finite() for name, moment in {**statistics.inputs, **statistics.outputs}.items()}
    for name, own in {**finite, **observer.finite}.items():
        if not own:
            raise CalibrationError(
                f"The activations at {name!r} hold NaN or infinite values. Check the model's weights and the images, "
                'or calibrate with precision="float32".'
            )
    for name, gradient in statistics.gradients.items():
        if not gradient.is_finite():
            raise CalibrationError(
                f'The gradients at {name!r} hold NaN or infinite values; calibrate with precision="float32", or with '
                'metric="activation", which needs none.'
            )


def _check_gradients(statistics: Statistics, model: PreTrainedModel) -> None:
    # A single layer without any is normal: not every head reads the last block.
    moments = statistics.gradients.values()
    if moments and not any(gradient.second.any() for gradient in moments):
        raise CalibrationError(
            f"All gradients are 0: what {type(model).__name__} computes does not depend on the layers, or is "
            'constant, as the probability of a single class is. Calibrate with metric="activation", which needs no '
            "gradients."
        )


def _warn_if_few_tokens(statistics: Statistics, layers: Sequence[LayerInfo]) -> None:
    for layer in layers:
        tokens = statistics.tokens.get(layer.input_name, 0)
        if tokens < layer.full_rank:
            warnings.warn(
                f"{tokens} calibration tokens reached {layer.name!r}, fewer than its {layer.full_rank} features: its "
                "statistics are singular and the result will fit these images only. Use more images.",
                CalibrationWarning,
                stacklevel=3,
            )
            return


def _resume(checkpoint: str | Path, fresh: Statistics, images: ImageSource, labels: bool) -> Statistics:
    saved = Statistics.load(checkpoint)
    if saved.images == 0:
        return fresh  # there is nothing to lose, and images that could not be read may have been repaired
    saved.settings.setdefault("calibration_loss", "output")  # which is older than the setting
    then, now = saved.made_from, fresh.made_from
    if left_out := saved.settings.get("left_out"):
        now[IMAGES] = facts_of_images(images, labels, left_out)
    if saved.is_complete:  # in any order, and with any version of the same format
        now[IMAGES].pop("order")
        now.pop(PACKAGE)
    if set(fresh.settings["prunable_inputs"]) <= set(saved.settings.get("prunable_inputs", [])):
        now[SETTINGS].pop("prunable_inputs")  # it knows more than is asked
    if different := differences(then, now):
        raise CalibrationError(
            f"The statistics in {str(checkpoint)!r}, of {saved.settings.get('images')} images of "
            f"{saved.settings.get('data')}, were made with {different}. Delete that file to start again, or give "
            "another one (--statistics)."
        )
    return saved
