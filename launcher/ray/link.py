"""The link of an ingress to the engines of its cluster, over Serve's handle of their deployment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any, TypeVar

from ray.exceptions import LocalRayletDiedError, NodeDiedError, ObjectLostError, RayActorError, WorkerCrashedError
from ray.serve.exceptions import DeploymentUnavailableError, ReplicaUnavailableError, RequestCancelledError

from engine.errors import CancelledError, ConflictError, ServerError, error_from_code
from launcher.client.async_client import NO_FILES
from launcher.client.results import Event, Following
from launcher.http.answers.link import ASK_S
from launcher.logs import log_event
from launcher.messages import client_messages as messages
from launcher.messages.encoding import describe, encode_request
from launcher.ray.fleet import FLEET, Fleet
from launcher.ray.replay import Replay, ReplicaLostError
from launcher.ray.replaying.retelling import Usual
from launcher.ray.web.asking import answers_within
from launcher.ray.web.summary import add_status, join_metrics
from launcher.ray.wire import decode_named, decode_replies

_LOST = (
    RayActorError, ObjectLostError, WorkerCrashedError, NodeDiedError, LocalRayletDiedError, ReplicaUnavailableError,
)  # fmt: skip
_ASK_S = 0.8 * ASK_S  # for all engines to answer, so that those who have can be told of
_FRESH_S = 0.25  # that a status is answered again: whoever asks, with or without a key, all engines are asked for it
_LOOK_S = 1.0  # between looks for engines until there is one
_STARTING = "the cluster has no engine that takes requests yet: try again in a moment"

T = TypeVar("T", bound=messages.Message)


class RayLink:
    """The `Link` to all engines behind a handle of their deployment. Requests are sent where the least work is ahead,
    and again elsewhere by the rules of `Replay`.

    handle: Serve's `DeploymentHandle`. usual: the defaults of the engines' model. fleet: what its router tells of the
    replicas.
    """

    def __init__(self, handle: Any, usual: Usual, fleet: Fleet = FLEET) -> None:
        self._handle, self._fleet = handle, fleet
        self._draw = handle.options(method_name="draw", stream=True)
        self._ask_one = handle.options(method_name="ask")
        self._replay = Replay(self._send, fleet, usual)
        self.counts = self._replay.counts
        self._status: asyncio.Task[messages.StatusReply] | None = None  # the newest, for all who ask meanwhile
        self._status_at = 0.0

    @asynccontextmanager
    async def connected(self, _: object) -> AsyncIterator[None]:
        """Have Serve look for the engines, which it does once somebody asks."""
        looking = asyncio.create_task(self._look())
        yield
        looking.cancel()
        await asyncio.wait((looking,))

    async def follow(
        self, request: messages.Generate, files: Mapping[str, bytes] = NO_FILES, *, progress: bool = True
    ) -> AsyncGenerator[Event, None]:
        """Follow a request, whichever engines draw it. Closing the iterator cancels it.

        One that ends as if cancelled raises `ServerError`: whoever hangs up stops following.
        """
        following = Following(request)
        async with aclosing(self._replay.replies(request, files, progress=progress)) as replies:
            try:
                async for reply, file in replies:
                    for event in following.hear(reply, file):
                        yield event
            except CancelledError as error:
                raise ServerError(f"the request was lost within the cluster: {error.message}") from None

    async def status(self) -> messages.StatusReply:
        """Ask all engines, and add up what they say within a moment. Raises `ServerError` if none does."""
        now = asyncio.get_running_loop().time()
        if self._status is None or (self._status.done() and now - self._status_at >= _FRESH_S):
            self._status, self._status_at = asyncio.create_task(self._ask_for_status()), now
            self._status.add_done_callback(lambda asked: asked.cancelled() or asked.exception())  # if nobody waits
        return await asyncio.shield(self._status)

    async def _ask_for_status(self) -> messages.StatusReply:
        found = await self._ask_all(messages.Status(), messages.StatusReply)
        return add_status([status for _, status, _ in found])

    async def metrics(self) -> bytes:
        """Ask all engines for their metrics, and put them into one text, each with a label `replica`."""
        found = await self._ask_all(messages.Metrics(), messages.MetricsReply)
        return join_metrics({name: text for name, _, text in found}, "replica")

    async def loras(self) -> messages.Loras:
        """List the LoRAs of an engine: all have the same, but while they are told of others."""
        question = messages.ListLoras(request_id="loras")
        try:
            async with asyncio.timeout(_ASK_S):
                chunk = await self._ask_one.ask.remote(encode_request(question))
        except (*_LOST, DeploymentUnavailableError, RequestCancelledError, TimeoutError) as error:
            raise ServerError(f"no engine answers: {type(error).__name__}") from None
        return _only(chunk, messages.Loras)[0]

    async def load_lora(self, name: str, path: str | None, strength: float) -> messages.Loras:
        """Refuse it: which LoRAs there are is declared for all engines, those that start later too."""
        raise ConflictError(LORAS_DECLARED)

    async def unload_lora(self, name: str) -> messages.Loras:
        """Refuse it: see `load_lora`."""
        raise ConflictError(LORAS_DECLARED)

    def end(self) -> None:
        """Fail what engines draw, since the cluster is stopped."""
        self._replay.end()

    # ---- over the handle

    async def _send(
        self, header: bytes, files: list[bytes], progress: bool, hints: bytes
    ) -> AsyncGenerator[bytes, None]:
        response = self._draw.remote(header, files, progress, hints)
        ended = False
        try:
            async for chunk in response:
                yield chunk
            ended = True
        except _LOST as error:
            ended = True
            raise ReplicaLostError(describe(error)) from None
        except DeploymentUnavailableError as error:
            ended = True
            raise ServerError(f"the cluster's engines cannot be started: {error.message}") from None
        except (RequestCancelledError, asyncio.CancelledError):
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise ReplicaLostError("the request was cancelled within the cluster") from None
        finally:
            if not ended:
                response.cancel()

    async def _ask_all(self, question: messages.Request, kind: type[T]) -> list[tuple[str, T, bytes]]:
        """Ask all engines. Returns the answers that came within a moment, each with its engine and its file."""
        results: list[Any] = []
        with suppress(DeploymentUnavailableError, TimeoutError, *_LOST):
            results = await answers_within(self._handle.broadcast("report", encode_request(question)), _ASK_S)
        found: list[tuple[str, T, bytes]] = []
        for result in results:
            name, chunk = decode_named(result)
            ((reply, file),) = decode_replies(chunk)
            if isinstance(reply, kind):
                found.append((name, reply, file))
        if not found:
            raise ServerError(_STARTING)
        return found

    async def _look(self) -> None:
        """Ask until an engine answers: Serve's router is made by the first call, and hears of replicas from then on."""
        while True:
            try:
                await self.status()
                return
            except ServerError:
                pass
            except Exception as error:
                log_event("the engines cannot be asked", level="warning", error=str(error))
            await asyncio.sleep(_LOOK_S)


LORAS_DECLARED = (
    "a cluster's LoRAs are declared in its config, for engines that start later too: name them in user_config of the "
    "deployment engine, and deploy that, or by --lora of krea2 cluster run"
)


def _only(chunk: bytes, kind: type[T]) -> tuple[T, bytes]:
    """Read the one reply of a chunk. Raises the error that it has instead."""
    ((reply, file),) = decode_replies(chunk)
    if isinstance(reply, messages.Failed):
        raise error_from_code(reply.code, reply.message, reply.parameter, reply.retry_after_s, reply.category)
    if not isinstance(reply, kind):
        raise ServerError("an engine of another release answers otherwise than expected")
    return reply, file
