"""Fixtures of the tests of statistics."""

import pytest

from hf_vitcompress.statistics import accumulators, calibration, observer


@pytest.fixture
def every_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """No moment is of a part of the tokens only."""
    monkeypatch.setattr(observer, "TOKENS_PER_FEATURE", 1e9)
    monkeypatch.setattr(accumulators, "GRADIENTS_PER_FEATURE", 1e9)


@pytest.fixture
def eager_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "CHECKPOINT_SECONDS", -1.0)
