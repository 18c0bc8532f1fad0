"""What an application hears and says behind a proxy of Serve's: hang-ups, and one X-Request-ID."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from launcher.ray.web.behind_proxy import BehindProxy
from launcher.ray.web.proxy_callback import PlainRequestIds

PATIENCE_S = 60.0
SCOPE: dict[str, Any] = {"type": "http", "headers": []}
START: Message = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/plain"), (b"X-Request-ID", b"ours")],
}


class Proxy:
    """Sends one empty body and then nothing, and keeps what comes back."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.bodies: list[Message] = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive(self) -> Message:
        if self.bodies:
            return self.bodies.pop()
        await asyncio.Event().wait()
        raise AssertionError

    async def send(self, message: Message) -> None:
        self.sent.append(message)


def test_the_proxy_alone_names_the_request() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "http.request"
        await send(START)
        await send({"type": "http.response.body", "body": b"."})

    async def run() -> None:
        proxy = Proxy()
        await BehindProxy(app)(SCOPE, proxy.receive, proxy.send)
        assert proxy.sent[0]["headers"] == [(b"content-type", b"text/plain")]
        assert len(proxy.sent) == 2

    asyncio.run(run())


def test_a_cancelled_request_is_one_whose_client_has_hung_up() -> None:
    heard: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        heard.append((await receive())["type"])
        heard.append((await receive())["type"])
        await asyncio.sleep(0)  # as the guard does, which cancels what it runs and counts it
        heard.append("ended in order")
        await send(START)

    async def run() -> None:
        proxy = Proxy()
        request = asyncio.create_task(BehindProxy(app)(SCOPE, proxy.receive, proxy.send))
        async with asyncio.timeout(PATIENCE_S):
            while not heard:
                await asyncio.sleep(0)
            request.cancel()
            with pytest.raises(asyncio.CancelledError):
                await request
        assert heard == ["http.request", "http.disconnect", "ended in order"]
        assert proxy.sent == []

    asyncio.run(run())


def test_what_does_not_end_when_its_client_has_hung_up_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.ray.web.behind_proxy._HANG_UP_S", 0.01)
    ended: list[bool] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    async def run() -> None:
        proxy = Proxy()
        request = asyncio.create_task(BehindProxy(app)(SCOPE, proxy.receive, proxy.send))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        assert ended == [True]

    asyncio.run(run())


def test_the_application_has_no_context_of_serves_and_its_errors_are_raised() -> None:
    serves: ContextVar[str] = ContextVar("serves", default="none")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError(serves.get())

    async def run() -> None:
        serves.set("request 1")
        proxy = Proxy()
        with pytest.raises(RuntimeError, match="none"):
            await BehindProxy(app)(SCOPE, proxy.receive, proxy.send)

    asyncio.run(run())


@pytest.mark.parametrize(("sent", "is_kept"), [("my.id-1", True), ("sp ace", False), ("x" * 65, False), ("", False)])
def test_a_proxy_with_our_callback_takes_only_ids_that_the_log_takes(sent: str, is_kept: bool) -> None:
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend(value.decode() for name, value in scope["headers"] if name == b"x-request-id")

    async def run() -> None:
        headers = [(b"x-request-id", sent.encode())] if sent else []
        proxy = Proxy()
        await PlainRequestIds(app)({"type": "http", "headers": headers}, proxy.receive, proxy.send)

    asyncio.run(run())
    assert len(seen) == 1
    assert (seen[0] == sent) is is_kept
    assert seen[0].isalnum() or is_kept
