"""The residual tensors against the loss of a layer's output, in float64; and the inputs they are solved on."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    PreTrainedModel,
    ViTModel,
)

from hf_vitcompress import CompressionConfig, ViTCompressor
from hf_vitcompress.architectures.inputs import model_inputs
from hf_vitcompress.architectures.layers import LayerInfo
from hf_vitcompress.compensation import block_inputs
from hf_vitcompress.compensation.cross_moments import CrossMoments, targets_output
from hf_vitcompress.compensation.residual import RIDGE, ResidualCompensation, residual_rank, solve_residual
from hf_vitcompress.errors import CompensationError, DataError
from hf_vitcompress.images.images import ImageSource
from hf_vitcompress.layers_factored import FactoredLinear
from hf_vitcompress.modeling_factored import compressed_modules
from hf_vitcompress.planning.closed_form import Factorization
from hf_vitcompress.planning.groups.base import Target
from support.models import DIGITS, TINY, tiny_config
from support.problems import Problem, make
from support.residuals import judged
from support.students import (
    LOW_RANK,
    METHODS,
    Case,
    changed,
    checkpoint,
    compressed,
    lively,
    logits,
    random_images,
    state_of,
)
from support.zoo import HEADS, Head

METRICS = ("weight", "activation", "row_fisher", "fisher")
RANK = 4

every_metric = pytest.mark.parametrize("metric", ["weight", "row_fisher", "fisher"])
every_shape = pytest.mark.parametrize("shape", [(14, 8), (9, 9), (8, 14)], ids=["wide_output", "square", "wide_input"])
every_bias = pytest.mark.parametrize(
    ("bias", "correct_bias"), [(True, True), (True, False), (False, True)], ids=["corrected", "uncorrected", "no_bias"]
)
every_share = pytest.mark.parametrize("share", [0.25, 1.0])


# ---- one layer


@dataclass
class LayerProblem:
    """A layer whose input in the compressed model is not what it was in the dense one."""

    base: Problem
    x_hat: Tensor
    rank: int = RANK
    share: float = 0.5

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    @property
    def kept(self) -> int:
        """r of the closed form."""
        return self.rank - residual_rank(self.rank, self.share)

    @property
    def used_input(self) -> Tensor:
        return self.x_hat - self.x_hat.mean(0) if self.base.centered else self.x_hat

    @property
    def second(self) -> Tensor:
        """`C` without the ridge."""
        return self.used_input.T @ self.used_input / len(self.x_hat)

    @property
    def ridge(self) -> float:
        return RIDGE * float(self.second.diagonal().mean())

    @property
    def damped(self) -> Tensor:
        return self.second + self.ridge * torch.eye(len(self.second), dtype=torch.float64)

    @property
    def target(self) -> Tensor:
        """`W x`."""
        target = self.base.x.double() @ self.weight.T
        return target - target.mean(0) if self.base.centered else target

    @property
    def least_squares(self) -> Tensor:
        """The minimum over all matrices."""
        cross = self.target.T @ self.used_input / len(self.x_hat)
        return torch.linalg.solve(self.damped, (cross + self.ridge * self.weight).T).T

    def moments(self) -> CrossMoments:
        x = self.base.x.double()
        target = x @ self.weight.T if targets_output(self.base.layer) else x
        target_mean, mean = target.mean(0), self.x_hat.mean(0)
        centred = self.x_hat - mean
        return CrossMoments(
            mean, centred.T @ centred / len(x), target_mean, (target - target_mean).T @ centred / len(x)
        )

    @property
    def wanted(self) -> Target:
        """What the layer is to compute, as its part says it."""
        layer, linear, side = self.base.layer, self.base.linear, self.base.output_side
        on_output = layer.out_features <= layer.in_features
        if not on_output:
            side = self.weight.T @ side @ self.weight
        elif self.base.config.metric != "fisher":
            side = side.diagonal()
        bias = None if linear.bias is None else linear.bias.detach().double()
        return Target((layer,), self.weight, self.weight, side, on_output, bias, self.base.centered, self.rank)

    def solve(self, factorization: Factorization | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        closed_form = factorization or self.base.factorize()
        factors = closed_form.up[:, : self.rank], closed_form.down[: self.rank]
        up, down, bias = solve_residual(self.wanted, factors, self.share, self.moments(), self.base.config.damping)
        assert down is not None
        return up, down, bias

    def loss(self, up: Tensor, down: Tensor, bias: Tensor | None) -> Tensor:
        """`E ‖W x + b − (up down x̂ + bias)‖²_G + λ ‖W − up down‖²_G`, on the data and not on moments."""
        own_bias = self.base.linear.bias
        error = self.base.x.double() @ self.weight.T - self.x_hat @ down.T @ up.T
        if own_bias is not None and bias is not None:
            error = error + own_bias.detach().double() - bias
        rest = self.weight - up @ down
        side = self.base.output_side
        return ((error @ side) * error).sum() / len(error) + self.ridge * ((side @ rest) * rest).sum()


def layer_problem(
    metric: str = "fisher",
    shape: tuple[int, int] = (9, 9),
    bias: bool = True,
    correct_bias: bool = True,
    share: float = 0.5,
    rank: int = RANK,
    **settings: Any,
) -> LayerProblem:
    base = make(metric, shape, bias, correct_bias=correct_bias, **settings)
    generator = torch.Generator().manual_seed(5)
    mixing = torch.eye(shape[1]) + 0.3 * torch.randn(shape[1], shape[1], generator=generator)
    x_hat = base.x @ mixing + 0.3 * torch.randn(base.x.shape, generator=generator) + 0.5
    return LayerProblem(base, x_hat.double(), rank, share)


def excess(problem: LayerProblem, product: Tensor) -> float:
    """How much more than the least squares a matrix loses."""
    difference = product - problem.least_squares
    return float(((problem.base.output_side @ difference) * (difference @ problem.damped)).sum())


def root_of(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


@pytest.mark.parametrize(
    ("rank", "share", "expected"),
    [(8, 1.0, 8), (8, 0.25, 2), (8, 0.5, 4), (8, 0.01, 1), (1, 0.25, 1), (1, 1.0, 1), (3, 0.5, 2), (100, 0.25, 25)],
)
def test_the_residual_takes_its_share_of_the_rank_and_at_least_one(rank: int, share: float, expected: int) -> None:
    assert residual_rank(rank, share) == expected


@every_metric
@every_shape
@every_bias
@every_share
def test_the_gradient_of_the_loss_vanishes(
    metric: str, shape: tuple[int, int], bias: bool, correct_bias: bool, share: float
) -> None:
    problem = layer_problem(metric, shape, bias, correct_bias, share)
    up, down, solved_bias = problem.solve()

    def gradients(scale: float) -> list[Tensor]:
        parts = [up[:, problem.kept :] * scale, down[problem.kept :] * scale]
        if problem.base.centered and solved_bias is not None:
            parts.append(solved_bias * scale)
        free = [part.clone().requires_grad_(True) for part in parts]
        whole_up = torch.cat([up[:, : problem.kept], free[0]], 1)
        whole_down = torch.cat([down[: problem.kept], free[1]])
        loss = problem.loss(whole_up, whole_down, free[2] if len(free) > 2 else solved_bias)
        return list(torch.autograd.grad(loss, free))

    for at_solution, beside_it in zip(gradients(1.0), gradients(1.1), strict=True):
        assert at_solution.norm() < 1e-6 * beside_it.norm()  # the closed form's factors are float32


@every_metric
@every_shape
@every_bias
@every_share
def test_no_other_tensors_of_that_rank_lose_less(
    metric: str, shape: tuple[int, int], bias: bool, correct_bias: bool, share: float
) -> None:
    """Eckart and Young: what a rank leaves over are the squares of the last singular values."""
    problem = layer_problem(metric, shape, bias, correct_bias, share)
    up, down, solved_bias = problem.solve()
    missing = problem.least_squares - up[:, : problem.kept] @ down[: problem.kept]
    whitened = root_of(problem.base.output_side) @ missing @ root_of(problem.damped)
    tail = torch.linalg.svdvals(whitened)[residual_rank(problem.rank, share) :]
    assert excess(problem, up @ down) == pytest.approx(float(tail.square().sum()), rel=1e-8)
    # And that excess is what the streamed loss says.
    full_up, full_down = problem.least_squares, torch.eye(shape[1], dtype=torch.float64)
    offset = None
    if solved_bias is not None:
        x_mean, x_hat_mean = problem.base.x.double().mean(0), problem.x_hat.mean(0)
        shift = problem.weight @ x_mean - full_up @ x_hat_mean if problem.base.centered else 0
        offset = problem.base.linear.bias.detach().double() + shift
    measured = float(problem.loss(up, down, solved_bias) - problem.loss(full_up, full_down, offset))
    assert measured == pytest.approx(float(tail.square().sum()), rel=1e-6)


@every_metric
@every_shape
def test_alternating_least_squares_finds_nothing_better(metric: str, shape: tuple[int, int]) -> None:
    problem = layer_problem(metric, shape)
    up, down, _ = problem.solve()
    best = excess(problem, up @ down)
    fixed = up[:, : problem.kept] @ down[: problem.kept]
    missing, c = problem.least_squares - fixed, problem.damped
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        q = torch.randn(residual_rank(problem.rank, problem.share), shape[1], generator=generator, dtype=c.dtype)
        for _ in range(100):
            p = torch.linalg.solve(q @ c @ q.T, q @ c @ missing.T).T
            carried = p.T @ problem.base.output_side
            q = torch.linalg.solve(carried @ p, carried @ missing)
        assert excess(problem, fixed + p @ q) > best * (1 - 1e-9)


@every_shape
@every_bias
def test_descending_along_the_gradient_from_the_closed_form_finds_nothing_better(
    shape: tuple[int, int], bias: bool, correct_bias: bool
) -> None:
    """As the paper does it."""
    problem = layer_problem("fisher", shape, bias, correct_bias)
    best = float(problem.loss(*problem.solve()))
    factorization = problem.base.factorize()
    up, down = factorization.up[:, :RANK].double(), factorization.down[:RANK].double()
    own = problem.base.linear.bias
    start_bias = None if own is None else own.detach().double()
    p, q = (part.clone().requires_grad_(True) for part in (up[:, problem.kept :], down[problem.kept :]))
    free = [p, q]
    if problem.base.centered and start_bias is not None:
        start_bias = start_bias.clone().requires_grad_(True)
        free.append(start_bias)

    def loss() -> Tensor:
        whole = torch.cat([up[:, : problem.kept], p], 1), torch.cat([down[: problem.kept], q])
        return problem.loss(*whole, start_bias)

    optimizer = torch.optim.LBFGS(free, max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    start = float(loss().detach())
    optimizer.step(closure)
    assert start > float(loss().detach()) > best * (1 - 1e-9)


@every_metric
@every_shape
@every_bias
def test_all_of_a_full_rank_is_the_least_squares_optimum(
    metric: str, shape: tuple[int, int], bias: bool, correct_bias: bool
) -> None:
    problem = layer_problem(metric, shape, bias, correct_bias, share=1.0, rank=min(shape))
    up, down, _ = problem.solve()
    assert (up @ down - problem.least_squares).norm() < 1e-5 * problem.least_squares.norm()


@every_metric
@every_shape
@every_share
def test_the_closed_form_keeps_the_rest_of_the_rank_and_both_become_one_factor_pair(
    metric: str, shape: tuple[int, int], share: float
) -> None:
    problem = layer_problem(metric, shape, share=share)
    factorization = problem.base.factorize()
    up, down, _ = problem.solve(factorization)
    assert (up.shape, down.shape) == ((shape[0], RANK), (RANK, shape[1]))
    r = problem.kept
    assert torch.equal(up[:, :r], factorization.up[:, :r].double())
    assert torch.equal(down[:r], factorization.down[:r].double())
    unfolded = problem.x_hat @ down[:r].T @ up[:, :r].T + problem.x_hat @ down[r:].T @ up[:, r:].T
    folded = problem.x_hat @ down.T @ up.T
    assert (folded - unfolded).norm() < 1e-12 * folded.norm()


@every_metric
@every_shape
@every_bias
@every_share
def test_the_loss_is_no_higher_than_that_of_the_closed_form(
    metric: str, shape: tuple[int, int], bias: bool, correct_bias: bool, share: float
) -> None:
    """Whose factors are one of the choices."""
    problem = layer_problem(metric, shape, bias, correct_bias, share)
    factorization = problem.base.factorize()
    linear = problem.base.linear
    closed_bias = factorization.corrected_bias(
        linear.weight.detach(), None if linear.bias is None else linear.bias.detach(), RANK
    )
    closed = factorization.up[:, :RANK].double(), factorization.down[:RANK].double()
    before = problem.loss(*closed, None if closed_bias is None else closed_bias.double())
    assert float(problem.loss(*problem.solve(factorization))) < 0.9 * float(before)


@every_shape
def test_the_corrected_bias_centres_the_error(shape: tuple[int, int]) -> None:
    problem = layer_problem("fisher", shape, mean=10.0)
    up, down, bias = problem.solve()
    assert bias is not None
    output = problem.x_hat @ down.T @ up.T + bias
    wanted = problem.base.x.double() @ problem.weight.T + problem.base.linear.bias.detach().double()
    assert (output - wanted).mean(0).abs().max() < 1e-9 * wanted.abs().max()


@every_shape
def test_an_uncorrected_bias_stays(shape: tuple[int, int]) -> None:
    problem = layer_problem("fisher", shape, correct_bias=False)
    bias = problem.solve()[2]
    assert bias is not None
    assert torch.equal(bias, problem.base.linear.bias.detach().double())
    assert layer_problem("fisher", shape, bias=False).solve()[2] is None


@every_shape
def test_moments_about_zero_are_the_uncentred_ones(shape: tuple[int, int]) -> None:
    problem = layer_problem("fisher", shape)
    found = problem.moments().about_zero()
    x = problem.base.x.double()
    target = x @ problem.weight.T if targets_output(problem.base.layer) else x
    assert torch.allclose(found.covariance, problem.x_hat.T @ problem.x_hat / len(problem.x_hat))
    assert torch.allclose(found.cross, target.T @ problem.x_hat / len(problem.x_hat))


@every_metric
@every_shape
def test_inputs_that_say_nothing_leave_the_closed_form(metric: str, shape: tuple[int, int]) -> None:
    """A dead input has no variance; then only the ridge speaks, and it asks for the dense weight."""
    problem = layer_problem(metric, shape, rank=min(shape), share=0.5)
    problem.x_hat = torch.ones_like(problem.x_hat)
    up, down, bias = problem.solve()
    assert bias is not None
    assert (up @ down - problem.weight).norm() < 1e-5 * problem.weight.norm()
    wanted = problem.weight @ problem.base.x.double().mean(0) + problem.base.linear.bias.detach().double()
    assert torch.allclose(up @ (down @ problem.x_hat[0]) + bias, wanted)


@every_shape
def test_a_weight_without_full_rank_is_no_special_case(shape: tuple[int, int]) -> None:
    problem = layer_problem("weight", shape, share=0.5)
    with torch.no_grad():
        problem.base.linear.weight[:, 0] = 0
        problem.base.linear.weight[0] = 0
    up, down, _ = problem.solve()
    tail = torch.linalg.svdvals(
        (problem.least_squares - up[:, : problem.kept] @ down[: problem.kept]) @ root_of(problem.damped)
    )[residual_rank(RANK, 0.5) :]
    assert excess(problem, up @ down) == pytest.approx(float(tail.square().sum()), rel=1e-6)


@dataclass
class Pruned:
    """A layer that reads only some of the features, in the compressed model, and has only some of its rows."""

    x: Tensor
    x_hat: Tensor
    weight: Tensor
    start: Tensor

    def target(self, centered: bool, on_output: bool = True) -> Target:
        layer = LayerInfo("layer", "o", 0, "input", self.weight.shape[1], self.weight.shape[1])
        bias = torch.linspace(-1, 1, len(self.weight), dtype=torch.float64)
        metric = torch.ones(len(self.weight) if on_output else self.weight.shape[1], dtype=torch.float64)
        return Target((layer,), self.weight, self.start, metric, on_output, bias, centered, None)

    def moments(self) -> CrossMoments:
        centred, target = self.x_hat - self.x_hat.mean(0), self.x - self.x.mean(0)
        covariance, cross = centred.T @ centred / len(self.x), target.T @ centred / len(self.x)
        return CrossMoments(self.x_hat.mean(0), covariance, self.x.mean(0), cross)


def pruned_problem(rows: int = 9, left: int = 6) -> Pruned:
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(400, 9, generator=generator, dtype=torch.float64) + 1
    x_hat = x[:, :left] + 0.2 * torch.randn(400, left, generator=generator, dtype=torch.float64)
    weight = torch.randn(rows, 9, generator=generator, dtype=torch.float64)
    return Pruned(x, x_hat, weight, weight[:, :left])


@pytest.mark.parametrize("rows", [4, 9])
@pytest.mark.parametrize("left", [1, 6, 9])
@pytest.mark.parametrize("centered", [True, False])
def test_a_layer_without_a_rank_is_solved_by_least_squares(rows: int, left: int, centered: bool) -> None:
    problem = pruned_problem(rows, left)
    target = problem.target(centered)
    solved, down, bias = solve_residual(target, None, 0.5, problem.moments(), 1e-6)
    assert down is None
    assert bias is not None
    x_hat = problem.x_hat - problem.x_hat.mean(0) if centered else problem.x_hat
    wanted = (problem.x - problem.x.mean(0) if centered else problem.x) @ problem.weight.T
    ridge = RIDGE * float((x_hat.T @ x_hat).diagonal().mean()) / len(x_hat)
    # The ridge as rows of its own: it asks for the closed form's weight.
    rows_of_ridge = (ridge * len(x_hat)) ** 0.5 * torch.eye(left, dtype=torch.float64)
    both = torch.cat([x_hat, rows_of_ridge]), torch.cat([wanted, rows_of_ridge @ problem.start.T])
    assert torch.allclose(solved, torch.linalg.lstsq(*both).solution.T, rtol=1e-8, atol=1e-8)
    offset = problem.x_hat @ solved.T + bias - problem.x @ problem.weight.T - target.bias
    assert (float(offset.mean(0).norm()) < 1e-9) is centered
    assert torch.equal(bias, target.bias) is not centered


def test_a_layer_whose_input_is_as_it_was_stays_as_it_is() -> None:
    problem = pruned_problem(left=9)
    problem.x_hat = problem.x
    for on_output in (True, False):
        solved, _, bias = solve_residual(problem.target(True, on_output), None, 1.0, problem.moments(), 1e-6)
        assert torch.allclose(solved, problem.weight, atol=1e-9)
        assert torch.allclose(bias, problem.target(True).bias, atol=1e-9)


# ---- a whole model

NEVER_WORSE = [5.0, 4.0, 3.0, 2.0, 1.0, 0.5]
THREE_BLOCKS = tiny_config(num_hidden_layers=3)


def record(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, ...], CrossMoments]:
    """The moments that layers are solved with, alone or together."""
    seen: dict[tuple[str, ...], CrossMoments] = {}
    solve = ResidualCompensation._solve

    def recording(self: ResidualCompensation, target: Target, moments: CrossMoments) -> Any:
        seen[tuple(layer.name for layer in target.layers)] = moments
        return solve(self, target, moments)

    monkeypatch.setattr(ResidualCompensation, "_solve", recording)
    return seen


def changed_layers(case: Case) -> set[tuple[str, ...]]:
    """The layers that the plan changes, q and k together where they share a `down`."""
    names = {(layer.parent, layer.role): layer.name for layer in case.prepared.layers}
    return {
        (names[name, "q"], names[name, "k"]) if "qk_rank" in shape else (name,)
        for name, shape in case.plan.layers.items()
    }


def flow(model: PreTrainedModel, names: set[str], images: ImageSource, batch_size: int = 16) -> dict[str, Tensor]:
    """What every one of these layers reads in a forward pass of the whole model, (tokens, d) float64."""
    model = copy.deepcopy(model).double()
    seen: dict[str, list[Tensor]] = {name: [] for name in names}

    def keep(name: str) -> Any:
        return lambda _, inputs: seen[name].append(inputs[0].flatten(0, -2))

    for name in names:
        model.get_submodule(name).register_forward_pre_hook(keep(name))
    with torch.no_grad():
        for batch in images.batches(None, batch_size):
            model(**model_inputs(model, batch.pixel_values))
    return {name: torch.cat(tokens) for name, tokens in seen.items()}


def close(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).norm() <= 1e-4 * expected.norm() + 1e-7)


def some_ranks(config: Any) -> dict[str, int]:
    """k, v and fc2 of the first block, fc1 of the last."""
    last = config.num_hidden_layers - 1
    names = ["0.attention.k_proj", "0.attention.v_proj", "0.mlp.fc2", f"{last}.mlp.fc1"]
    return {f"vit.layers.{name}": 3 + i for i, name in enumerate(names)}


IN_STAGES = ("SwinForImageClassification", "Swinv2ForImageClassification")
"""Something merges patches between some of their blocks."""
FAMILIES = [
    head
    for head in HEADS
    if head.name in (*IN_STAGES, "YolosModel", "ViTMAEModel", "DINOv3ViTModel", "Siglip2ForImageClassification")
    or str(head) == "Dinov2ForImageClassification-gated"
]
"""Whose blocks see windows, or more than hidden states; whose inputs change between blocks; whose mlp has a gate."""

CASES: dict[str, dict[str, Any]] = {
    **METHODS,
    "skipped block": {"skip_modules": ["layers.1.*"], "keep_ratio": 0.6},
    "skipped first block": {"skip_modules": ["layers.0.*"], "keep_ratio": 0.6},
    "some layers": {"ranks": some_ranks(THREE_BLOCKS)},
    "one kind of layer": {"target_modules": ["o_proj"], "keep_ratio": 0.95},
    "ragged batches": {"batch_size": 7, "metric": "activation"},
    "uncorrected": {"correct_bias": False},
}


def assert_inputs_are_those_of_a_full_pass(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer's inputs depend on the layers before it only, and these are final when it is solved."""
    judged(monkeypatch, NEVER_WORSE)
    student, seen = case.student(), record(monkeypatch)
    case.residual(student).run(checkpoint(), progress=False)
    names = changed_layers(case)
    assert set(seen) == names
    readers = {name: name[0] if len(name) == 1 else f"{name[0].rpartition('.')[0]}.qk_down" for name in names}
    dense = flow(case.dense, {name[0] for name in names}, case.train, case.config.batch_size)
    compressed_ = flow(student, set(readers.values()), case.train, case.config.batch_size)
    differ = [dense[name[0]].shape != compressed_[readers[name]].shape for name in names]
    assert any(differ) or not all(
        torch.allclose(dense[name[0]], compressed_[readers[name]], atol=1e-2) for name in names
    )
    for name, moments in seen.items():
        layer = next(layer for layer in case.prepared.layers if layer.name == name[0])
        x_hat, target = compressed_[readers[name]], dense[name[0]]
        if targets_output(layer):
            target = target @ case.dense.get_submodule(name[0]).weight.detach().double().T
        centred, centred_target = x_hat - x_hat.mean(0), target - target.mean(0)
        assert close(moments.input_mean, x_hat.mean(0))
        assert close(moments.covariance, centred.T @ centred / len(x_hat))
        assert close(moments.target_mean, target.mean(0))
        assert close(moments.cross, centred_target.T @ centred / len(x_hat))


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_inputs_really_come_from_the_compressed_prefix(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_inputs_are_those_of_a_full_pass(compressed(lively(config=THREE_BLOCKS), **settings), monkeypatch)


@pytest.mark.parametrize("head", FAMILIES, ids=str)
@pytest.mark.parametrize("method", ["default", "low rank"])
def test_they_do_in_every_family(head: Head, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = compressed(head.dense(), head.pixels(60), keep_ratio=0.6, **METHODS[method])
    assert_inputs_are_those_of_a_full_pass(case, monkeypatch)


@pytest.mark.parametrize("head", FAMILIES, ids=str)
def test_no_family_ends_worse_than_it_began(head: Head) -> None:
    case = compressed(head.dense(), head.pixels(60), keep_ratio=0.6)
    student = case.student()
    before = state_of(student)
    points = case.residual(student).run(checkpoint(), progress=False)
    best = min(point.loss for point in points)
    assert case.reference.loss_of(student) == pytest.approx(best, rel=1e-4)
    assert bool(changed(before, student)) == (best < points[0].loss)


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_layer_by_layer_the_error_of_the_output_falls(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    case = compressed(lively(config=THREE_BLOCKS), metric="activation", residual_share=share, **LOW_RANK)
    judged(monkeypatch, NEVER_WORSE)
    student, closed_form = case.student(), case.student()
    case.residual(student).run(checkpoint(), progress=False)
    names = set(case.plan.layers)
    assert len(names) == 18
    dense_inputs, inputs = (flow(model, names, case.train) for model in (case.dense, student))
    for name in names:
        linear = copy.deepcopy(case.dense.get_submodule(name)).double().requires_grad_(False)
        x_hat = inputs[name]
        ridge = RIDGE * float(x_hat.var(0, correction=0).mean())
        errors, losses = [], []
        for model in (closed_form, student):
            module = copy.deepcopy(model.get_submodule(name)).double().requires_grad_(False)
            difference = linear.weight - module.up.weight @ module.down.weight
            errors.append(float((linear(dense_inputs[name]) - module(x_hat)).square().sum(-1).mean()))
            losses.append(errors[-1] + ridge * float(difference.square().sum()))
        assert losses[1] <= losses[0] * (1 + 1e-5), name
        if "layers.0.attention.q" not in name and ".0.attention.k" not in name and ".0.attention.v" not in name:
            assert errors[1] < errors[0], name


def full_shapes(method: str) -> dict[str, dict[str, int]]:
    """Every layer in a form of the method that loses nothing."""
    layers: dict[str, dict[str, int]] = {}
    for block in ("vit.layers.0", "vit.layers.1"):
        attention = {f"{block}.attention.{letter}_proj": letter for letter in "qkvo"}
        if method == "low rank":
            layers |= {name: {"rank": 32} for name in (*attention, f"{block}.mlp.fc1", f"{block}.mlp.fc2")}
            continue
        layers |= {f"{block}.mlp.fc1": {"out_features": 96}, f"{block}.mlp.fc2": {"in_features": 96}}
        if method == "pruned":
            layers |= {n: {"in_features" if key == "o" else "out_features": 32} for n, key in attention.items()}
        else:
            layers |= {f"{block}.attention": {"qk_rank": 32}}
            layers |= {
                n: {"in_features" if key == "o" else "out_features": 32} for n, key in attention.items() if key in "vo"
            }
    return layers


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("metric", ["activation", "fisher"])
def test_what_has_lost_nothing_has_nothing_to_win_back(
    method: str, metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = compressed(layers=full_shapes(method), metric=metric, **METHODS[method])
    judged(monkeypatch, NEVER_WORSE)
    student, pixels = case.student(), random_images(16, seed=9)
    case.residual(student).run(checkpoint(), progress=False)
    torch.testing.assert_close(logits(student, pixels), logits(case.dense, pixels), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("method", METHODS)
def test_the_output_of_the_blocks_comes_nearer_on_held_out_images(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = compressed(images=random_images(160), metric="activation", keep_ratio=0.6, **METHODS[method])
    judged(monkeypatch, NEVER_WORSE)
    student, closed_form = case.student(), case.student()
    case.residual(student).run(checkpoint(), progress=False)
    others = ImageSource(list(random_images(64, seed=9)), None, "others")
    dense, *errors = (
        flow(model, {"vit.layernorm"}, others)["vit.layernorm"] for model in (case.dense, closed_form, student)
    )
    before, after = (float((found - dense).square().sum(1).mean()) for found in errors)
    assert after < before


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_ends_no_worse_than_it_began(metric: str, method: str) -> None:
    case = compressed(metric=metric, **METHODS[method])
    student = case.student()
    points = case.residual(student).run(checkpoint(), progress=False)
    assert case.reference.loss_of(student) == pytest.approx(min(point.loss for point in points), rel=1e-4)
    assert case.reference.loss_of(case.student()) == pytest.approx(points[0].loss, rel=1e-4)
    assert [point.stage for point in points] == ["residual"] * 3
    assert [point.images for point in points] == [0, 72, 72]
    assert [point.seconds for point in points] == sorted(point.seconds for point in points)


@pytest.mark.parametrize(
    ("method", "keep_ratio", "left"),
    # What was pruned has been repaired in closed form and leaves less to win back.
    [("low rank", 0.25, 0.5), ("default", 0.15, 0.95)],
)
def test_a_trained_model_wins_back_much_of_its_loss(method: str, keep_ratio: float, left: float) -> None:
    settings: dict[str, Any] = {
        "keep_ratio": keep_ratio,
        "rank_multiple": 2,
        "precision": "float32",
        "measuring_images": 0,
    }
    config = CompressionConfig(**settings, **METHODS[method], compensation="residual")
    compressor = ViTCompressor(config, progress=False)
    compressor.compress(DIGITS / "model", DIGITS / "calibration.parquet")
    done = compressor.report.compensation  # type: ignore[union-attr]
    assert done is not None
    assert done.loss_after < left * done.loss_before


@pytest.mark.parametrize("method", METHODS)
def test_shapes_stay_and_only_compressed_layers_change(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = compressed(**METHODS[method], keep_ratio=0.6)
    student = case.student()
    before, shapes = state_of(student), {name: tensor.shape for name, tensor in student.state_dict().items()}
    judged(monkeypatch, NEVER_WORSE)
    case.residual(student).run(checkpoint(), progress=False)
    owners = tuple(f"{name}." for name in compressed_modules(student))
    assert changed(before, student)
    assert all(name.startswith(owners) for name in changed(before, student))
    assert {name: tensor.shape for name, tensor in student.state_dict().items()} == shapes


def test_ranks_and_parameters_stay_and_only_factored_layers_change(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = some_ranks(tiny_config())
    case = compressed(ranks=ranks)
    student = case.student()
    before, count = state_of(student), student.num_parameters()
    judged(monkeypatch, NEVER_WORSE)
    case.residual(student).run(checkpoint(), progress=False)
    assert {name.rsplit(".", 2)[0] for name in changed(before, student)} == set(ranks)
    assert student.num_parameters() == count
    factored = {name: module.rank for name, module in student.named_modules() if isinstance(module, FactoredLinear)}
    assert factored == ranks


@pytest.mark.parametrize("method", ["default", "low rank"])
def test_up_and_down_have_equal_norms_per_component(method: str) -> None:
    case = compressed(metric="activation", **METHODS[method])
    student = case.student()
    case.residual(student).run(checkpoint(), progress=False)
    pairs = [
        (module.up.weight, module.down.weight) for module in student.modules() if isinstance(module, FactoredLinear)
    ]
    for name, shape in case.plan.layers.items():
        if "qk_rank" in shape:
            attention = student.get_submodule(name)
            pairs.append((torch.cat([attention.q_proj.weight, attention.k_proj.weight]), attention.qk_down.weight))
    assert pairs
    for up, down in pairs:
        assert torch.allclose(up.norm(dim=0), down.norm(dim=1), rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_saved_and_reloaded_it_is_the_same_model(method: str, tmp_path: Path) -> None:
    case = compressed(metric="activation", **METHODS[method])
    student = case.student()
    case.residual(student).run(checkpoint(), progress=False)
    student.save_pretrained(tmp_path)
    reloaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    pixels = random_images(4, seed=9)
    assert torch.equal(logits(reloaded, pixels), logits(student, pixels))


OTHERS: dict[str, Any] = {
    "DeiT": lambda: lively(DeiTForImageClassification, DeiTConfig(**TINY)),
    "headless": lambda: lively(ViTModel),
    "without bias": lambda: lively(config=tiny_config(qkv_bias=False)),
    "one block": lambda: lively(config=tiny_config(num_hidden_layers=1)),
    "five blocks": lambda: lively(config=tiny_config(num_hidden_layers=5)),
    "narrow hidden layer": lambda: lively(config=tiny_config(intermediate_size=24)),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make_dense", OTHERS.values(), ids=OTHERS)
def test_other_models_work(make_dense: Any, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = compressed(make_dense(), **METHODS[method])
    student, seen = case.student(), record(monkeypatch)
    before = state_of(student)
    points = case.residual(student).run(checkpoint(), progress=False)
    assert set(seen) == changed_layers(case)
    assert len(points) == 1 + min(4, case.dense.config.num_hidden_layers)
    assert bool(changed(before, student)) == (min(point.loss for point in points) < points[0].loss)


def test_the_dense_model_and_the_students_modes_stay_as_they_were() -> None:
    case = compressed()
    student = case.student()
    case.dense.train()
    case.dense.vit.layers[0].eval()
    case.dense.classifier.requires_grad_(False)
    before, attention = state_of(case.dense), case.dense.config._attn_implementation
    case.residual(student).run(checkpoint(), progress=False)
    assert not changed(before, case.dense)
    assert case.dense.training
    assert not case.dense.vit.layers[0].training
    assert [name for name, p in case.dense.named_parameters() if not p.requires_grad] == [
        "classifier.weight",
        "classifier.bias",
    ]
    for model in (case.dense, student):
        assert model.config._attn_implementation == attention
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in student.parameters())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_dense_model_in_half_precision_works(precision: str) -> None:
    case = compressed(lively().to(torch.bfloat16), metric="activation", precision=precision)
    student = case.student().float()
    points = case.residual(student).run(checkpoint(), progress=False)
    assert points[-1].loss < points[0].loss


# ---- memory


def test_no_more_images_are_used_than_fit_into_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """17 tokens of 32 floats in two models are 4352 bytes an image, and 14 batches of 16 are the most in a megabyte."""
    monkeypatch.setattr(block_inputs, "CACHE_BYTES", 1_000_000)
    case = compressed(images=random_images(272), metric="weight")
    points = case.residual(case.student()).run(checkpoint(), progress=False)
    assert points[-1].images == 224
    assert 224 * 4352 <= 1_000_000 < 240 * 4352


def test_one_batch_is_used_even_where_it_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_inputs, "CACHE_BYTES", 1_000_000)
    case = compressed(images=random_images(280), metric="weight", batch_size=256)
    points = case.residual(case.student()).run(checkpoint(), progress=False)
    assert points[-1].images == 256


# ---- never worse


def test_a_result_that_is_worse_is_taken_back_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    case = compressed()
    student = case.student()
    before = state_of(student)
    judged(monkeypatch, [1.0, 1.1, 1.01])
    points = case.residual(student).run(checkpoint(), progress=False)
    assert [point.loss for point in points] == [1.0, 1.1, 1.01]
    assert not changed(before, student)


@pytest.mark.parametrize("losses", [[float("nan")] * 3, [1.0, float("nan"), float("inf")]])
def test_losses_that_are_no_numbers_are_not_better(losses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    case = compressed()
    student = case.student()
    before = state_of(student)
    judged(monkeypatch, losses)
    case.residual(student).run(checkpoint(), progress=False)
    assert not changed(before, student)


def test_the_best_of_the_judged_states_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight blocks, judged after every second one; best after four."""
    case = compressed(lively(config=tiny_config(num_hidden_layers=8)))
    student = case.student()
    before = state_of(student)
    judged(monkeypatch, [1.0, 0.9, 0.8, 0.95, 0.85])
    case.residual(student).run(checkpoint(), progress=False)
    assert {int(name.split(".")[2]) for name in changed(before, student)} == {0, 1, 2, 3}


# ---- interruptions


def interrupt(monkeypatch: pytest.MonkeyPatch, after: int) -> list[int]:
    """Break off once `after` blocks are solved; the list counts all that are."""
    solved: list[int] = []
    solve = ResidualCompensation._solve_block

    def solving(self: ResidualCompensation, *args: Any) -> Any:
        if len(solved) == after:
            raise KeyboardInterrupt
        solved.append(1)
        return solve(self, *args)

    monkeypatch.setattr(ResidualCompensation, "_solve_block", solving)
    return solved


@pytest.mark.parametrize("after", [0, 1, 3, 4])
def test_a_run_that_was_interrupted_ends_like_one_that_was_not(
    after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = compressed(lively(config=tiny_config(num_hidden_layers=5)), skip_modules=["layers.3.*"], keep_ratio=0.5)
    whole = case.student()
    expected = case.residual(whole).run(checkpoint(), progress=False)
    with monkeypatch.context() as patch:
        interrupt(patch, after)
        with pytest.raises(KeyboardInterrupt):
            case.residual(case.student()).run(checkpoint(tmp_path / "stage"), progress=False)
    student = case.student()
    with monkeypatch.context() as patch:
        solved = interrupt(patch, 99)
        points = case.residual(student).run(checkpoint(tmp_path / "stage"), progress=False)
    assert len(solved) == 5 - after
    assert not changed(state_of(whole), student)
    assert [(p.stage, p.images, p.loss) for p in points] == [(p.stage, p.images, p.loss) for p in expected]


@pytest.mark.parametrize("after", [1, 2, 3])
@pytest.mark.parametrize("head", [head for head in FAMILIES if head.name in IN_STAGES], ids=str)
def test_so_does_one_that_goes_on_in_another_stage(
    head: Head, after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = compressed(head.dense(), head.pixels(60), keep_ratio=0.6)
    judged(monkeypatch, NEVER_WORSE)
    whole, student = case.student(), case.student()
    case.residual(whole).run(checkpoint(), progress=False)
    judged(monkeypatch, NEVER_WORSE)
    with monkeypatch.context() as patch:
        interrupt(patch, after)
        with pytest.raises(KeyboardInterrupt):
            case.residual(case.student()).run(checkpoint(tmp_path / "stage"), progress=False)
    case.residual(student).run(checkpoint(tmp_path / "stage"), progress=False)
    assert not changed(state_of(whole), student)


@pytest.mark.parametrize("losses", [[1.0, 1.2, 1.1], [1.0, 0.8, 0.9], [1.0, 0.9, 0.8]])
def test_a_finished_run_is_not_run_again(losses: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = compressed()
    judged(monkeypatch, losses)
    first, second = case.student(), case.student()
    points = case.residual(first).run(checkpoint(tmp_path / "stage"), progress=False)
    interrupt(monkeypatch, 0)
    again = case.residual(second).run(checkpoint(tmp_path / "stage"), progress=False)
    assert again == points
    assert not changed(state_of(first), second)


def test_two_runs_are_alike_to_the_bit() -> None:
    case = compressed()
    first, second = case.student(), case.student()
    for student in (first, second):
        case.residual(student).run(checkpoint(), progress=False)
    assert not changed(state_of(first), second)


# ---- what cannot be used


def broken(model: PreTrainedModel, name: str, value: float) -> None:
    with torch.no_grad():
        module: nn.Module = model.get_submodule(name)
        next(module.parameters()).flatten()[0] = value


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_inputs_that_are_not_finite_are_named_with_what_to_do(value: float) -> None:
    case = compressed()
    student = case.student()
    broken(student, "vit.layers.1.layernorm_after", value)
    with pytest.raises(CompensationError, match=r"layers\.1\.mlp\.fc1'.*precision=\"float32\""):
        case.residual(student).run(checkpoint(), progress=False)


def test_targets_that_are_not_finite_are_named_with_what_to_do() -> None:
    case = compressed()
    broken(case.dense, "vit.layers.1.mlp.fc2", float("inf"))
    with pytest.raises(CompensationError, match=r"layers\.1\.mlp\.fc2'.*precision=\"float32\""):
        case.residual(case.student()).run(checkpoint(), progress=False)


def test_images_of_which_none_can_be_read_are_refused() -> None:
    case = compressed()
    case.train = ImageSource([b"no image"] * 8, None, "the images")
    with pytest.raises(DataError, match="None of the 8 images"):
        case.residual(case.student()).run(checkpoint(), progress=False)


def test_images_that_cannot_be_read_are_left_out() -> None:
    case = compressed()
    images = list(case.train.images)
    case.train = ImageSource([*images[:5], b"no image", *images[5:20], b"none", *images[20:30]], None, "the images")
    points = case.residual(case.student()).run(checkpoint(), progress=False)
    assert points[-1].images == 30
