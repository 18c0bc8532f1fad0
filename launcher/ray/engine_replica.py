"""The actor of one GPU group: it starts an engine, and passes wire messages on between its front-end and the ingress.

Bytes go in and bytes come out, so that an ingress and an engine of different releases understand each other.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from engine.errors import ArgumentError, Krea2Error, LaunchError, LoraError, ModerationBlockedError, ServerError
from launcher.logs import configure_logs, log_event
from launcher.messages import client_messages as messages
from launcher.messages.encoding import MessageError, as_krea2_error, decode_request, name_files
from launcher.messages.limits import Limits
from launcher.ray.engine.gathering import Gathering
from launcher.ray.engine.loras import LoraSet
from launcher.ray.settled import settle
from launcher.ray.wire import encode_named, encode_replies
from launcher.threads import in_own_thread

if TYPE_CHECKING:
    from launcher.client.async_client import AsyncClient

_LAST_WORDS_S = 0.5  # for failures to be read by those who wait, before the actor of a dead front-end exits
_ASK_S = 5.0  # for the front-end to answer a question
_WARM_UP_S = 240.0  # for ranks to be warmed up before requests come, which wait for the rest of it beyond that
_POLL_S = 0.1
_FAILED = 1  # the exit code of that


class EngineReplica:
    """One engine, started with a cluster's arguments; ends with its front-end. name: what others know it by."""

    def __init__(self, args: Mapping[str, Any], name: str) -> None:
        configure_logs("json", process="engine")
        self._args, self._name = args, name
        self._limits = Limits()
        self._ended: Krea2Error | None = None
        self._client: AsyncClient | None = None
        self._loras = LoraSet()
        self._draws = False  # it has been configured, so that requests come

    async def start(self) -> None:
        """Start the engine, and wait until it draws as fast as it will. Raises what `launch` does."""
        from launcher.setup.async_launch import launch_frontend_async  # which imports much

        _leave_threads_to_ranks()
        settled = await in_own_thread(partial(settle, self._args))
        self._limits = settled.frontend.limits
        self._loras = LoraSet(settled.args.engine.get("lora_dir"))
        self._client = await launch_frontend_async(settled.frontend, on_end=self._front_end_ended)
        try:
            await self._warm_up()
        except BaseException:
            await self.stop()
            raise

    async def _warm_up(self) -> None:
        """Wait until ranks have been warmed up, since an update stops an old engine once this one has started."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_WARM_UP_S):
                while not (status := await self._running().status()).ready:
                    if status.given_up:
                        raise LaunchError(f"the ranks were given up: {status.not_ready}")
                    await asyncio.sleep(_POLL_S)

    # ---- what an ingress asks for

    async def draw(
        self, header: bytes, files: list[bytes], progress: bool, hints: bytes
    ) -> AsyncGenerator[bytes, None]:
        """Draw what a `Generate` message asks for. Each chunk is what `encode_replies` makes of the replies so far.

        A failure is a `Failed` message, the last. Without `progress` only the first `Progress` of an attempt is passed
        on, which says that it has begun. hints: what routing was told, of no use here. Closing it early cancels.
        """
        request_id = None
        try:
            request = decode_request(header)
            if not isinstance(request, messages.Generate):
                raise Krea2Error(f"draw takes a generate message, got {type(request).__name__}")
            request_id = request.request_id
            named = name_files(request, files, self._limits)
            del files
            replies = self._running().replies(request, named)
            async with aclosing(Gathering(replies, progress=progress).chunks()) as chunks:
                del named
                async for chunk in chunks:
                    yield encode_replies(chunk)
        except MessageError as wrong:
            yield _failed(wrong.request_id, wrong.error)
        except Exception as error:
            yield _failed(request_id, as_krea2_error(error))

    async def ask(self, question: bytes) -> bytes:
        """Answer a `Status`, `Metrics` or `ListLoras` message: with its one reply, or `Failed`."""
        request_id = None
        try:
            asked = decode_request(question)
            request_id = getattr(asked, "request_id", None)
            client = self._running()
            async with asyncio.timeout(_ASK_S):
                match asked:
                    case messages.Status():
                        return encode_replies([(await client.status(), b"")])
                    case messages.Metrics():
                        return encode_replies([(messages.MetricsReply(), await client.metrics())])
                    case messages.ListLoras():
                        return encode_replies([(await client.loras(), b"")])
            raise Krea2Error(f"ask takes no {type(asked).__name__} message")
        except MessageError as wrong:
            return _failed(wrong.request_id, wrong.error)
        except TimeoutError:
            return _failed(request_id, ServerError(f"the front-end did not answer within {_ASK_S:g} s"))
        except Exception as error:
            return _failed(request_id, as_krea2_error(error))

    async def report(self, question: bytes) -> bytes:
        """Answer as `ask` does, with the name before it: for a question to all engines."""
        return encode_named(self._name, await self.ask(question))

    # ---- what Serve asks for

    async def check_health(self) -> None:
        """Raise an error if this engine will make no more images: its front-end has ended or hangs, or its ranks were
        given up. While ranks are replaced it is well."""
        status = await self._status()
        if status.given_up:
            raise RuntimeError(f"the ranks were given up: {status.not_ready}")

    async def record_routing_stats(self) -> dict[str, float]:
        """Say how much work there is, for routing: NaN seconds while nobody knows. All ingresses are told each change,
        so that it is rounded."""
        status = await self._status()
        backlog_s = math.nan if status.backlog_s is None else round(status.backlog_s, 2)
        return {"backlog_s": backlog_s, "waiting": status.waiting, "running": status.running}

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Say how much work there is, for the number of replicas: none while nobody knows, until the first step."""
        stats = await self.record_routing_stats()
        backlog_s = stats["backlog_s"]
        return {"backlog_s": 0.0 if math.isnan(backlog_s) else backlog_s, "waiting": stats["waiting"]}

    async def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Load and unload LoRAs, so that there are those that the config declares.

        Raises `ArgumentError`, `LoraError` the first time. An engine that has begun to draw goes on with what can be
        used, since Serve would end it, and those that it starts in its place.
        """
        try:
            await self._loras.declare(user_config, self._running())
        except (ArgumentError, LoraError) as error:
            if not self._draws:
                raise
            log_event("a declared LoRA cannot be used", level="error", message=error.message)
        self._draws = True

    async def stop(self) -> None:
        """Stop the engine, and what it still draws."""
        if self._client is not None:
            client, self._client = self._client, None
            await client.close()

    async def _status(self) -> messages.StatusReply:
        """Ask the front-end. What this raises goes to Serve's controller, so that it is none of our own types."""
        try:
            async with asyncio.timeout(_ASK_S):
                return await self._running().status()
        except Krea2Error as error:
            raise RuntimeError(error.message) from None

    def _running(self) -> AsyncClient:
        if self._ended is not None:
            raise self._ended.with_traceback(None)
        if self._client is None:
            raise ServerError("the engine is being stopped")
        return self._client

    def _front_end_ended(self, error: Krea2Error) -> None:
        """Let those who wait hear it, and end: a new actor is started in this one's place."""
        if self._client is None:
            return
        self._ended = ServerError(f"the engine has ended: {error.message}")
        log_event("the front-end has ended, and so does its actor", level="error", message=error.message)
        asyncio.get_running_loop().call_later(_LAST_WORDS_S, os._exit, _FAILED)


def _leave_threads_to_ranks() -> None:
    """Undo what Ray does to the processes of its actors, where it would slow ranks down, or tell of it."""
    os.environ.pop("OMP_NUM_THREADS", None)  # 1 for an actor of few CPUs; ranks share the cores among them
    niceness = os.nice(0)
    if niceness > 0:
        log_event(
            "ranks run at a low priority", level="warning", niceness=niceness,
            message="set RAY_worker_niceness=0 in the environment where Ray is started",
        )  # fmt: skip


def _failed(request_id: str | None, error: Krea2Error) -> bytes:
    failed = messages.Failed(
        request_id=request_id,
        code=error.code,
        message=error.message,
        parameter=error.parameter,
        retry_after_s=error.retry_after_s,
        category=error.category if isinstance(error, ModerationBlockedError) else None,
    )
    return encode_replies([(failed, b"")])
