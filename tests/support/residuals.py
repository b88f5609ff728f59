"""Models compensated layer by layer."""

from typing import Any

import pytest

from hf_vitcompress.evaluation.reference import Reference
from support.zoo import HEADS


def judged(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> None:
    """The held-out images say this."""
    left = list(losses)
    monkeypatch.setattr(Reference, "loss_of", lambda *_: left.pop(0))


NEVER_WORSE = [5.0, 4.0, 3.0, 2.0, 1.0, 0.5]


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
