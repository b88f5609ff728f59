"""The residual tensors: `W ≈ U V + P Q`, block after block, on what the compressed blocks before really pass on.

The closed form of `factorization` knows the inputs of the dense model only. Here the loss of a layer's output,

    E ‖ W x − (U V + P Q) x̂ ‖²_G + λ ‖ W − U V − P Q ‖²_G

compares the dense layer on its dense input `x` with the compressed one on its input `x̂` from the compressed prefix
(Azizi et al., arXiv 2402.06004, who follow the gradient of this loss), so that P Q also repairs what went wrong
before. `U V` is the closed form's, cut to rank r − q; the loss is quadratic in `P Q`, and instead of descending along
its gradient we go to where it vanishes under the rank constraint (reduced-rank regression, Izenman 1975): with
`C = E[x̂ x̂ᵀ] + λ`, `E = E[W x x̂ᵀ] + λ W − U V C` and `G = L Lᵀ`,

    P = L⁻ᵀ V_q,   Q = V_qᵀ Lᵀ E C⁻¹,   V_q the first q eigenvectors of Lᵀ E C⁻¹ Eᵀ L.

One product of moments replaces all gradient steps; no step size, no stopping. Both tensors are one factor pair
`[U P]·[V; Q]` afterwards.

A layer with in < out is solved on its input side, where `G` is the carried moment `Wᵀ G W` (see `statistics`) and
`P` becomes `W P`.
"""

import contextlib
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from .checkpoints import Checkpoint
from .config import CompressionConfig
from .data import ImageSource
from .distribution import from_owner, local_work, own_share, sum_in_place, sum_numbers
from .errors import CompensationError
from .factorization import Factorization, balanced, carried_gradient, output_metric, roots
from .families import LayerInfo, linear_layer
from .measuring import Reference
from .modes import evaluation_mode, resolve_precision
from .observation import add_product
from .planning import CompressionPlan
from .preparation import Prepared
from .report import CompensationPoint
from .statistics import Statistics

RIDGE = 1e-2
"""λ relative to the mean variance of x̂: how much it takes to leave the dense weight where the images say little."""
POINTS = 4
"""Times that the held-out images are asked on the way."""


@dataclass
class CrossMoments:
    """Second moments of a compressed layer's input `x̂` with itself and with what the dense layer had, centred.

    Attributes:
        input_mean: E[x̂] (in,) float64.
        covariance: of x̂, (in, in) float64.
        target_mean: (t,) float64; the target is `W x` (t = out), or `x` (t = in) for a layer with in < out.
        cross: covariance of the target and x̂, (t, in) float64.
    """

    input_mean: Tensor
    covariance: Tensor
    target_mean: Tensor
    cross: Tensor

    def about_zero(self) -> "CrossMoments":
        """The same moments, uncentred."""
        return CrossMoments(
            self.input_mean,
            self.covariance + torch.outer(self.input_mean, self.input_mean),
            self.target_mean,
            self.cross + torch.outer(self.target_mean, self.input_mean),
        )


def residual_rank(rank: int, share: float) -> int:
    """q of a layer of rank r + q = `rank`; at least 1."""
    return max(1, min(rank, round(share * rank)))


def solve_residual(
    layer: LayerInfo,
    linear: nn.Linear,
    factorization: Factorization,
    rank: int,
    share: float,
    moments: CrossMoments,
    metric: Tensor,
    config: CompressionConfig,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """`[U P]` (out, rank), `[V; Q]` (rank, in) and the bias (out,), float64; see the module's text.

    Args:
        linear: the dense layer.
        moments: centred.
        metric: `G`, (n, n) or its diagonal (n,), on the target's side.
    """
    weight = linear.weight.detach().double()
    narrow_in = layer.in_features < layer.out_features
    q = residual_rank(rank, share)
    up, down = factorization.up[:, : rank - q].double(), factorization.down[: rank - q].double()
    centered = config.correct_bias and linear.bias is not None
    used = moments if centered else moments.about_zero()

    dense = torch.eye(layer.in_features, dtype=weight.dtype, device=weight.device) if narrow_in else weight
    closed_form = up @ down
    if narrow_in:  # the columns of `up` lie in those of W
        closed_form = torch.linalg.pinv(weight.T @ weight, hermitian=True) @ (weight.T @ closed_form)
    ridge = RIDGE * used.covariance.diagonal().mean()
    damped = used.covariance + ridge * torch.eye(layer.in_features, dtype=weight.dtype, device=weight.device)
    error = used.cross + ridge * dense - closed_form @ damped
    unconstrained = torch.linalg.solve(damped, error.T).T
    root, inverse_root = roots(metric, config.damping)
    carried = root.T @ unconstrained
    _, vectors = torch.linalg.eigh(carried @ damped @ carried.T)
    vectors = vectors.flip(1)[:, :q]
    p = inverse_root.T @ vectors
    up = torch.cat([up, weight @ p if narrow_in else p], 1)
    down = torch.cat([down, vectors.T @ carried])
    if linear.bias is None:
        return up, down, None
    bias = linear.bias.detach().double()
    if centered:
        target_mean = weight @ moments.target_mean if narrow_in else moments.target_mean
        bias = bias + target_mean - up @ (down @ moments.input_mean)
    return up, down, bias


class ResidualCompensation:
    """Solves the residuals of `student` in place, one block after the other; the dense model stays as it was.

    Args:
        images: at most as many are used as the inputs of one block, of both models, fit into `cache_megabytes`
            (per process).
        reference: the dense model on held-out images; if the result is worse on them, the student is as before.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        prepared: Prepared,
        plan: CompressionPlan,
        statistics: Statistics,
        images: ImageSource,
        reference: Reference,
        config: CompressionConfig,
        image_processor: Any = None,
    ) -> None:
        self.student, self.prepared, self.plan, self.statistics = student, prepared, plan, statistics
        self.images, self.reference, self.config, self.processor = images, reference, config, image_processor
        self.dense = prepared.model
        self.accelerator: Accelerator = reference.accelerator
        self.precision = resolve_precision(config.precision, student.device)
        blocks = groupby(prepared.layers, key=lambda layer: layer.input_name.rpartition(".")[0])
        self.blocks = {name: list(layers) for name, layers in blocks}

    def run(self, checkpoint: Checkpoint, progress: bool = True) -> list[CompensationPoint]:
        """Returns the held-out losses on the way."""
        start = time.perf_counter()
        saved = checkpoint.load() or {"blocks": 0, "layers": {}, "points": [], "seconds": 0.0}
        points, layers = [CompensationPoint(**point) for point in saved["points"]], dict(saved["layers"])
        original = {name: self._read(name) for name in self.plan.ranks}
        for name, tensors in layers.items():
            self._write(name, tensors)
        marks = {round(len(self.blocks) * (i + 1) / POINTS) for i in range(POINTS)}
        bar = tqdm(
            self.blocks.items(),
            desc="solving residuals",
            unit=" blocks",
            disable=not (progress and self.accelerator.is_main_process),
        )
        with evaluation_mode(self.dense), evaluation_mode(self.student), torch.no_grad():
            if not points:
                points.append(CompensationPoint("residual", 0.0, 0, self.reference.loss_of(self.student)))
            if saved["blocks"] == len(self.blocks):
                return points
            streams = self._first_inputs()
            images = round(sum_numbers(self.accelerator, [streams[0].images])[0])
            for done, (name, members) in enumerate(bar, start=1):
                blocks = self.dense.get_submodule(name), self.student.get_submodule(name)
                if done > saved["blocks"]:
                    layers |= self._solve_block(blocks, members, streams)
                with local_work(self.accelerator, "Compensation"):
                    for block, stream in zip(blocks, streams, strict=True):
                        stream.advance(block)
                if done <= saved["blocks"]:
                    continue
                seconds = saved["seconds"] + time.perf_counter() - start
                if done in marks:
                    points.append(CompensationPoint("residual", seconds, images, self.reference.loss_of(self.student)))
                plain = [asdict(point) for point in points]
                checkpoint.save({"blocks": done, "layers": layers, "points": plain, "seconds": seconds})
        if not points[-1].loss <= points[0].loss:
            for name, tensors in original.items():
                self._write(name, tensors)
        return points

    def _first_inputs(self) -> tuple["_Stream", "_Stream"]:
        """Both models' inputs of the first block, for this process's images, as far as they fit."""
        streams = _Stream(self._autocast), _Stream(self._autocast)
        room = self.config.cache_megabytes * 1_000_000
        first = next(iter(self.blocks))
        count = self.images.batch_count(self.config.batch_size)
        with local_work(self.accelerator, "Compensation"):
            for batch in self.images.batches(
                self.processor, self.config.batch_size, own_share(self.accelerator, count)
            ):
                for model, stream in zip((self.dense, self.student), streams, strict=True):
                    stream.read(model, first, batch.pixel_values)
                if sum(stream.bytes for stream in streams) * (1 + 1 / len(streams[0].hidden)) > room:
                    break
        return streams

    def _solve_block(
        self, blocks: tuple[nn.Module, nn.Module], members: list[LayerInfo], streams: tuple["_Stream", "_Stream"]
    ) -> dict[str, dict[str, Tensor]]:
        """Layers that read the same input at once, in the order in which a block computes them."""
        solved = {}
        for _, group in groupby(members, key=lambda layer: layer.input_name):
            layers = [layer for layer in group if layer.name in self.plan.ranks]
            if not layers:
                continue
            moments = self._moments(blocks, layers, streams)
            for layer in layers:
                tensors = self._solve(layer, moments[layer.name])
                self._write(layer.name, tensors)
                solved[layer.name] = tensors
        return solved

    def _moments(
        self, blocks: tuple[nn.Module, nn.Module], layers: list[LayerInfo], streams: tuple["_Stream", "_Stream"]
    ) -> dict[str, CrossMoments]:
        """One pass of both blocks over the images. All sums are taken about the dense model's means."""
        device = self.student.device
        mean = self.statistics.inputs[layers[0].input_name].mean
        linears = {layer.name: linear_layer(self.dense, layer.name) for layer in layers}
        narrow = {layer.name: layer.in_features < layer.out_features for layer in layers}
        offsets = {}
        for layer in layers:
            weight, bias = linears[layer.name].weight.detach().double(), linears[layer.name].bias
            output = weight @ mean if bias is None else weight @ mean + bias.detach().double()
            offsets[layer.name] = mean if narrow[layer.name] else output
        n, sizes = layers[0].in_features, {name: len(offset) for name, offset in offsets.items()}
        count = torch.zeros(1, dtype=torch.float64, device=device)
        first, second = torch.zeros(n, device=device), torch.zeros(n, n, device=device)
        target_first = {name: torch.zeros(size, device=device) for name, size in sizes.items()}
        cross = {name: torch.zeros(size, n, device=device) for name, size in sizes.items()}

        tap, compressed_tap = _Tap(self.dense, linears), _Tap(self.student, [layers[0].name])
        with local_work(self.accelerator, "Compensation"), tap, compressed_tap:
            for index in range(len(streams[0].hidden)):
                for block, stream in zip(blocks, streams, strict=True):
                    stream.run(block, index)
                computed_in = compressed_tap.outputs[layers[0].name].dtype
                x_hat = _tokens(compressed_tap.inputs[layers[0].name], computed_in) - mean.float()
                count += len(x_hat)
                first += x_hat.sum(0)
                add_product(second, x_hat, x_hat, computed_in)
                for name in linears:
                    seen = tap.inputs[name] if narrow[name] else tap.outputs[name]
                    target = _tokens(seen, computed_in) - offsets[name].float()
                    target_first[name] += target.sum(0)
                    add_product(cross[name], target, x_hat, computed_in)
        sum_in_place(self.accelerator, [count, first, second, *target_first.values(), *cross.values()])
        shift = first.double() / count
        covariance = second.double() / count - torch.outer(shift, shift)
        if not torch.isfinite(covariance).all():
            raise CompensationError(
                f"The inputs of {layers[0].name!r} in the compressed model hold NaN or infinite values; compensate "
                'with precision="float32".'
            )
        result = {}
        for name in linears:
            target_shift = target_first[name].double() / count
            bias = linears[name].bias
            start = offsets[name] if narrow[name] or bias is None else offsets[name] - bias.detach().double()
            result[name] = CrossMoments(
                input_mean=mean + shift,
                covariance=(covariance + covariance.T) / 2,
                target_mean=start + target_shift,
                cross=cross[name].double() / count - torch.outer(target_shift, shift),
            )
        return result

    def _solve(self, layer: LayerInfo, moments: CrossMoments) -> dict[str, Tensor]:
        """The tensors of a layer; the main process's, so that all processes go on with the same."""
        linear, config = linear_layer(self.dense, layer.name), self.config
        weight = linear.weight.detach().double()
        metric, gradient = config.metric, self.statistics.gradients.get(layer.name)
        if layer.in_features < layer.out_features:
            side = carried_gradient(metric, gradient, weight)
        else:
            side = output_metric(metric, gradient, layer, weight)
        rank = self.plan.ranks[layer.name]
        factorization = self.prepared.factorizations[layer.name]
        up, down, bias = solve_residual(
            layer, linear, factorization, rank, config.residual_share, moments, side, config
        )
        up, down = balanced(up, down)
        tensors = {"up.weight": up, "down.weight": down, "up.bias": bias}
        dtype = self.student.dtype
        return {
            name: from_owner(self.accelerator, tensor.to(dtype).contiguous(), 0)
            for name, tensor in tensors.items()
            if tensor is not None
        }

    def _read(self, name: str) -> dict[str, Tensor]:
        return {key: tensor.detach().clone() for key, tensor in self.student.get_submodule(name).state_dict().items()}

    def _write(self, name: str, tensors: dict[str, Tensor]) -> None:
        self.student.get_submodule(name).load_state_dict(tensors)

    def _autocast(self) -> torch.autocast:
        device = self.student.device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.precision == "bfloat16")


def _tokens(activations: Tensor, computed_in: torch.dtype) -> Tensor:
    """(…, d) → (tokens, d) float32, rounded as the layer rounds them."""
    return activations.flatten(0, -2).to(computed_in).float()


class _Reached(Exception):  # noqa: N818 (no error)
    """The block whose inputs are wanted has been called."""


class _Stream:
    """One model's inputs of one block, for all images of this process."""

    def __init__(self, autocast: Callable[[], torch.autocast]) -> None:
        self.autocast = autocast
        self.hidden: list[Tensor] = []
        self.rest: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    @property
    def bytes(self) -> int:
        return sum(hidden.nbytes for hidden in self.hidden)

    @property
    def images(self) -> int:
        return sum(len(hidden) for hidden in self.hidden)

    def read(self, model: PreTrainedModel, block: str, pixel_values: Tensor) -> None:
        """Add what `model` passes to `block` for these images; nothing after it is computed."""

        def hook(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            hidden, *others = arguments
            self.hidden.append(hidden)
            self.rest.append((tuple(others), named))
            raise _Reached

        handle = model.get_submodule(block).register_forward_pre_hook(hook, with_kwargs=True)
        try:
            with contextlib.suppress(_Reached), self.autocast():
                model(pixel_values=pixel_values.to(model.device, model.dtype))
        finally:
            handle.remove()

    def run(self, block: nn.Module, index: int) -> Tensor:
        """The block's output (n, tokens, d) for one batch."""
        arguments, named = self.rest[index]
        with self.autocast():
            output = block(self.hidden[index], *arguments, **named)
        return output[0] if isinstance(output, tuple) else output

    def advance(self, block: nn.Module) -> None:
        """From the inputs of `block` to those of the next one."""
        for index in range(len(self.hidden)):
            self.hidden[index] = self.run(block, index)


class _Tap:
    """Keeps what flows into and out of some layers in the last forward pass."""

    def __init__(self, model: PreTrainedModel, names: Iterable[str]) -> None:
        self.modules = {name: model.get_submodule(name) for name in names}
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        self.handles: list[Any] = []

    def __enter__(self) -> "_Tap":
        for name, module in self.modules.items():
            self.handles.append(module.register_forward_hook(self._hook(name)))
        return self

    def _hook(self, name: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self.inputs[name], self.outputs[name] = inputs[0], output

        return hook

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()
