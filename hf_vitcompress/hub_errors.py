"""Errors of the Hub's client: which are worth another try, and what to tell a person."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
from transformers.utils import logging

HTTP_ERRORS: tuple[type[Exception], ...] = (HfHubHTTPError.__bases__[0], HfHubHTTPError, ConnectionError)
"""All errors of the client's HTTP library, whichever it is: broken connections, timeouts and bad answers."""

CLIENT_ERRORS: tuple[type[Exception], ...] = (*HTTP_ERRORS, RuntimeError)
"""These, and what uploads of large files wrap them in."""

TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})
CONFLICTS = frozenset({409, 412})
LONGEST_WAIT = 60.0

T = TypeVar("T")

logger = logging.get_logger(__name__)


def persistently(call: Callable[[], T], attempts: int = 5, lost_answers: bool = True) -> T:
    """The result of `call`, tried again where the Hub is busy or the connection breaks.

    Waits as long as the Hub asks for (Retry-After), at most a minute, otherwise twice as long each time.

    Args:
        lost_answers: whether to try again when a connection broke, too, where the Hub may have done what was asked.
    """
    for attempt in range(1, attempts + 1):
        try:
            return call()
        except CLIENT_ERRORS as error:
            cause = http_error(error)
            status = status_of(error)
            again = lost_answers if status is None else status in TRANSIENT
            if cause is None or not again or attempt == attempts:
                raise
            wait = retry_after(cause, default=2.0 ** (attempt - 1))
            what = "The connection broke" if status is None else f"The Hub answered {status}"
            logger.warning(f"{what}; trying again in {wait:.0f} s ({attempt} of {attempts - 1}).")
            time.sleep(wait)
    raise AssertionError("unreachable")


def http_error(error: BaseException | None) -> BaseException | None:
    """The HTTP error behind an error."""
    while error is not None and not isinstance(error, HTTP_ERRORS):
        error = error.__cause__
    return error


def status_of(error: BaseException) -> int | None:
    """The HTTP status behind an error; `None` where there was no answer."""
    response = getattr(http_error(error), "response", None)
    return None if response is None else response.status_code


def retry_after(error: BaseException, default: float) -> float:
    response: Any = getattr(error, "response", None)
    value = "" if response is None else response.headers.get("Retry-After", "")
    return min(float(value) if value.isdigit() else default, LONGEST_WAIT)


def explained(error: BaseException, repo_id: str, folder: str) -> str:
    """One sentence: what is wrong, and what to do about it."""
    again = "Nothing on this disk was touched; the same command can be repeated, and sends only what is missing."
    status = status_of(error)
    if isinstance(error, LocalTokenNotFoundError) or status == 401:
        return (
            f"The Hub does not know the token that {repo_id!r} was to be published with: it is mistyped, expired or "
            "revoked. Run `hf auth login`, or give another (token=…, --token)."
        )
    if status == 403:
        return (
            f"The token may not write to {repo_id!r}: it is read-only, or has no rights there. Make one with write "
            "access in the settings of your account, and run `hf auth login`; or choose a repository of your own."
        )
    if status == 404:
        return f"The Hub has no {repo_id!r} that this token could see, or no such revision: {first_line(error)} {again}"
    if status in CONFLICTS:
        return f"{repo_id!r} is being changed by somebody else: {first_line(error)} {again}"
    if isinstance(error, ValueError):
        return f"The Hub refuses the card of {folder!r}: {error} Mend the metadata in its README.md. {again}"
    if http_error(error) is None and isinstance(error, OSError):
        return f"{folder!r} cannot be read: {error}."
    reached = "could not be reached" if status is None else f"answered {status}"
    return f"The Hub {reached} while {repo_id!r} was being published: {first_line(error)} {again}"


def first_line(error: BaseException) -> str:
    text = str(http_error(error) or error).strip()
    return (text.splitlines()[0] if text else type(error).__name__).rstrip(".") + "."
