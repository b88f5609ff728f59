"""One pass over the images: forward, a few backward passes, and the moments of what flows through each layer.

The loss whose gradients are collected is defined in one place, `probe_losses`. Activations are never cached: a batch's
moments are added up as soon as the batch has passed.
"""

import hashlib
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from .config import CompressionConfig
from .data import ImageSource
from .distribution import from_main, local_work, new_accelerator, own_share
from .errors import CalibrationError, CalibrationWarning
from .families import LayerInfo, feature_pairs
from .modes import autocast, evaluation_mode, resolve_precision
from .observation import Observer
from .statistics import GradientMoment, Moment, Statistics

CHECKPOINT_SECONDS = 30.0

# Fields of the config that change the statistics; a checkpoint made under others is not continued.
_RELEVANT = ("metric", "token_weighting", "fisher_probes", "batch_size", "precision", "seed", "on_bad_image")


def calibrate(
    model: PreTrainedModel,
    layers: Sequence[LayerInfo],
    images: ImageSource,
    config: CompressionConfig,
    image_processor: Any = None,
    checkpoint: str | Path | None = None,
    progress: bool = True,
    accelerator: Accelerator | None = None,
) -> Statistics:
    """Collect the statistics of `layers` over `images`.

    Args:
        model: dense model; it is left as it was, on its device, in its mode.
        layers: what to observe, from `families.find_layers`.
        images: all of them are used, in their order.
        config: `metric` decides which moments are needed.
        checkpoint: a file that is written every half minute and continued from when it exists; a calibration that
            was killed ends with the same statistics as one that was not.

    Raises:
        CalibrationError: an activation or a gradient is not finite, or the checkpoint belongs to something else.
        DistributedError: another process failed or has ended; what all had seen at the last checkpoint is in it.
    """
    accelerator = accelerator or new_accelerator()
    start = time.perf_counter()
    settings = {name: getattr(config, name) for name in _RELEVANT}
    settings |= {"layers": [layer.name for layer in layers], "data": images.name, "images": len(images)}
    settings["precision"] = resolve_precision(config.precision, model.device)
    settings["prunable_inputs"] = [second.name for _, second in feature_pairs(layers, config)]
    statistics = Statistics(settings=settings, fingerprint=fingerprint(model))
    with local_work(accelerator, "Reading the checkpoint"):
        if accelerator.is_main_process and checkpoint is not None and Path(checkpoint).is_file():
            statistics = _resume(checkpoint, statistics).to(model.device)
    if statistics.images == 0:
        _allocate(statistics, layers, config, model.device)
    # The other processes may not see the main one's files.
    statistics.sum_over_processes(accelerator)
    statistics.scalings, statistics.timing = from_main(accelerator, (statistics.scalings, statistics.timing))

    done = -(-(statistics.images + statistics.bad_images) // config.batch_size)
    observer = Observer(statistics, layers, config, len(images))
    bar = tqdm(
        total=len(images),
        initial=statistics.images + statistics.bad_images,
        desc="calibrating",
        unit=" images",
        disable=not (progress and accelerator.is_main_process),
    )
    with bar, evaluation_mode(model), observer.attached(model):

        def observe(share: range) -> None:
            bad_before = len(images.bad_images)
            for batch in images.batches(image_processor, config.batch_size, share):
                observer.batch = batch.index
                generator = torch.Generator().manual_seed((config.seed * 1_000_003 + batch.index) % 2**63)
                _observe_batch(model, batch.pixel_values.to(model.device), observer, config, settings, generator)
                statistics.images += len(batch.pixel_values)
                bar.update(min(len(batch.pixel_values) * accelerator.num_processes, len(images) - round(bar.n)))
            statistics.bad_images += len(images.bad_images) - bad_before
            _check_finite(observer)

        count = images.batch_count(config.batch_size)
        for _ in _rounds(statistics, observe, range(done, count), accelerator, endless=checkpoint is None):
            bar.update(statistics.images + statistics.bad_images - bar.n)
            if checkpoint is not None:
                with local_work(accelerator, "Writing the checkpoint"):
                    if accelerator.is_main_process:
                        statistics.save(checkpoint)
    if statistics.images == 0:
        raise images.unreadable()
    _warn_if_few_tokens(statistics, layers)
    statistics.timing["calibrate"] = statistics.timing.get("calibrate", 0.0) + time.perf_counter() - start
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


def probe_losses(outputs: Any, probes: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Scalars whose gradients' second moment is the Fisher information, one per probe.

    With logits: `φ = Σ_images Σ_c ε_c √p_c · log p_c` with `√p` held constant and random signs ε, so that
    `E_ε[∇φ ∇φᵀ] = Σ_c p_c ∇log p_c ∇log p_cᵀ`: the Fisher with its expectation over labels taken exactly, without
    labels. The signs of the probes are rows of a Hadamard matrix over the classes sorted by probability (times one
    random sign per class and image), so that the cross terms of an image's likeliest classes cancel exactly and not
    just on average.

    Without logits: `φ = Σ_images Σ_j ε_j y_j / ‖y‖`, `y` the image's output; the second moment is then the
    Gauss-Newton matrix of the relative squared error `½ ‖ŷ − y‖² / ‖y‖²`.
    """
    logits = outputs.get("logits")
    if logits is not None:
        logits = logits.float()
        log_p = logits.flatten(0, -2).log_softmax(-1)
        weights = log_p.detach().exp().sqrt()
        rank = weights.argsort(-1, descending=True).argsort(-1)
        values = log_p
    else:
        output = outputs["reconstruction"] if "reconstruction" in outputs else outputs["last_hidden_state"]
        values = output.float().flatten(1)
        weights = (1 / values.detach().norm(dim=-1, keepdim=True).clamp_min(1e-12)).expand_as(values)
        rank = torch.arange(values.shape[-1], device=values.device).expand_as(values)
    signs = torch.randint(0, 2, values.shape, generator=generator).to(values.device) * 2 - 1
    hadamard = _hadamard(probes).to(values.device)
    for probe in range(probes):
        yield (hadamard[probe][rank % len(hadamard)] * signs * weights * values).sum()


def _hadamard(rows: int) -> Tensor:
    matrix = torch.ones(1, 1)
    while len(matrix) < rows:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


def _observe_batch(
    model: PreTrainedModel,
    pixel_values: Tensor,
    observer: "Observer",
    config: CompressionConfig,
    settings: dict[str, Any],
    generator: torch.Generator,
) -> None:
    dtype = next(model.parameters()).dtype
    precision = settings["precision"] if dtype == torch.float32 else "float32"  # else the weights' own
    pixel_values = pixel_values.to(dtype)
    if not config.needs_gradients:
        with torch.no_grad(), autocast(pixel_values.device, precision):
            model(pixel_values=pixel_values)
        observer.finish_batch()
        return
    pixel_values.requires_grad_(True)
    with torch.enable_grad():
        with autocast(pixel_values.device, precision):
            outputs = model(pixel_values=pixel_values)
        losses = probe_losses(outputs, config.fisher_probes, generator)
        for probe, loss in enumerate(losses, start=1):
            torch.autograd.grad(loss, pixel_values, retain_graph=probe < config.fisher_probes)
    observer.finish_batch(images=len(pixel_values))


def _allocate(
    statistics: Statistics, layers: Sequence[LayerInfo], config: CompressionConfig, device: torch.device
) -> None:
    full = config.metric in ("activation", "fisher")
    paired = {layer.name for pair in feature_pairs(layers, config) for layer in pair}
    for layer in layers:
        narrow_input = layer.in_features <= layer.out_features or layer.name in paired
        if layer.input_name not in statistics.inputs:
            order = 2 if full and narrow_input else 1 if config.metric == "diagonal" else 0
            statistics.inputs[layer.input_name] = Moment.empty(layer.in_features, order, device)
        if full and not narrow_input:
            statistics.outputs[layer.name] = Moment.empty(layer.out_features, 2, device)
        if config.needs_gradients:
            size = layer.out_features if layer.name in paired else layer.full_rank
            shape = (size, size) if config.metric == "fisher" else (layer.out_features,)
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


def _resume(checkpoint: str | Path, fresh: Statistics) -> Statistics:
    saved = Statistics.load(checkpoint)
    differing = [name for name, value in fresh.settings.items() if saved.settings.get(name) != value]
    if set(fresh.settings["prunable_inputs"]) <= set(saved.settings.get("prunable_inputs", [])):
        differing = [name for name in differing if name != "prunable_inputs"]  # it knows more than is asked
    if saved.fingerprint != fresh.fingerprint:
        differing.insert(0, "model")
    if differing:
        raise CalibrationError(
            f"The calibration in {str(checkpoint)!r} belongs to another model or to other settings (different: "
            f"{', '.join(differing)}). Delete that file to start again, or give another name."
        )
    return saved


def fingerprint(model: PreTrainedModel) -> str:
    """A short hash of a model's class, shapes and (a sample of) its weights."""
    digest = hashlib.sha256(type(model).__name__.encode())
    for name, parameter in model.named_parameters():
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().flatten()[:8].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
