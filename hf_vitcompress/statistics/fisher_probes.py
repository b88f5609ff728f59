"""Scalars whose gradients make the Fisher: random signs on a model's own outputs, or its task's loss."""

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..architectures.outputs import Term, thinned_classes
from ..errors import CalibrationError


def probe_losses(terms: Sequence[Term], probes: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Scalars whose gradients' second moment is the curvature of `divergence`, one per probe.

    Of classes: `φ = Σ_images Σ_items items^-½ Σ_c ε_c √p_c · log p_c` with `√p` held constant and random signs ε, so
    that `E_ε[∇φ ∇φᵀ]` is the mean over the items of `Σ_c p_c ∇log p_c ∇log p_cᵀ`: the Fisher with its expectation over
    labels taken exactly, without labels. The signs of the probes are rows of a Hadamard matrix over the classes sorted
    by probability (times one random sign per class and item), so that the cross terms of an item's likeliest classes
    cancel exactly and not just on average.

    Of features: `φ = Σ_images Σ_j ε_j √w_j y_j / ‖y‖`, `y` the image's output; the second moment is then the
    Gauss-Newton matrix of half the relative squared error.

    Signs are independent, so that the moments of several terms add. Of many items, such as the pixels of an image, a
    part that lies evenly over all stands for them, see `thinned_classes`.
    """
    signed, ranks = zip(*(_signed(term, generator) for term in thinned_classes(terms)), strict=True)
    hadamard = _hadamard(probes).to(terms[0].values.device)
    for probe in range(probes):
        yield torch.stack(
            [(hadamard[probe][rank % len(hadamard)] * own).sum() for own, rank in zip(signed, ranks, strict=True)]
        ).sum()


def _signed(term: Term, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """What the probes sum up to other signs, and the row's place of each value in the Hadamard matrix."""
    values = term.values
    if term.classes:
        values = values.log_softmax(-1)
        weights = values.detach().exp().sqrt() * values.shape[1] ** -0.5
        # Ranks are the inverse of the order. 32 bits hold them, and no narrower integers can be indices.
        order = weights.argsort(-1, descending=True)
        places = torch.arange(values.shape[-1], dtype=torch.int32, device=values.device).expand_as(order)
        rank = torch.empty_like(order, dtype=torch.int32).scatter_(-1, order, places)
    else:
        weights = (1 / values.detach().norm(dim=-1, keepdim=True).clamp_min(1e-12)).expand_as(values)
        weights = weights if term.weight is None else weights * term.weight.sqrt()
        rank = torch.arange(values.shape[-1], dtype=torch.int32, device=values.device).expand_as(values)
    signs = torch.randint(0, 2, values.shape, generator=generator, dtype=torch.int8).to(values.device) * 2 - 1
    return signs * weights * values, rank


def _hadamard(rows: int) -> Tensor:
    matrix = torch.ones(1, 1, dtype=torch.float32)
    while len(matrix) < rows:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


def takes_targets(model: PreTrainedModel) -> bool:
    """Whether the model computes its own loss from targets, called `labels`; some need none for theirs."""
    return "labels" in inspect.signature(model.forward).parameters


def task_loss(model: PreTrainedModel, inputs: Mapping[str, Tensor], targets: Any) -> Tensor:
    """The loss that the model itself computes for `targets`, a scalar.

    Raises:
        CalibrationError: it computes none.
    """
    result: Any = {}
    with contextlib.suppress(NotImplementedError):
        result = model(**inputs, **({"labels": targets} if takes_targets(model) else {}))
    loss = result.get("loss") if isinstance(result, Mapping) else None
    if loss is None:
        raise CalibrationError(
            f'{type(model).__name__} computes no loss of its own: calibrate it with calibration_loss="output", which '
            "compares outputs and needs no targets."
        )
    return loss.float()
