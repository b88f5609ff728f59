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

import math
import time
from dataclasses import asdict
from itertools import groupby
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from .checkpoints import Checkpoint
from .config import CompressionConfig
from .cross_moments import CrossMoments, collect_cross_moments
from .data import ImageSource
from .distribution import from_owner, local_work, own_share, sum_numbers
from .factorization import Factorization, balanced, carried_gradient, output_metric, roots
from .families import LayerInfo, block_names, linear_layer
from .measuring import Reference
from .modes import evaluation_mode, resolve_precision
from .planning import CompressionPlan
from .preparation import Prepared
from .report import CompensationPoint
from .statistics import Statistics
from .taps import BlockStream

RIDGE = 1e-2
"""λ relative to the mean variance of x̂: how much it takes to leave the dense weight where the images say little."""
POINTS = 4
"""Times that the held-out images are asked on the way."""


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
    ridge = RIDGE * used.covariance.diagonal().mean().clamp_min(1e-30)
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
        reference: the dense model on held-out images; if it was better on them before some of the last blocks were
            solved, these are as before.
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
        self.blocks: dict[str, list[LayerInfo]] = {name: [] for name in block_names(self.dense)}
        for layer in prepared.layers:
            self.blocks[layer.input_name.rpartition(".")[0]].append(layer)
        count = len(self.blocks)
        self.marks = sorted({math.ceil(count * (i + 1) / POINTS) for i in range(POINTS)})
        """After how many blocks the held-out images are asked."""

    def run(self, checkpoint: Checkpoint, progress: bool = True) -> list[CompensationPoint]:
        """Returns the held-out losses on the way."""
        start = time.perf_counter()
        state = checkpoint.load() or {"blocks": 0, "layers": {}, "points": [], "seconds": 0.0}
        start -= state["seconds"]
        original = {name: self._read(name) for name in self.plan.ranks}
        for name, tensors in state["layers"].items():
            self._write(name, tensors)
        with evaluation_mode(self.dense), evaluation_mode(self.student), torch.no_grad():
            if not state["points"]:
                self._judge(state, images=0)
            if state["blocks"] < len(self.blocks):
                self._solve_blocks(state, start, checkpoint, progress)
        points = [CompensationPoint(**point) for point in state["points"]]
        best = min(range(len(points)), key=lambda i: points[i].loss)
        kept = [0, *self.marks][best]
        for members in list(self.blocks.values())[kept:]:
            for layer in members:
                if layer.name in original:
                    self._write(layer.name, original[layer.name])
        return points

    def _solve_blocks(self, state: dict[str, Any], start: float, checkpoint: Checkpoint, progress: bool) -> None:
        """Those that are not in `state` yet; the inputs pass through the others as well."""
        streams = self._first_inputs()
        images = round(sum_numbers(self.accelerator, [streams[0].images])[0])
        if images == 0:
            raise self.images.unreadable()
        bar = tqdm(
            self.blocks.items(),
            desc="solving residuals",
            unit=" blocks",
            disable=not (progress and self.accelerator.is_main_process),
        )
        for done, (name, members) in enumerate(bar, start=1):
            blocks = self.dense.get_submodule(name), self.student.get_submodule(name)
            new = done > state["blocks"]
            if new:
                state["layers"] |= self._solve_block(blocks, members, streams)
            with local_work(self.accelerator, "Compensation"):
                for block, stream in zip(blocks, streams, strict=True):
                    stream.advance(block)
            if new:
                state["blocks"], state["seconds"] = done, time.perf_counter() - start
                if done in self.marks:
                    self._judge(state, images)
                checkpoint.save(state)

    def _judge(self, state: dict[str, Any], images: int) -> None:
        point = CompensationPoint("residual", state["seconds"], images, self.reference.loss_of(self.student))
        state["points"].append(asdict(point))

    def _first_inputs(self) -> tuple[BlockStream, BlockStream]:
        """Both models' inputs of the first block, for this process's images, as far as they fit."""
        streams = BlockStream(self.precision), BlockStream(self.precision)
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
        self, blocks: tuple[nn.Module, nn.Module], members: list[LayerInfo], streams: tuple[BlockStream, BlockStream]
    ) -> dict[str, dict[str, Tensor]]:
        """Layers that read the same input at once, in the order in which a block computes them."""
        solved = {}
        for _, group in groupby(members, key=lambda layer: layer.input_name):
            layers = [layer for layer in group if layer.name in self.plan.ranks]
            if not layers:
                continue
            mean = self.statistics.inputs[layers[0].input_name].mean
            moments = collect_cross_moments(layers, (self.dense, self.student), blocks, streams, mean, self.accelerator)
            for layer in layers:
                tensors = self._solve(layer, moments[layer.name])
                self._write(layer.name, tensors)
                solved[layer.name] = tensors
        return solved

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
