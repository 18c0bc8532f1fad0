"""A target and a peer's HTTP server that stand in for real ones."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image as PIL

from bench.serve.traffic import Answer, ImageRequest, parse_mix

MIX = parse_mix("64x64:3:2,128x64:1:4:0")


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    PIL.new("RGB", (width, height)).save(file, "png")
    return file.getvalue()


class Recorder:
    """A target that answers with an image after `delay_s`, and knows when it was asked, and by how many at once."""

    def __init__(self, delay_s: float = 0.0, size: tuple[int, int] | None = None) -> None:
        self.delay_s, self.size = delay_s, size
        self.asked: list[float] = []
        self.at_once = self.most_at_once = 0

    async def generate(self, request: ImageRequest) -> Answer:
        self.asked.append(asyncio.get_running_loop().time())
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(self.delay_s)
        finally:
            self.at_once -= 1
        return Answer(png(*(self.size or (request.width, request.height))), {"total": 0.0})


class Peer(BaseHTTPRequestHandler):
    """Answers as a server with OpenAI's images API does; every `fails_every`th request with `status` and `body`."""

    server: PeerServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.bodies.append(body | {"path": self.path, "key": self.headers["Authorization"]})
            number = len(self.server.bodies)
        width, height = map(int, body["size"].split("x"))
        if self.server.fails_every and number % self.server.fails_every == 0:
            self._answer(self.server.status, self.server.body)
        else:
            image = base64.b64encode(png(width, height)).decode()
            answer = {"created": 0, "data": [{"b64_json": image}]} | self.server.more
            self._answer(200, json.dumps(answer).encode())

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class PeerServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, fails_every: int, status: int, body: bytes, more: dict[str, Any]) -> None:
        super().__init__(("127.0.0.1", 0), Peer)
        self.fails_every, self.status, self.body, self.more = fails_every, status, body, more
        self.bodies: list[dict[str, Any]] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def peer(fails_every: int = 0, status: int = 500, body: bytes = b"", **more: Any) -> Iterator[PeerServer]:
    server = PeerServer(fails_every, status, body, more)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
