"""The HTTP side: reads requests, looks up their handlers, writes answers or the faults asked for."""

import sys
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from . import accounts, reading, storage, writing  # noqa: F401  (register their routes)
from .faults import Fault
from .protocol import ROUTES, Answer, Call, HubError, Request, Route

if TYPE_CHECKING:
    from .hub import FakeHub


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that is gone is no error of ours."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Listener:
    """A server on a free local port, in threads of its own; `host` is the name of this computer in its address."""

    def __init__(self, hub: "FakeHub", host: str) -> None:
        self.server = Server(("127.0.0.1", 0), type("HubConnection", (Connection,), {"hub": hub}))
        self.url = f"http://{host}:{self.server.server_port}"
        self.thread = Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class Connection(BaseHTTPRequestHandler):
    """One connection, over which a client sends request after request."""

    hub: "FakeHub"
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def respond(self) -> None:
        call = Call(self.hub, self.command, self.path, self.headers)
        route = find_route(call)
        fault = self.hub.take_fault(self.command, unquote(self.path))
        if fault and fault.cuts_upload(self.command):
            self.read_body(fault.after_bytes)
            self.hang_up(route)
            return
        call.body = self.read_body()
        answer = self.hub_answer(call, route, fault)
        if fault and fault.is_cut:
            self.write(answer, 0 if fault.applied else fault.after_bytes)
            self.hang_up(route)
            return
        self.record(route, answer.status)
        self.write(answer)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = respond  # noqa: N815  (the names that the base class calls)

    def hub_answer(self, call: Call, route: Route | None, fault: Fault | None) -> Answer:
        if fault and not fault.is_cut and not fault.applied:
            return fault.answer()
        answer = carry_out(call, route)
        return fault.answer() if fault and not fault.is_cut else answer

    def record(self, route: Route | None, status: int) -> None:
        template = route.template if route else urlsplit(self.path).path
        request = Request(self.command, unquote(self.path), status, f"{self.command} {template}")
        self.hub.requests.append(request)

    def hang_up(self, route: Route | None) -> None:
        """Close the connection; where a body was not read to its end, the client's writes fail from then on."""
        self.record(route, 0)
        self.close_connection = True

    def read_body(self, limit: int | None = None) -> bytes:
        """The body, or its first bytes."""
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            return self.read_chunks(limit)
        length = int(self.headers.get("Content-Length", 0))
        return self.rfile.read(length if limit is None else min(limit, length))

    def read_chunks(self, limit: int | None) -> bytes:
        body = bytearray()
        while limit is None or len(body) < limit:
            length = int(self.rfile.readline().split(b";")[0], 16)
            body += self.rfile.read(length)
            self.rfile.readline()
            if length == 0:
                break
        return bytes(body)

    def write(self, answer: Answer, limit: int | None = None) -> None:
        """Send an answer, or no more than the first bytes of its content; none at all where the limit is 0."""
        if limit == 0:
            return
        self.send_response(answer.status)
        for name, value in answer.all_headers().items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.content()[:limit])

    def log_message(self, *args: Any) -> None:
        """Nothing goes to stderr."""


def find_route(call: Call) -> Route | None:
    """The route of a request, whose named parts the call gets."""
    for route in ROUTES:
        parts = route.match(call.method, urlsplit(call.url).path)
        if parts is not None:
            call.parts = parts
            return route
    return None


def carry_out(call: Call, route: Route | None) -> Answer:
    """The Hub's answer. What the fake does not understand is an error of the test that uses it, see `hub.errors`."""
    try:
        if route is None:
            raise NotImplementedError(f"the fake Hub does not speak {call.method} {call.url}")
        with call.hub.lock:
            return route.handler(call)
    except HubError as error:
        return error.answer()
    except Exception as error:
        call.hub.errors.append("".join(traceback.format_exception(error)))
        return HubError(501, str(error)).answer()
