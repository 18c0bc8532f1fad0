"""A server that draws nothing, but speaks the page's side of the HTTP API, as slowly or badly as a test wants."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from PIL import Image

import launcher
from tests.launcher.http.page.source.forms import made_for_of, read_form, size_of, told_of
from tests.launcher.processes import PATIENCE_S

PAGE = Path(launcher.__file__).parent / "http" / "page"
_POLICY = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; style-src 'self'; script-src 'self'"
}
TYPES = {
    ".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript",
    ".svg": "image/svg+xml", ".webp": "image/webp",
}  # fmt: skip
SETTINGS = {
    "model": "demo",
    "is_demo": True,
    "defaults": {"width": 128, "height": 128, "steps": 4, "guidance": 0.0},
    "limits": {
        "min_side": 64,
        "max_side": 4096,
        "max_pixels": 8_400_000,
        "max_steps": 200,
        "max_guidance": 20.0,
        "max_images": 10,
        "max_seed": 2**53 - 1,
        "max_prompt_bytes": 16384,
        "max_queue": 256,
        "max_image_bytes": 50_000_000,
        "max_image_pixels": 64_000_000,
    },
    "output_formats": ["png", "jpeg", "webp"],
    "size_multiple": 16,
    "good_sides": [96, 256],
    "api_key_required": False,
    "image_input": True,
    "max_lora_strength": 10.0,
}
STATUS = {
    "model": "demo", "version": "1.2", "device": "cpu", "ranks": 4, "tp": 2, "sp": 2, "cfg_parallel": False,
    "done": 5, "failed": 1, "uptime_s": 7200.0, "restarts": 1, "quarantined": [],
    "rank_memory": [{"weights": 25_200_000_000, "free": 60_000_000_000}, {"weights": 900_000}],
}  # fmt: skip


@dataclass
class Refusal:
    """An answer instead of images."""

    status: int
    message: str
    param: str | None = None
    code: str = "invalid_parameter"
    retry_after_s: int | None = None


@dataclass(eq=False)
class FakeServer:
    """Answers every request at once; while `held` is set, a request goes one step further for each `release`,
    and after the last one image further."""

    ready: bool = True
    stage: dict[str, Any] | None = None  # how far it has started
    load: dict[str, int] = field(default_factory=dict)  # waiting and running, as /ready has them
    settings: dict[str, Any] = field(default_factory=dict)  # other than SETTINGS
    api_key: str | None = None
    refusals: list[Refusal] = field(default_factory=list)  # of the next requests, one each
    warnings: list[str] = field(default_factory=list)
    positions: tuple[int, ...] = (2,)  # in the queue, one after the other
    restarts: int = 0  # after the first step of the next request
    hangs_up: bool = False  # after the first step of the next request
    estimates: list[float | None] = field(default_factory=list)  # of the next events, in place of those it has
    fails: Refusal | None = None  # after the first step of the next request
    held: bool = False
    docs: str = ""  # the page at /docs
    prefix: str = ""  # what the paths of all requests begin with, as behind a proxy
    loras: list[dict[str, Any]] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    running: int = 0
    cancelled: int = 0

    def __post_init__(self) -> None:
        self._steps = threading.Semaphore(0)
        self._lock = threading.Lock()
        server = self

        class Handler(_Handler):
            fake = server

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(PATIENCE_S)

    def count(self, *, running: int = 0, cancelled: int = 0) -> None:
        """Add to how many run and were cancelled, in any thread."""
        with self._lock:
            self.running += running
            self.cancelled += cancelled

    def release(self, steps: int = 1) -> None:
        self._steps.release(steps)

    def wait_for_step(self) -> bool:
        """Whether the next step may be made now; waits 0.05 s for it."""
        return not self.held or self._steps.acquire(timeout=0.05)


class _Handler(BaseHTTPRequestHandler):
    fake: FakeServer
    kind: str  # of the events

    def parse_request(self) -> bool:
        parsed = super().parse_request()
        self.path = (
            self.path.removeprefix(self.fake.prefix) if parsed and self.path.startswith(self.fake.prefix) else "/none"
        )
        return parsed

    def do_GET(self) -> None:
        if self.path == "/docs":
            self._send(200, {"Content-Type": TYPES[".html"], **_POLICY}, self.fake.docs.encode())
        elif self.path == "/v1/settings":
            if self._may_enter():
                self._answer(200, SETTINGS | self.fake.settings | {"api_key_required": self.fake.api_key is not None})
        elif self.path == "/v1/loras":
            if self._may_enter():
                self._answer(200, {"object": "list", "data": self.fake.loras, "merged": [], "loadable": True})
        elif self.path == "/v1/status":
            if self._may_enter():
                self._answer(200, STATUS)
        elif self.path == "/ready" and self.fake.ready:
            self._answer(200, {"status": "ready"} | self.fake.load)
        elif self.path == "/ready":
            self._answer(
                503, {"error": {"message": "the engine is not ready: it is loading"}, "stage": self.fake.stage}
            )
        else:
            self._send_file("index.html" if self.path == "/" else self.path.removeprefix("/page/"))

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers["Content-Length"]))
        is_edit = self.path == "/v1/images/edits"
        body = read_form(self.headers["Content-Type"], sent) if is_edit else json.loads(sent)
        self.kind = "image_edit" if is_edit else "image_generation"
        if not self._may_enter():
            return
        if not self.fake.ready:
            self._refuse(Refusal(503, "the engine is starting", code="server_unavailable", retry_after_s=1))
            return
        self.fake.requests.append(body)
        if self.fake.refusals:
            self._refuse(self.fake.refusals.pop(0))
            return
        if not body.get("stream"):
            self._answer(200, {"data": [_answered(body, index) for index in range(body.get("n", 1))]})
            return
        self.fake.count(running=1)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        try:
            self._generate(body)
        except (BrokenPipeError, ConnectionResetError):
            self.fake.count(cancelled=1)
        finally:
            self.fake.count(running=-1)

    def _generate(self, body: dict[str, Any]) -> None:
        made_for = made_for_of(body, self.fake.loras)
        n, steps = body.get("n", 1), body.get("steps") or made_for["steps"]
        (width, height), seed = size_of(body), body.get("seed", 1234)
        attempt = 1
        for place, position in enumerate(self.fake.positions):
            if place:
                self._wait_for_step()
            waits = self._estimate(3600.0)
            self._event("accepted", request_id="r", position=position, estimated_s=waits, attempt=attempt)
        step = 0
        while step < steps:
            self._wait_for_step()
            step += 1
            of_all = {"step": n * step, "steps": n * steps}
            self._event("progress", request_id="r", **of_all, estimated_s=self._estimate(3000.0), attempt=attempt)
            for index in range(n):
                preview = _image(body["prompt"], (32, 32), "jpeg")
                self._event("partial_image", b64_json=preview, partial_image_index=step - 1, index=index)
            if self.fake.hangs_up:
                self.fake.hangs_up = False
                return
            if failure := self.fake.fails:
                self.fake.fails = None
                self._write_event("error", error=_error(failure))
                return
            if self.fake.restarts:
                self.fake.restarts -= 1
                attempt, step = attempt + 1, 0
                self._event("accepted", request_id="r", position=0, estimated_s=self._estimate(None), attempt=attempt)
        for index in range(n):
            if index:
                self._wait_for_step()
            self._event(
                "completed",
                b64_json=_image(body["prompt"], (width, height), body["output_format"]),
                request_id="r",
                index=index,
                seed=seed + index,
                size=f"{width}x{height}",
                output_format=body["output_format"],
                **told_of(body, self.fake.warnings if index == n - 1 else None, made_for),
            )

    def _estimate(self, usual: float | None) -> float | None:
        return self.fake.estimates.pop(0) if self.fake.estimates else usual

    def _wait_for_step(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not self.fake.wait_for_step():
            self.wfile.write(b": waiting\n\n")  # fails once the page has hung up
            assert time.monotonic() < deadline, f"no step was released within {PATIENCE_S:g} s"

    def _event(self, name: str, **fields: Any) -> None:
        self._write_event(f"{self.kind}.{name}", **fields)

    def _write_event(self, name: str, **fields: Any) -> None:
        data = json.dumps({"type": name, **fields})
        self.wfile.write(f"event: {name}\r\ndata: {data}\r\n\r\n".encode())

    def _may_enter(self) -> bool:
        key = self.fake.api_key
        if key is None or self.headers["Authorization"] == f"Bearer {key}":
            return True
        self._refuse(Refusal(401, "the API key is not one of this server's", code="invalid_api_key"))
        return False

    def _refuse(self, refusal: Refusal) -> None:
        self._answer(refusal.status, {"error": _error(refusal)}, refusal.retry_after_s)

    def _answer(self, status: int, content: dict[str, Any], retry_after_s: int | None = None) -> None:
        headers = {"Content-Type": "application/json"}
        if retry_after_s is not None:
            headers["Retry-After"] = str(retry_after_s)
        self._send(status, headers, json.dumps(content).encode())

    def _send_file(self, name: str) -> None:
        names = {path.relative_to(PAGE).as_posix() for path in PAGE.rglob("*") if path.is_file()}
        if name not in names:
            self._answer(404, {"error": {"message": f"no {name}"}})
            return
        headers = {"Content-Type": TYPES[Path(name).suffix], **_POLICY}
        self._send(200, headers, (PAGE / name).read_bytes())

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def _error(refusal: Refusal) -> dict[str, Any]:
    return {"message": refusal.message, "type": "error", "param": refusal.param, "code": refusal.code}


def _answered(body: dict[str, Any], index: int) -> dict[str, Any]:
    image = _image(body["prompt"], size_of(body), body["output_format"])
    return {"b64_json": image, "index": index, "seed": body.get("seed", 1234) + index}


def _image(prompt: str, size: tuple[int, int], kind: str) -> str:
    """A plain picture, of the first word of the prompt that is a colour."""
    colours = ("red", "green", "blue", "orange", "purple")
    colour = next((word for word in prompt.split() if word in colours), "gray")
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, kind)
    return base64.b64encode(file.getvalue()).decode()
