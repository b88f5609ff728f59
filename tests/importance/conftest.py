"""Steps that are small enough for the tests' few images."""

import pytest


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_vitcompress.importance.learning.BATCH_SIZE", 12)
