"""Errors that a test asks for."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

from .protocol import BAD_TOKEN, READ_ONLY, STALE, Answer, HubError

GATEWAY_ERRORS = (502, 503, 504)
MESSAGES = {
    401: BAD_TOKEN,
    403: READ_ONLY,
    409: "Cannot create repo: another conflicting operation is in progress",
    412: STALE,
    429: "We had to rate limit you",
}


@dataclass
class Fault:
    """What befalls the next `times` requests that match: an error, or a cut connection where `status` is None."""

    method: str
    pattern: re.Pattern[str]
    times: int
    status: int | None
    headers: Mapping[str, str] = field(default_factory=dict)
    message: str | None = None
    after_bytes: int = 0
    applied: bool = False

    @property
    def is_cut(self) -> bool:
        return self.status is None

    def cuts_upload(self, method: str) -> bool:
        """Whether the connection closes while the client is still sending."""
        return self.is_cut and not self.applied and method not in ("GET", "HEAD")

    def answer(self) -> Answer:
        assert self.status is not None
        phrase = HTTPStatus(self.status).phrase
        if self.status in GATEWAY_ERRORS and self.message is None:
            page = f"<html><body><h1>{self.status} {phrase}</h1></body></html>"
            return Answer(page.encode(), self.status, {"Content-Type": "text/html", **self.headers})
        message = self.message or MESSAGES.get(self.status, phrase)
        return HubError(self.status, message, headers=self.headers).answer()
