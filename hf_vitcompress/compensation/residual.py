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
`P` becomes `W P`; so are queries and keys with one `down`. A pruned layer has no rank to mind: its weight is the plain
least-squares solution for the features that the compressed prefix gives it.
"""

import math
import time
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..architectures.layers import block_names
from ..architectures.running import evaluation_mode
from ..evaluation.reference import Reference
from ..images.images import ImageSource
from ..layers_factored import FactoredLinear
from ..modeling_factored import compressed_modules
from ..planning.closed_form import balanced, roots
from ..planning.groups.base import LayerGroup, RegressionTarget
from ..planning.plan import CompressionPlan
from ..planning.planner import Planner
from ..runtime.checkpoints import Checkpoint
from ..runtime.distributed import from_owner
from ..runtime.run import Run
from .block_inputs import BlockInputs, PairedBlockInputs
from .course import CompensationPoint
from .cross_moments import CrossMoments, collect_cross_moments, targets_output

RIDGE = 1e-2
"""λ relative to the mean variance of x̂: how much it takes to leave the dense weight where the images say little."""
POINTS = 4
"""Times that the held-out images are asked on the way."""


def residual_rank(rank: int, share: float) -> int:
    """The residual's part `q` of the rank of a layer of rank r + q = `rank`; at least 1."""
    return max(1, min(rank, round(share * rank)))


def solve_residual(
    target: RegressionTarget,
    closed_form: tuple[Tensor, Tensor] | None,
    share: float,
    moments: CrossMoments,
    damping: float,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """`[U P]` (out', rank) and `[V; Q]` (rank, in'), or a plain weight (out', in') and `None`; and the bias; float64.

    Args:
        closed_form: factors of the target's rank, the most important component first; `None` for a plain layer.
        share: of the rank that the residual takes.
        moments: centred; of the target's input, or of its output where `targets_output`.
    """
    weight, start = target.weight, target.start
    # Solved on the side of the target's metric.
    own = moments.through(weight) if target.on_output and not targets_output(target.layers[0]) else moments
    used = own if target.centered else own.about_zero()
    ridge = RIDGE * used.covariance.diagonal().mean().clamp_min(1e-30)
    eye = torch.eye(len(used.covariance), dtype=weight.dtype, device=weight.device)
    damped = used.covariance + ridge * eye
    prior = start if target.on_output else eye  # x̂ has the dimensions of x there
    if closed_form is None or target.rank is None:
        solved = torch.linalg.solve(damped, (used.cross + ridge * prior).T).T
        solved = solved if target.on_output else weight @ solved
        return solved, None, _bias(target, solved, own)
    q = residual_rank(target.rank, share)
    up, down = closed_form[0][:, : target.rank - q].double(), closed_form[1][: target.rank - q].double()
    inner = up if target.on_output else _coordinates(weight, up)
    error = used.cross + ridge * prior - inner @ (down @ damped)
    unconstrained = torch.linalg.solve(damped, error.T).T
    root, inverse_root = roots(target.metric, damping)
    carried = root.T @ unconstrained
    _, vectors = torch.linalg.eigh(carried @ damped @ carried.T)
    vectors = vectors.flip(1)[:, :q]
    p = inverse_root.T @ vectors
    up = torch.cat([up, p if target.on_output else weight @ p], 1)
    down = torch.cat([down, vectors.T @ carried])
    return up, down, _bias(target, up @ down, own)


def _coordinates(weight: Tensor, up: Tensor) -> Tensor:
    """`A` with `W A = up`, whose columns lie in those of `W`."""
    return torch.linalg.pinv(weight.T @ weight, hermitian=True) @ (weight.T @ up)


def _bias(target: RegressionTarget, solved: Tensor, moments: CrossMoments) -> Tensor | None:
    if not target.centered or target.bias is None:
        return target.bias
    wanted = moments.target_mean if target.on_output else target.weight @ moments.target_mean
    return target.bias + wanted - solved @ moments.input_mean


class ResidualCompensation:
    """Solves the residuals of `student` in place, one block after the other; the dense model stays as it was.

    Args:
        images: at most as many are used as the largest inputs of a block, of both models, fit into `CACHE_BYTES` (of
            `block_inputs`, per process).
        reference: the dense model on held-out images; if it was better on them before some of the last blocks were
            solved, these are as before.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        planner: Planner,
        plan: CompressionPlan,
        images: ImageSource,
        reference: Reference,
        run: Run,
    ) -> None:
        self.student, self.planner, self.plan, self.images = student, planner, plan, images
        self.reference, self.work, self.config = reference, run, run.config
        self.dense = planner.subject.model
        self.accelerator = run.accelerator
        self.blocks: dict[str, list[LayerGroup]] = {name: [] for name in block_names(self.dense)}
        for group in planner.groups:
            self.blocks[group.layers[0].block_name].append(group)
        count = len(self.blocks)
        self.marks = sorted({math.ceil(count * (i + 1) / POINTS) for i in range(POINTS)})
        """After how many blocks the held-out images are asked."""

    def run(self, checkpoint: Checkpoint) -> list[CompensationPoint]:
        """Returns the held-out losses on the way."""
        start = time.perf_counter()
        state = checkpoint.load() or {"blocks": 0, "layers": {}, "points": [], "seconds": 0.0}
        original = {name: self._read(name) for name in compressed_modules(self.student)}
        with checkpoint.restoring():
            start -= state["seconds"]
            for name, tensors in state["layers"].items():
                self._write(name, tensors)
        with evaluation_mode(self.dense), evaluation_mode(self.student), torch.no_grad():
            if not state["points"]:
                self._judge(state, images=0)
            if state["blocks"] < len(self.blocks):
                self._solve_blocks(state, start, checkpoint)
        points = [CompensationPoint(**point) for point in state["points"]]
        best = min(range(len(points)), key=lambda i: points[i].loss)
        kept = [0, *self.marks][best]
        for block in list(self.blocks)[kept:]:
            for name, tensors in original.items():
                if name.startswith(f"{block}."):
                    self._write(name, tensors)
        return points

    def _solve_blocks(self, state: dict[str, Any], start: float, checkpoint: Checkpoint) -> None:
        """Those that are not in `state` yet."""
        blocks = list(self.blocks)
        subject = self.planner.subject
        streams = PairedBlockInputs((subject, subject.like(self.student)), blocks, self.images, self.work)
        images = streams.start(state["blocks"])
        self.images.account(self.work.accelerator)
        left, done = range(state["blocks"], len(blocks)), state["blocks"]
        bar = self.work.bar("solving residuals", "blocks", left, initial=done, total=len(blocks))
        for index in bar:
            if index > streams.at:
                streams.advance()
            state["layers"] |= self._solve_block(blocks[index], streams.streams)
            state["blocks"], state["seconds"] = index + 1, time.perf_counter() - start
            if index + 1 in self.marks:
                self._judge(state, images)
            checkpoint.save(state)

    def _judge(self, state: dict[str, Any], images: int) -> None:
        point = CompensationPoint("residual", state["seconds"], images, self.reference.loss_of(self.student))
        state["points"].append(asdict(point))

    def _solve_block(self, block: str, streams: tuple[BlockInputs, BlockInputs]) -> dict[str, dict[str, Tensor]]:
        """Layers that read the same input at once, in the order in which a block computes them."""
        models = (self.dense, self.student)
        blocks = self.dense.get_submodule(block), self.student.get_submodule(block)
        groups: dict[str, list[RegressionTarget]] = {}
        for group in self.blocks[block]:
            for target in group.regression_targets(self.plan.shapes_of(group)):
                groups.setdefault(target.layers[0].input_name, []).append(target)
        order = {layer.input_name: position for position, layer in enumerate(self.planner.layers)}
        solved: dict[str, dict[str, Tensor]] = {}
        for input_name in sorted(groups, key=lambda name: order[name]):
            regression_targets = groups[input_name]
            layer = regression_targets[0].layers[0]
            reader = self._modules_of(regression_targets[0])[0]
            moments = collect_cross_moments(layer, reader, models, blocks, streams, self.accelerator)
            for target in regression_targets:
                solved |= self._solve(target, moments)
        return solved

    def _modules_of(self, target: RegressionTarget) -> list[str]:
        """The student's modules that compute it, the one that reads the input first."""
        names = [layer.name for layer in target.layers]
        return names if len(names) == 1 else [f"{target.layers[0].parent}.qk_down", *names]

    def _solve(self, target: RegressionTarget, moments: CrossMoments) -> dict[str, dict[str, Tensor]]:
        """The tensors by module, written into the student; the main process's, so that all go on with the same."""
        names = self._modules_of(target)
        first = self.student.get_submodule(names[0])
        closed_form = None
        if target.rank is not None:
            if isinstance(first, FactoredLinear):
                closed_form = first.up.weight.detach(), first.down.weight.detach()
            else:
                ups = [self._read(name)["weight"] for name in names[1:]]
                closed_form = torch.cat(ups), self._read(names[0])["weight"]
        up, down, bias = solve_residual(target, closed_form, self.config.residual_share, moments, self.config.damping)
        found: dict[str, dict[str, Tensor | None]]
        if down is None:
            found = {names[0]: {"weight": up, "bias": bias}}
        else:
            up, down = balanced(up, down)
            if len(names) == 1:
                found = {names[0]: {"up.weight": up, "down.weight": down, "up.bias": bias}}
            else:
                sizes = [layer.out_features for layer in target.layers]
                biases = [None] * len(sizes) if bias is None else bias.split(sizes)
                found = {names[0]: {"weight": down}}
                for name, own, own_bias in zip(names[1:], up.split(sizes), biases, strict=True):
                    found[name] = {"weight": own, "bias": own_bias}
        tensors = {}
        for name, own_tensors in found.items():
            tensors[name] = {
                key: from_owner(self.accelerator, tensor.to(self.student.dtype).contiguous(), 0)
                for key, tensor in own_tensors.items()
                if tensor is not None
            }
            self._write(name, tensors[name])
        return tensors

    def _read(self, name: str) -> dict[str, Tensor]:
        return {key: tensor.detach().clone() for key, tensor in self.student.get_submodule(name).state_dict().items()}

    def _write(self, name: str, tensors: dict[str, Tensor]) -> None:
        # Not strict, because a bias without a target stays as it is.
        self.student.get_submodule(name).load_state_dict(tensors, strict=False)
