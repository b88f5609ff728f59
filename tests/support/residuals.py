"""Models compensated layer by layer."""

import pytest

from hf_vitcompress.evaluation.reference import Reference


def judged(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> None:
    """The held-out images say this."""
    left = list(losses)
    monkeypatch.setattr(Reference, "loss_of", lambda *_: left.pop(0))
