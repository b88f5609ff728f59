"""One pass over the images: forward, a few backward passes, and the moments of what flows through each layer.

The loss whose gradients are collected is defined in one place, `probe_losses`. Activations are never cached: a batch's
moments are added up as soon as the batch has passed.
"""

import contextlib
import hashlib
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from .config import CompressionConfig
from .data import ImageSource
from .errors import CalibrationError, CalibrationWarning
from .families import LayerInfo, linear_layer
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
    """
    accelerator = accelerator or Accelerator()
    if accelerator.num_processes > 1:
        raise CalibrationError("Calibration runs on one process; start it without `accelerate launch`.")
    start = time.perf_counter()
    settings = {name: getattr(config, name) for name in _RELEVANT}
    settings["precision"] = resolve_precision(config.precision, model.device)
    statistics = Statistics(settings=settings, fingerprint=fingerprint(model))
    if checkpoint is not None and Path(checkpoint).is_file():
        statistics = _resume(Statistics.load(checkpoint), statistics)
    if statistics.images == 0:
        _allocate(statistics, layers, config, model.device)

    done = -(-(statistics.images + statistics.bad_images) // config.batch_size)
    earlier_bad = statistics.bad_images
    last_save = time.monotonic()
    observer = _Observer(statistics, layers, config)
    bar = tqdm(
        total=len(images),
        initial=statistics.images + statistics.bad_images,
        desc="calibrating",
        unit=" images",
        disable=not (progress and accelerator.is_main_process),
    )
    with bar, evaluation_mode(model), observer.attached(model):
        for index, batch in enumerate(images.batches(image_processor, config.batch_size, done), start=done):
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + index)
            _observe_batch(model, batch.pixel_values.to(model.device), observer, config, settings, generator)
            statistics.images += len(batch.pixel_values)
            statistics.bad_images = earlier_bad + len(images.bad_images)
            bar.update(statistics.images + statistics.bad_images - bar.n)
            if checkpoint is not None and time.monotonic() - last_save > CHECKPOINT_SECONDS:
                _check_finite(statistics)
                statistics.save(checkpoint)
                last_save = time.monotonic()
    _check_finite(statistics)
    _warn_if_few_tokens(statistics, layers)
    statistics.timing["calibrate"] = statistics.timing.get("calibrate", 0.0) + time.perf_counter() - start
    return statistics


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
    observer: "_Observer",
    config: CompressionConfig,
    settings: dict[str, Any],
    generator: torch.Generator,
) -> None:
    dtype = next(model.parameters()).dtype
    autocast = torch.autocast(
        pixel_values.device.type, torch.bfloat16, enabled=settings["precision"] == "bfloat16" and dtype == torch.float32
    )
    pixel_values = pixel_values.to(dtype)
    if not config.needs_gradients:
        with torch.no_grad(), autocast:
            model(pixel_values=pixel_values)
        observer.finish_batch()
        return
    pixel_values.requires_grad_(True)
    with torch.enable_grad():
        with autocast:
            outputs = model(pixel_values=pixel_values)
        losses = probe_losses(outputs, config.fisher_probes, generator)
        for probe, loss in enumerate(losses, start=1):
            torch.autograd.grad(loss, pixel_values, retain_graph=probe < config.fisher_probes)
    observer.finish_batch(images=len(pixel_values))


@dataclass
class _Observer:
    """Hooks that see every layer's input, output and gradients, and add them to the statistics."""

    statistics: Statistics
    layers: Sequence[LayerInfo]
    config: CompressionConfig
    _seen: dict[str, tuple[Tensor, torch.dtype]] = field(default_factory=dict)
    _importance: dict[str, Tensor] = field(default_factory=dict)
    _buffers: dict[tuple[int, ...], Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._input_of = {layer.name: layer.input_name for layer in self.layers}

    @contextlib.contextmanager
    def attached(self, model: PreTrainedModel) -> Iterator[None]:
        handles = []
        shared = {layer.input_name for layer in self.layers}
        for layer in self.layers:
            first = layer.input_name in shared
            shared.discard(layer.input_name)
            handles.append(linear_layer(model, layer.name).register_forward_hook(self._forward_hook(layer, first)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _forward_hook(self, layer: LayerInfo, first: bool) -> Callable[..., None]:
        statistics = self.statistics
        alone = sum(other.input_name == layer.input_name for other in self.layers) == 1

        def hook(module: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            x = inputs[0]
            # Kept until the backward passes have told which tokens matter; autograd holds the same memory anyway.
            if first:
                self._seen[layer.input_name] = (x.detach(), output.dtype)
            if layer.name in statistics.outputs:
                self._seen[layer.name] = (output.detach(), output.dtype)
            if not output.requires_grad:
                return
            total = statistics.gradients[layer.name].second
            at_input = total.dim() == 2 and layer.in_features < layer.out_features

            def output_hook(grad: Tensor) -> None:
                if at_input and alone:
                    return  # the gradient at the input is this layer's own
                g = self._tokens(grad, grad.dtype)
                if at_input:
                    _add_product(total, g @ module.weight.detach().float(), torch.float32)
                elif total.dim() == 2:
                    _add_product(total, g, grad.dtype)
                else:
                    total.add_(torch.linalg.vector_norm(g, dim=0).square())

            def input_hook(grad: Tensor) -> None:
                g = self._tokens(grad, output.dtype)
                if first and self.config.token_weighting:
                    previous = self._importance.get(layer.input_name, 0)
                    self._importance[layer.input_name] = previous + torch.linalg.vector_norm(g, dim=-1).square()
                if at_input and alone:
                    _add_product(total, g, output.dtype)

            output.register_hook(output_hook)
            if x.requires_grad and (first or (at_input and alone)):
                x.register_hook(input_hook)

        return hook

    def finish_batch(self, images: int = 0) -> None:
        """Add the batch's inputs and outputs."""
        for name, (activations, computed_in) in self._seen.items():
            weights = self._token_weights(self._input_of.get(name, name))
            moment = self.statistics.inputs.get(name) or self.statistics.outputs[name]
            tokens = self._tokens(activations, computed_in)
            moment.update(tokens, weights)
            if name in self.statistics.inputs:
                self.statistics.tokens[name] = self.statistics.tokens.get(name, 0) + len(tokens)
        for gradient in self.statistics.gradients.values():
            gradient.count += images * self.config.fisher_probes
        self._seen.clear()
        self._importance.clear()

    def _tokens(self, activations: Tensor, computed_in: torch.dtype) -> Tensor:
        """(…, d) → (tokens, d) float32, rounded as the layer itself rounds its input under autocast.

        The result is a buffer that the next call with the same shape overwrites: fresh memory for every product would
        cost as much time as the product.
        """
        flat = activations.flatten(0, -2)
        if flat.dtype != computed_in:
            flat = self._buffer(flat.shape, computed_in, flat.device).copy_(flat)
        return self._buffer(flat.shape, torch.float32, flat.device).copy_(flat)

    def _buffer(self, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
        key = (*shape, dtype.itemsize)
        if key not in self._buffers:
            self._buffers[key] = torch.empty(shape, dtype=dtype, device=device)
        return self._buffers[key]

    def _token_weights(self, input_name: str) -> Tensor | None:
        """`(1 − a) + a · ‖g‖² / mean ‖g‖²`, so that the weights average 1 in every batch."""
        importance = self._importance.get(input_name)
        if importance is None:
            return None
        share = self.config.token_weighting
        relative = importance / importance.mean().clamp_min(torch.finfo(importance.dtype).tiny)
        return (1 - share) + share * relative


def _add_product(total: Tensor, vectors: Tensor, computed_in: torch.dtype) -> None:
    """`total += vectorsᵀ vectors`, by the fast path of the processor where that is exact.

    Values that are bfloat16 already lose nothing when a float32 product takes them as bfloat16 and adds in float32,
    and on a CPU with bfloat16 instructions that is three times as fast.
    """
    matmul: Any = getattr(torch.backends.mkldnn, "matmul")  # noqa: B009 (not in torch's type stubs)
    exact = computed_in == torch.bfloat16 and vectors.device.type == "cpu"
    previous = matmul.fp32_precision
    try:
        if exact:
            matmul.fp32_precision = "bf16"
        total.addmm_(vectors.T, vectors)
    finally:
        matmul.fp32_precision = previous


def _allocate(
    statistics: Statistics, layers: Sequence[LayerInfo], config: CompressionConfig, device: torch.device
) -> None:
    full = config.metric in ("activation", "fisher")
    for layer in layers:
        wide_input = layer.in_features > layer.out_features
        if layer.input_name not in statistics.inputs:
            order = 2 if full and not wide_input else 1 if config.metric == "diagonal" else 0
            statistics.inputs[layer.input_name] = Moment.empty(layer.in_features, order, device)
        if full and wide_input:
            statistics.outputs[layer.name] = Moment.empty(layer.out_features, 2, device)
        if config.needs_gradients:
            shape = (layer.full_rank,) * 2 if config.metric == "fisher" else (layer.out_features,)
            statistics.gradients[layer.name] = GradientMoment.empty(shape, device)


def _check_finite(statistics: Statistics) -> None:
    for name, moment in {**statistics.inputs, **statistics.outputs}.items():
        if not moment.is_finite():
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


def _resume(saved: Statistics, fresh: Statistics) -> Statistics:
    if saved.fingerprint != fresh.fingerprint or saved.settings != fresh.settings:
        raise CalibrationError(
            "The calibration checkpoint belongs to another model or to other settings "
            f"({saved.settings}). Delete it, or give another name."
        )
    return saved


def fingerprint(model: PreTrainedModel) -> str:
    """A short hash of a model's class, shapes and (a sample of) its weights."""
    digest = hashlib.sha256(type(model).__name__.encode())
    for name, parameter in model.named_parameters():
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().flatten()[:8].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def resolve_precision(precision: str, device: torch.device) -> str:
    """`"bfloat16"` or `"float32"`; `"auto"` asks the device whether it computes in bfloat16."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        fast = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16")
        return "bfloat16" if fast else "float32"
    return "float32"


@contextlib.contextmanager
def evaluation_mode(model: PreTrainedModel) -> Iterator[None]:
    """No dropout, no gradients of parameters, eager attention where its backward pass is faster; undone afterwards."""
    training = model.training
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    attention = model.config._attn_implementation
    model.eval()
    model.requires_grad_(False)
    if model.device.type == "cpu" and attention == "sdpa":
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        for parameter, requires_grad in zip(model.parameters(), wanted, strict=True):
            parameter.requires_grad_(requires_grad)
        if model.config._attn_implementation != attention:
            model.set_attn_implementation(attention)
        model.train(training)
