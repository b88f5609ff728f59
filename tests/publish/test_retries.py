"""What is tried again, how long that waits, and what a person is told in the end."""

from collections.abc import Callable
from json import JSONDecodeError
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import (
    BadRequestError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hf_vitcompress.publish import retries
from hf_vitcompress.publish.retries import LONGEST_WAIT, explained, is_transient, persistently, retry_after, status_of


def answer(status: int, kind: type[HfHubHTTPError] = HfHubHTTPError, text: str = "Not today", **headers: str) -> Any:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    response: Any = SimpleNamespace(status_code=status, headers=named, request=None)
    return kind(f"{status} {text}\nmore about it", response=response)


def caused(outer: Exception, cause: Exception) -> Exception:
    outer.__cause__ = cause
    return outer


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    seconds: list[float] = []
    monkeypatch.setattr(retries, "time", SimpleNamespace(sleep=seconds.append))
    return seconds


def failing(*errors: Exception) -> Callable[[], str]:
    """Raises these one after the other, then works."""
    left = list(errors)

    def call() -> str:
        if left:
            raise left.pop(0)
        return "done"

    return call


# ---- trying again


@pytest.mark.parametrize(
    "error",
    [
        *(answer(status) for status in (408, 429, 500, 502, 503, 504)),
        HTTPError("broken"),
        ConnectionError("broken"),
        JSONDecodeError("Expecting value", "<html>", 0),
        caused(RuntimeError("Error while uploading 'model.safetensors'"), HTTPError("broken")),
        caused(RuntimeError("Error while uploading 'model.safetensors'"), answer(503)),
        caused(LocalEntryNotFoundError("An error happened"), answer(502)),
    ],
    ids=repr,
)
def test_what_passes_is_tried_again(error: Exception, waits: list[float]) -> None:
    assert persistently(failing(error, error)) == "done"
    assert waits == [1.0, 2.0]


@pytest.mark.parametrize(
    "error",
    [
        *(answer(status) for status in (400, 401, 402, 403, 404, 409, 412, 413)),
        OfflineModeIsEnabled("offline"),
        RuntimeError("a bug"),
        ValueError("a bug"),
        LocalTokenNotFoundError("no token"),
        caused(LocalEntryNotFoundError("offline"), OfflineModeIsEnabled("offline")),
        caused(RuntimeError("Error while uploading"), answer(403)),
    ],
    ids=repr,
)
def test_what_does_not_pass_is_not(error: Exception, waits: list[float]) -> None:
    with pytest.raises(type(error)) as raised:
        persistently(failing(error))
    assert raised.value is error
    assert waits == []


def test_it_gives_up_with_the_last_error(waits: list[float]) -> None:
    errors = [answer(503, text=str(number)) for number in range(5)]
    with pytest.raises(HfHubHTTPError, match="503 4"):
        persistently(failing(*errors))
    assert waits == [1.0, 2.0, 4.0, 8.0]


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (answer(429), True),
        *((answer(status), False) for status in (408, 500, 502, 503, 504)),
        (HTTPError("broken"), False),
        (JSONDecodeError("Expecting value", "<html>", 0), False),
    ],
    ids=repr,
)
def test_what_must_not_happen_twice_is_tried_again_only_where_nothing_was_done(
    error: Exception, again: bool, waits: list[float]
) -> None:
    call = failing(error)
    if again:
        assert persistently(call, repeatable=False) == "done"
    else:
        assert is_transient(error)
        with pytest.raises(type(error)):
            persistently(call, repeatable=False)
        assert waits == []


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry_After": "7"}, 7.0),
        ({"Retry_After": "0"}, 0.0),
        ({"Retry_After": "100000"}, LONGEST_WAIT),
        ({"Retry_After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 1.0),
        ({"Retry_After": "-1"}, 1.0),
        ({"RateLimit": '"api";r=0;t=55'}, 55.0),
        ({"RateLimit": '"api";r=0;t=55', "Retry_After": "3"}, 3.0),
        ({"RateLimit": "nonsense"}, 1.0),
        ({}, 1.0),
    ],
)
def test_it_waits_as_it_is_told(headers: dict[str, str], seconds: float, waits: list[float]) -> None:
    assert persistently(failing(answer(429, **headers))) == "done"
    assert waits == [seconds]
    assert retry_after(ConnectionError(), 4.0) == 4.0


def test_waiting_is_announced(waits: list[float], caplog: pytest.LogCaptureFixture) -> None:
    persistently(failing(answer(503, Retry_After="9"), ConnectionError()))
    first, second = caplog.messages
    assert first == "The Hub answered 503; trying again in 9 s (1 of 4)."
    assert second == "The connection broke; trying again in 2 s (2 of 4)."


def test_the_status_is_found_behind_other_errors() -> None:
    assert status_of(caused(RuntimeError(), caused(OSError(), answer(502)))) == 502
    assert status_of(ConnectionError()) is None
    assert status_of(ValueError()) is None


# ---- telling

METADATA = 'Invalid metadata in README.md.\n- "license" must be one of [' + "apache-2.0, " * 200 + "]"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (answer(401), ["token", "hf auth login"]),
        (answer(401, RepositoryNotFoundError), ["token", "hf auth login"]),
        (LocalTokenNotFoundError("none"), ["token", "hf auth login"]),
        (answer(403), ["may not write", "read-only"]),
        (answer(404, RepositoryNotFoundError), ["no such 'me/x'", "Nothing on this disk"]),
        (answer(404, RevisionNotFoundError), ["no such revision"]),
        (answer(409), ["somebody else", "repeated"]),
        (answer(412), ["somebody else", "repeated"]),
        (answer(400, BadRequestError), ["answered 400", "400 Not today."]),
        (answer(503), ["answered 503", "repeated"]),
        (caused(RuntimeError("Error while uploading"), answer(500)), ["answered 500", "500 Not today."]),
        (caused(LocalEntryNotFoundError("An error happened"), answer(502)), ["answered 502"]),
        (ConnectionError(), ["could not be reached"]),
        (OfflineModeIsEnabled("Offline mode is enabled."), ["could not be reached", "Offline mode is enabled."]),
        (caused(ValueError(METADATA), answer(400, BadRequestError)), ["refuses the card", '"license" must be one of']),
        (PermissionError("config.json"), ["'folder' cannot be published: config.json."]),
        (ValueError("`size` is not in a valid format"), ["'folder' cannot be published", "`size`"]),
        (RuntimeError(), ["cannot be published"]),
    ],
    ids=lambda value: repr(value)[:40] if isinstance(value, Exception) else "",
)
def test_a_person_is_told_in_one_short_line(error: Exception, words: list[str]) -> None:
    text = explained(error, "me/x", "folder")
    for word in words:
        assert word in text
    assert "\n" not in text
    assert len(text) < 600
    assert text.endswith((".", ")"))
    assert ".." not in text
