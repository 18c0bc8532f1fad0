"""The page's files. What they refer to is relative to `<base>`, which says where the browser finds the server."""

from __future__ import annotations

from hashlib import sha256
from html import escape
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from starlette.datastructures import Headers
from starlette.responses import HTMLResponse, Response
from starlette.staticfiles import NotModifiedResponse, StaticFiles
from starlette.types import Scope

PAGE = Path(__file__).parent / "page"
_HEADERS = {"Cache-Control": "no-cache", "Accept-Ranges": "none"}


def add_page(app: FastAPI) -> None:
    """Add the page and its files."""
    files = _PageFiles(directory=PAGE, check_dir=False)

    @app.get("/", include_in_schema=False)
    @app.get("/page", include_in_schema=False)
    async def index(request: Request) -> Response:
        return await files.get_response("index.html", request.scope)

    @app.get("/favicon.ico", include_in_schema=False)
    async def favicon(request: Request) -> Response:
        return await files.get_response("icon.ico", request.scope)

    app.mount("/page", files)


class _PageFiles(StaticFiles):
    """Files that browsers keep but ask about each time. Each is sent whole, whatever Range says."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        scope["headers"] = [(name, value) for name, value in scope["headers"] if name != b"range"]
        if path == "index.html" and scope["method"] in ("GET", "HEAD"):
            return self._index(scope)
        return await super().get_response(path, scope)

    def _index(self, scope: Scope) -> Response:
        base = f'<head>\n    <base href="{escape(scope["state"]["root"])}" />'
        html = (PAGE / "index.html").read_text("utf-8").replace("<head>", base, 1)
        tag = f'"{sha256(html.encode()).hexdigest()[:32]}"'
        response = HTMLResponse(html, headers={**_HEADERS, "ETag": tag})
        if self.is_not_modified(response.headers, Headers(scope=scope)):
            return NotModifiedResponse(response.headers)
        return response

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers.update(_HEADERS)
        return response
