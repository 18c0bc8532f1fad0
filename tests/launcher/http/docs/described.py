"""The OpenAPI description, as a server sends it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.launcher.fake_ranks import run
from tests.launcher.http.http_requests import NOWHERE
from tests.launcher.http_servers import http_server_without_engine

Schema = dict[str, Any]


def describe(**config: Any) -> Schema:
    """The description of a server with this configuration."""
    return get("/openapi.json", **config).json()


def get(path: str, **config: Any) -> Any:
    """What a server answers that has this configuration, and no engine."""
    answers = []

    async def ask() -> None:
        async with http_server_without_engine(NOWHERE, **config) as client:
            answers.append(await client.get(path))

    run(ask())
    return answers[0]


def routes(openapi: Schema) -> Iterator[tuple[str, str, Schema]]:
    """Method, path and operation of each route."""
    for path, operations in openapi["paths"].items():
        for method, operation in operations.items():
            yield method, path, operation
