"""What an application behind Serve's proxy hears when its client hangs up."""

from __future__ import annotations

import asyncio

from starlette.types import Message, Receive, Scope, Send

from launcher.ray.web.behind_proxy import BehindProxy


class CancelledByServeError(Exception):
    """Stands for the error of Ray's own with which Serve ends what asks its proxy for more of a request."""


def test_a_proxy_that_can_no_longer_be_asked_is_a_client_that_hung_up() -> None:
    heard: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        heard.append(await receive())

    async def receive() -> Message:
        raise CancelledByServeError

    async def send(message: Message) -> None:
        raise AssertionError("nothing is sent")

    asyncio.run(BehindProxy(app)({"type": "http"}, receive, send))
    assert heard == [{"type": "http.disconnect"}]
