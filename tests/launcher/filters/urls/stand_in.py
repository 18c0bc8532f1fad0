"""A service on loopback that answers what a test says, and keeps what it was asked."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import Any, NamedTuple

from tests.launcher.processes import PATIENCE_S


class Reply(NamedTuple):
    """body: what is sent as JSON, or as it is. length: what is announced, by default what there is. hangs: nothing
    more comes until the service ends; drips: a byte at a time comes until then."""

    body: Any
    status: int = 200
    headers: Mapping[str, str] = MappingProxyType({})
    length: int | None = None
    hangs: bool = False
    drips: bool = False


class StandIn:
    """asked: bodies of all requests; requests: paths and headers of these. replies: what is answered to a body."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.connections: set[tuple[str, int]] = set()
        self.reply: Callable[[Any], Reply] = lambda body: Reply({}, 400)
        self.ended = threading.Event()
        self.url = ""

    @contextmanager
    def tried_out(self, answer: Reply) -> Iterator[None]:
        """Give an answer to all that is asked meanwhile, and keep nothing of that."""
        reply, self.reply = self.reply, lambda body: answer
        before = len(self.asked)
        yield
        self.reply = reply
        del self.asked[before:], self.requests[before:]


@contextmanager
def serving(tls: ssl.SSLContext | None = None) -> Iterator[StandIn]:
    """Serve on a port that is free."""
    stand_in = StandIn()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            stand_in.asked.append(body)
            stand_in.requests.append((self.path, dict(self.headers)))
            stand_in.connections.add(self.client_address)
            reply = stand_in.reply(body)
            content = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            try:
                self._answer(reply, content)
            except OSError:  # the client has gone
                self.close_connection = True

        def _answer(self, reply: Reply, content: bytes) -> None:
            if reply.hangs:
                stand_in.ended.wait(PATIENCE_S)
                self.close_connection = True
                return
            self.send_response(reply.status)
            self.send_header("Content-Length", str(len(content) if reply.length is None else reply.length))
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)
            while reply.drips and not stand_in.ended.wait(0.005):
                self.wfile.write(b" ")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls is not None:  # each connection's own thread greets
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    stand_in.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{server.server_address[1]}"
    try:
        yield stand_in
    finally:
        stand_in.ended.set()
        server.shutdown()
        thread.join(PATIENCE_S)
        server.server_close()
