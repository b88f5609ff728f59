"""Figures as people read them."""

import pytest

from hf_vitcompress.runtime.text import seconds_text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0.0"), (0.26, "0.3"), (9.94, "9.9"), (9.96, "10"), (61.4, "61"), (3600.0, "3600")]
)
def test_short_durations_have_a_decimal(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text
