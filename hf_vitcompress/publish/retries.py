"""Errors of the Hub's client: which are worth another try, and what to tell a person."""

import re
import textwrap
import time
from collections.abc import Callable
from json import JSONDecodeError
from typing import Any, TypeVar

from huggingface_hub.errors import (
    HTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)
from transformers.utils import logging

HTTP_ERRORS: tuple[type[Exception], ...] = (HTTPError, ConnectionError, JSONDecodeError)
"""All errors of the Hub's client and of its HTTP library (httpx, or httpx2 from huggingface_hub 2.0 on).

Broken connections, timeouts and refusals are `HTTPError`; offline mode is a `ConnectionError`; a gateway's page where
JSON was expected is a `JSONDecodeError`.
"""

CLIENT_ERRORS: tuple[type[Exception], ...] = (*HTTP_ERRORS, LocalEntryNotFoundError, RuntimeError)
"""These, and what downloads and uploads of large files wrap them in."""

TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})
REFUSED = frozenset({429})
"""Of these, statuses that say that nothing was done."""
CONFLICTS = frozenset({409, 412})
LONGEST_WAIT = 300.0
"""Seconds; the Hub counts requests in windows of this length."""

LONGEST_MESSAGE = 300
"""Characters; the Hub lists all licences there are to whom gives one that is none."""

T = TypeVar("T")

logger = logging.get_logger(__name__)


def persistently(call: Callable[[], T], attempts: int = 5, repeatable: bool = True) -> T:
    """The result of `call`, tried again where the Hub is busy or the connection breaks.

    Waits as long as the Hub asks for, at most five minutes, otherwise twice as long each time.

    Args:
        repeatable: whether twice is as good as once. What is not is tried again only where nothing was done for sure.
    """
    for attempt in range(1, attempts + 1):
        try:
            return call()
        except CLIENT_ERRORS as error:
            cause, status = http_error(error), status_of(error)
            again = is_transient(error) if repeatable else status in REFUSED
            if cause is None or not again or attempt == attempts:
                raise
            wait = retry_after(cause, default=2.0 ** (attempt - 1))
            what = "The connection broke" if status is None else f"The Hub answered {status}"
            logger.warning(f"{what}; trying again in {wait:.0f} s ({attempt} of {attempts - 1}).")
            time.sleep(wait)
    raise AssertionError("unreachable")


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later; what it asked for may have been done, too."""
    cause, status = http_error(error), status_of(error)
    if cause is None or isinstance(cause, OfflineModeIsEnabled):
        return False
    return status is None or status in TRANSIENT


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
    """Seconds that the Hub asks to wait, in either of the two headers it has for that."""
    response: Any = getattr(error, "response", None)
    headers = {} if response is None else response.headers
    value = headers.get("Retry-After", "")
    if not value.isdigit():
        found = re.search(r"\bt=(\d+)", headers.get("RateLimit", ""))
        value = found[1] if found else ""
    return min(float(value) if value else default, LONGEST_WAIT)


def explained(error: BaseException, repo_id: str, folder: str) -> str:
    """One sentence: what is wrong, and what to do about it."""
    again = "Nothing on this disk was touched; the same command can be repeated, and sends only what is missing."
    status, said = status_of(error), sentence(str(http_error(error) or error).strip().partition("\n")[0])
    if "Invalid metadata in README.md" in str(error):
        return f"The Hub refuses the card of {repo_id!r}: {sentence(str(error))} Mend them there. {again}"
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
        what = "revision" if isinstance(http_error(error), RevisionNotFoundError) else f"{repo_id!r}"
        return f"The Hub has no such {what} that this token could see: {said} {again}"
    if status in CONFLICTS:
        return f"{repo_id!r} is being changed by somebody else: {said} {again}"
    if http_error(error) is None:
        return f"{folder!r} cannot be published: {said}"
    reached = "could not be reached" if status is None else f"answered {status}"
    return f"The Hub {reached} while {repo_id!r} was being published: {said} {again}"


def sentence(text: str) -> str:
    """In one line of a bearable length, with a full stop."""
    return textwrap.shorten(text or "no reason given", LONGEST_MESSAGE, placeholder=" …").rstrip(".") + "."
