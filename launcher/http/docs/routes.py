"""`GET /docs` and `GET /openapi.json`."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from engine.config.model_config import ModelConfig
from launcher.http.docs.description import describe
from launcher.http.docs.page import write_page
from launcher.messages.configs import HttpConfig


def add_docs_routes(app: FastAPI, config: HttpConfig, model: ModelConfig, asks_for_key: Callable[[str], bool]) -> None:
    """Add the page at /docs, and complete the OpenAPI description of all routes, which exist already.

    asks_for_key: whether a path is answered to those alone who have an API key.
    """
    openapi = app.openapi()
    app.openapi = lambda: openapi  # type: ignore[method-assign]  # FastAPI would make it anew where a route is added
    describe(openapi, model, config.limits, frozenset(filter(asks_for_key, openapi["paths"])))

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        base = (config.public_url or str(request.base_url)).rstrip("/")
        return HTMLResponse(write_page(openapi, base, request.state.root), headers={"Cache-Control": "no-cache"})
