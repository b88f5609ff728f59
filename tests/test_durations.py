"""Durations are read as people write them, and written as they are read."""

import pytest

from hf_vitcompress.durations import Duration
from hf_vitcompress.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "minutes", "epochs"),
    [
        ("5 minutes", 5.0, None),
        ("5min", 5.0, None),
        (" .5 minute ", 0.5, None),
        ("1.5 mins", 1.5, None),
        ("1 epoch", None, 1.0),
        ("2epochs", None, 2.0),
    ],
)
def test_it_is_read_as_people_write_it(text: str, minutes: float | None, epochs: float | None) -> None:
    duration = Duration.parse(text)
    assert (duration.minutes, duration.epochs) == (minutes, epochs)
    assert Duration.parse(str(duration)) == duration


@pytest.mark.parametrize(
    "text", ["", "5", "0 minutes", "-1 epochs", "5 hours", "five minutes", "1e400 minutes", "5 minutes 3"]
)
def test_what_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"no duration.*'2 epochs'"):
        Duration.parse(text)


def test_a_part_keeps_the_unit() -> None:
    assert str(Duration(4.0, "epochs").scaled(1 / 8)) == "0.5 epochs"
