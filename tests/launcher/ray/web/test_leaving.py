"""Requests that come to an ingress while all is being stopped."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from launcher.ray.web.behind_proxy import BehindProxy


def test_those_that_run_go_on_and_are_counted_and_others_are_refused() -> None:
    async def run() -> None:
        go_on = asyncio.Event()

        async def app(_scope: Any, _receive: Any, send: Any) -> None:
            await go_on.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"drawn"})

        behind = BehindProxy(app)
        first = asyncio.create_task(_ask(behind, "first"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert behind.leave() == 1
        status, headers, body = await _ask(behind, "second")
        assert (status, headers[b"retry-after"]) == (503, b"5")
        error = json.loads(body)["error"]
        assert (error["code"], error["request_id"]) == ("server_unavailable", "second")
        assert behind.leave() == 1
        go_on.set()
        assert await first == (200, {}, b"drawn")
        assert behind.leave() == 0

    asyncio.run(run())


async def _ask(app: BehindProxy, request_id: str) -> tuple[int, dict[bytes, bytes], bytes]:
    said: list[Any] = []

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        said.append(message)

    headers = [(b"x-request-id", request_id.encode())]
    await app({"type": "http", "method": "GET", "path": "/v1/models", "headers": headers}, receive, send)
    return said[0]["status"], dict(said[0]["headers"]), b"".join(each.get("body", b"") for each in said[1:])
