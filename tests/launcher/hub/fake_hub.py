"""A Hugging Face hub on this machine that has one repository."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

_ASKED = re.compile(r"(?:(?P<kind>/revision/|/tree/|/resolve/)(?P<revision>refs/pr/\d+|[^/]+)(?:/(?P<file>.+))?)?")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """Serves the files under `folder` as the repository `name`, on the branch main.

    revisions: other branches and tags, each with a folder of its own. licence: what its card calls it. fetched: the
    files that were downloaded. refuse: answer every question with this status and this error code. cut: close the
    connection in the middle of this file, once.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.revisions: dict[str, Path] = {}
        self.licence: str | None = None
        self.fetched: list[str] = []
        self.refuse: tuple[int, str] | None = None
        self.cut: str | None = None
        self.url = ""

    def files(self, folder: Path | None = None) -> list[str]:
        folder = folder or self.folder
        return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())

    def folder_of(self, revision: str) -> tuple[str, Path] | None:
        """The commit that a branch, a tag or a commit is, and its files."""
        commits = {COMMIT: self.folder, **{commit_of(name): folder for name, folder in self.revisions.items()}}
        commit = COMMIT if revision == "main" else commit_of(revision) if revision in self.revisions else revision
        return (commit, commits[commit]) if commit in commits else None


def commit_of(revision: str) -> str:
    return hashlib.sha1(revision.encode()).hexdigest()


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
            path = unquote(urlparse(self.path).path)
            asked = _ASKED.fullmatch(path.removeprefix(f"/api/models/{hub.name}").removeprefix(f"/{hub.name}"))
            found = None if asked is None else hub.folder_of(asked["revision"] or "main")
            if hub.refuse is not None:
                status, code = hub.refuse
                self._send(status, b"{}", {"X-Error-Code": code})
            elif asked is None or hub.name not in path:
                self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            elif found is None:
                self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            elif asked["kind"] == "/resolve/":
                self._file(*found, asked["file"], with_body=with_body)
            elif asked["kind"] == "/tree/":
                self._json([self._entry(found[1], file) for file in hub.files(found[1])])
            else:
                siblings = [
                    {"rfilename": file} | ({"size": (found[1] / file).stat().st_size} if "blobs=" in self.path else {})
                    for file in hub.files(found[1])
                ]
                card = {} if hub.licence is None else {"cardData": {"license": hub.licence}}
                about = {"id": hub.name, "sha": found[0], "tags": [], "private": False, **card}
                self._json({**about, "siblings": siblings})

        def _entry(self, folder: Path, file: str) -> dict[str, object]:
            data = (folder / file).read_bytes()
            return {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}

        def _file(self, commit: str, folder: Path, file: str, *, with_body: bool) -> None:
            data = (folder / file).read_bytes()
            headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'}
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
