"""A Hugging Face hub on this machine that has one repository."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlparse

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """Serves the files under `folder` as the repository `name`.

    fetched: the files that were downloaded. refuse: answer every question with this status and this error code. cut:
    close the connection in the middle of this file, once.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.fetched: list[str] = []
        self.refuse: tuple[int, str] | None = None
        self.cut: str | None = None
        self.url = ""

    def files(self) -> list[str]:
        return sorted(str(file.relative_to(self.folder)) for file in self.folder.rglob("*") if file.is_file())


@contextmanager
def fake_hub(name: str, folder: Path) -> Iterator[FakeHub]:
    hub = FakeHub(name, folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def log_message(self, *_: object) -> None:
            pass

        def _answer(self, *, with_body: bool) -> None:
            path = urlparse(self.path).path
            if hub.refuse is not None:
                status, code = hub.refuse
                self._send(status, b"{}", {"X-Error-Code": code})
            elif path in (f"/api/models/{hub.name}", f"/api/models/{hub.name}/revision/main"):
                siblings: list[dict[str, object]] = [{"rfilename": file} for file in hub.files()]
                if "blobs=" in self.path:
                    siblings = [
                        entry | {"size": (hub.folder / str(entry["rfilename"])).stat().st_size} for entry in siblings
                    ]
                self._json({"id": hub.name, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False})
            elif path.startswith(f"/api/models/{hub.name}/tree/"):
                self._json([self._entry(file) for file in hub.files()])
            elif path.startswith(f"/{hub.name}/resolve/{COMMIT}/"):
                self._file(path.removeprefix(f"/{hub.name}/resolve/{COMMIT}/"), with_body=with_body)
            else:
                self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

        def _entry(self, file: str) -> dict[str, object]:
            data = (hub.folder / file).read_bytes()
            return {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}

        def _file(self, file: str, *, with_body: bool) -> None:
            data = (hub.folder / file).read_bytes()
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'}
            if not with_body:
                self._send(200, b"", headers | {"Content-Length": str(len(data))})
                return
            hub.fetched.append(file)
            if file == hub.cut:
                hub.cut = None
                self._send(200, data[: len(data) // 2], headers | {"Content-Length": str(len(data))})
                self.close_connection = True
                return
            self._send(200, data, headers)

        def _json(self, value: object) -> None:
            self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(body)

    class Server(ThreadingHTTPServer):
        request_queue_size = 128  # 5 are fewer than the library's connections, whose next attempt is a second later

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
