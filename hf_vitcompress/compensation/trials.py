"""A search over plans of which each is compensated for a while before it is measured."""

import json

from ..evaluation.reference import Reference
from ..images.images import ImageSource
from ..planning.building import build_model
from ..planning.plan import CompressionPlan
from ..planning.planner import Planner
from ..planning.search import search_accuracy
from ..runtime.run import Run
from .compensator import Compensator

TRIAL_SHARE = 1 / 8
"""How much of the compensation each candidate gets."""


def plan_for_accuracy(
    planner: Planner, validation: ImageSource, run: Run, compensator: Compensator | None
) -> CompressionPlan:
    """The smallest plan that loses no more than `max_accuracy_drop`.

    Args:
        validation: images that the loss is measured on.
        compensator: of candidates, each for a part of the time that the chosen plan will get; `None`: the closed form.
    """
    reference = Reference.of(planner.subject, validation, run)
    plan = search_accuracy(planner, reference, run)
    return plan if compensator is None else search_compensated(compensator, reference, plan)


def search_compensated(compensator: Compensator, reference: Reference, known: CompressionPlan) -> CompressionPlan:
    """The smallest plan that holds `max_accuracy_drop` with compensation.

    No candidate is compensated twice, however often the search is interrupted, where the compensator keeps checkpoints.

    Args:
        reference: the dense model on the validation images.
        known: a plan that holds it without compensation.
    """
    planner, run = compensator.planner, compensator.work
    kept = compensator.checkpoint_for("search", validation=reference)
    drops: dict[str, float] = kept.load() or {}

    def drop_of(candidate: CompressionPlan) -> float:
        key = json.dumps(candidate.layers, sort_keys=True)
        if key not in drops:
            student = build_model(planner.subject.model, candidate, planner.groups, run.accelerator)
            compensator.run(student, candidate, share=TRIAL_SHARE)
            drops[key] = reference.drop_of(student)
            kept.save(drops)
        return drops[key]

    return search_accuracy(planner, reference, run, drop_of, known)
