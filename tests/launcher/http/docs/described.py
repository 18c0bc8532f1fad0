"""The description of the HTTP API, as a server answers it that has no engine and no socket."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
from starlette.testclient import TestClient

from engine.config.engine_config import EngineConfig
from launcher.http.app import make_server
from launcher.messages.configs import HttpConfig
from launcher.messages.limits import Limits
from tests.launcher.http.http_requests import NOWHERE
from tests.launcher.processes import temporary_folder

Schema = dict[str, Any]


def describe(**config: Any) -> Schema:
    """The description of a server with this configuration."""
    return get("/openapi.json", **config).json()


def get(path: str, **config: Any) -> httpx.Response:
    """What a server with this configuration answers at a path."""
    with temporary_folder() as folder:
        own = {"engine": EngineConfig(), "limits": Limits(), "rpc": NOWHERE, "run_folder": str(folder)}
        guard = make_server(HttpConfig(**own | config)).guard
        return TestClient(guard, base_url="http://127.0.0.1").get(path)


def routes(openapi: Schema) -> Iterator[tuple[str, str, Schema]]:
    """Method, path and operation of each route."""
    for path, operations in openapi["paths"].items():
        for method, operation in operations.items():
            yield method, path, operation
