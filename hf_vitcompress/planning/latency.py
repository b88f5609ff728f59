"""Plans for a latency: predicted from a profile, timed, and planned again where the two differ."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from transformers import PreTrainedModel

from ..config import LATENCY_BUDGETS, CompressionConfig
from ..errors import BudgetError, BudgetWarning
from ..evaluation.latency import Latency, LatencyReport, alternate_latency
from ..model.assembly import assembled, empty_model
from ..profiling.profile import LatencyProfile
from ..runtime.distributed import from_main, local_work
from ..runtime.run import Run
from .clock import Clock
from .plan import CompressionPlan
from .planner import Planner
from .profiles import forward_pass, rounds_for
from .tokens import Merged

TOLERANCE, ATTEMPTS = 0.05, 4
"""How far a measured latency may be from the predicted one, as a share; and how many plans are timed at most."""

EXCEEDED = 0.02
"""By how much a measured latency may exceed its budget, as a share: what timing alone can be wrong by."""


def plan_for_latency(planner: Planner, run: Run, profile: LatencyProfile) -> CompressionPlan:
    """The plan of the lowest predicted loss that meets the budgets of `run.config`, those of time as measured.

    Returns:
        the plan, with what was asked, predicted and measured in `latency`.

    Raises:
        BudgetError: no plan is fast enough.
    """
    every = planner.schedules(run.config)
    found: list[CompressionPlan] = []
    failure: BudgetError | None = None
    # A clock that is right about plans with all tokens is not yet right about those with fewer.
    for schedules in filter(None, (every[:1], every[1:])):
        try:
            found += _timed_plans(planner, run, profile, schedules)
        except BudgetError as error:
            failure = failure or error
    if failure is not None and not found:
        raise failure
    best = best_of(found)
    _check_speed(best, len(found))
    return best


def _timed_plans(
    planner: Planner, run: Run, profile: LatencyProfile, schedules: Sequence[Merged]
) -> list[CompressionPlan]:
    """Plans with one of these schedules, each made after the former was timed, until prediction and timing agree.

    Raises:
        BudgetError: another budget than one of time is out of reach.
    """
    clock = Clock.of(profile, planner.dense_choices, share_of(run.config, profile.dense))
    found: list[CompressionPlan] = []
    with run.bar("timing", "plans", total=ATTEMPTS) as bar:
        while len(found) < ATTEMPTS:
            plan = _as_predicted(planner, run.config, clock, schedules)
            choices, known = planner.taken(plan), next((one for one in found if one == plan), None)
            if known is None:
                latency = timed_plan(planner, plan, run)
                bar.update()
            else:  # timed before, and predicted better by now
                assert known.latency is not None
                latency = known.latency.measured
                found.remove(known)
            asked = share_of(run.config, latency.dense)
            plan.latency = LatencyReport(asked, clock.ratio(choices), latency, run.config.max_latency_ms)
            found.append(plan)
            if known is not None or (plan.latency.error <= TOLERANCE and plan.latency.excess <= EXCEEDED):
                break
            clock = replace(clock.corrected(choices, latency.ratio), limit=asked, pace=latency.dense / profile.dense)
    return found


def _as_predicted(
    planner: Planner, config: CompressionConfig, clock: Clock, schedules: Sequence[Merged]
) -> CompressionPlan:
    """A plan that the clock finds fast enough, or the fastest, which then has to be timed: one timing may be wrong.

    Raises:
        BudgetError: another budget is out of reach.
    """
    try:
        return planner.plan(config, exact=False, clock=clock, schedules=schedules)
    except BudgetError:
        if set(config.budgets) - set(LATENCY_BUDGETS):
            raise
        return planner.fastest(config, clock, schedules)


def _check_speed(best: CompressionPlan, timed: int) -> None:
    """Refuse a plan that is too slow; warn of one that is so by little, or that was timed otherwise than predicted.

    Raises:
        BudgetError: it exceeds its budget by more than `TOLERANCE`.
    """
    assert best.latency is not None
    latency, measured = best.latency, best.latency.measured
    reached = (
        f"the fastest of the plans that were timed ({timed}) takes {1000 * measured.compressed:.4g} ms (speed-up "
        f"{1 / measured.ratio:.2f} over the dense {1000 * measured.dense:.4g} ms)"
    )
    if latency.excess > TOLERANCE:
        raise BudgetError(
            f"{latency.wish} is out of reach: {reached}. Ask for less, or let more layers be compressed (skip_modules, "
            "target_modules, mlp, attention). If other work kept the device busy, try again without it."
        )
    problem = ""
    if latency.excess > EXCEEDED:
        problem = f"{latency.wish} was asked for, and {reached}"
    elif latency.error > TOLERANCE:
        problem = (
            f"The plan was predicted to have a speed-up of {1 / latency.predicted:.2f}, and timing it gave "
            f"{1 / measured.ratio:.2f}"
        )
    if problem:
        warnings.warn(
            f"{problem}. If other work kept the device busy, try again without it.", BudgetWarning, stacklevel=3
        )


def best_of(plans: Sequence[CompressionPlan]) -> CompressionPlan:
    """Of those that are fast enough the best, or the fastest of all."""

    def order(plan: CompressionPlan) -> tuple[bool, float]:
        assert plan.latency is not None
        late = plan.latency.excess > EXCEEDED
        return late, plan.latency.measured.ratio if late else plan.predicted_loss or -plan.latency.measured.ratio

    return min(plans, key=order)


def share_of(config: CompressionConfig, dense: float) -> float:
    """Share of the dense model's latency, in seconds for a batch, that `config` leaves a plan."""
    limits = [1.0]
    if config.speedup is not None:
        limits.append(1 / config.speedup)
    if config.max_latency_ms is not None:
        limits.append(config.max_latency_ms / 1000 / dense)
    return min(limits)


def timed_plan(planner: Planner, plan: CompressionPlan, run: Run) -> Latency:
    """Latency of a plan's model and of the dense one, alternately; of its shapes, which need no solution."""
    with local_work(run.accelerator, "Timing a plan"):
        latency = None
        if run.is_main:
            dense, size = planner.subject.model, run.config.latency_batch_size
            small = _of_any_weights(dense, plan)
            large, little = (forward_pass(model, size, planner.image_shape) for model in (dense, small))
            latency = alternate_latency(large, little, size, rounds_for(large()), dense.device)
    return cast(Latency, from_main(run.accelerator, latency))


def _of_any_weights(dense: PreTrainedModel, plan: CompressionPlan) -> PreTrainedModel:
    """The model of a plan with random weights where the plan changes them; the others are the dense model's memory."""
    kept = {name: tensor.shape for name, tensor in dense.state_dict().items()}
    state = {
        name: torch.empty(tensor.shape, dtype=tensor.dtype, device=dense.device).normal_(std=0.02)
        for name, tensor in empty_model(dense, plan.layers, plan.tokens).state_dict().items()
        if kept.get(name) != tensor.shape
    }
    return assembled(dense, plan.layers, state, share_memory=True, tokens=plan.tokens)
