"""Starts an engine from a program with an event loop, which goes on meanwhile."""

from __future__ import annotations

import asyncio
import sys
import warnings
from collections.abc import Callable, Coroutine, Generator
from contextlib import nullcontext
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack

import msgspec

from engine.errors import ArgumentError, Krea2Error
from launcher.client.bars import is_watched
from launcher.messages.configs import FrontendConfig
from launcher.setup.engine_process import EngineProcess, in_silence
from launcher.setup.given import check_given
from launcher.setup.keywords import AnyPath, EngineOptions, with_engine_options
from launcher.setup.loading_bar import LoadingBar
from launcher.threads import begin_in_own_thread, in_own_thread

if TYPE_CHECKING:
    from launcher.client.async_client import AsyncClient

OnEnd = Callable[[Krea2Error], None]


@with_engine_options
def launch_async(
    model: AnyPath | None = None,
    *,
    address: str | None = None,
    on_end: OnEnd | None = None,
    progress: bool | None = None,
    **options: Unpack[EngineOptions],
) -> Launching:
    """Start an engine in processes of its own as `launch` does, for asyncio: `async with launch_async(…) as client`, or
    `client = await launch_async(…)`, with an `AsyncClient` that stops the engine when it is closed.

    The event loop is never kept waiting. Cancelling the start stops what has been started; leaving the block, closing
    the client or forgetting it, and the end of the program stop the engine.

    model, progress and the options are those of `launch`, whose help explains them, and so are the errors.

    address: where clients may connect besides, as ipc:///PATH, or tcp://127.0.0.1:PORT with 0 for any port that is
    free; `client.address` says which it is. None: a socket that only this user can use.

    on_end: called once in the loop, with the error that calls raise from then on, if the engine ends by itself.
    """
    if on_end is not None and not callable(on_end):
        raise ArgumentError.of("on_end", "a function that is called as on_end(error)", on_end)
    return Launching(_start(partial(_check, model, address, options), on_end, progress, _warning_here()))


async def launch_frontend_async(config: FrontendConfig, *, on_end: OnEnd | None = None) -> AsyncClient:
    """Do what `launch_async` does, for a checked configuration, and show nothing meanwhile."""
    return await _start(lambda: (config, ()), on_end, False, warnings.warn)


class Launching(Coroutine[Any, Any, "AsyncClient"]):
    """An engine that starts when this is awaited, or entered by `async with`, which closes its client in the end."""

    def __init__(self, start: Coroutine[Any, Any, AsyncClient]) -> None:
        self._start = start
        self._client: AsyncClient | None = None

    def __await__(self) -> Generator[Any, Any, AsyncClient]:
        return self._start.__await__()

    async def __aenter__(self) -> AsyncClient:
        self._client = await self._start
        return self._client

    async def __aexit__(self, *_: object) -> None:
        assert self._client is not None
        await self._client.close()

    def send(self, value: Any) -> Any:
        """Go on, as coroutines do."""
        return self._start.send(value)

    def throw(self, *error: Any) -> Any:
        """Raise an error in it, as in coroutines."""
        return self._start.throw(*error)

    def close(self) -> None:
        """Give it up, before it has begun."""
        self._start.close()


async def _start(
    check: Callable[[], tuple[FrontendConfig, tuple[str, ...]]],
    on_end: OnEnd | None,
    progress: bool | None,
    warn: Callable[[str], None],
) -> AsyncClient:
    config, problems = await in_own_thread(check)
    for problem in problems:
        warn(problem)
    engine = EngineProcess(config)
    show = is_watched() if progress is None else progress
    starting = begin_in_own_thread(partial(copy_context().run, _start_process, engine, show))
    starting.add_done_callback(asyncio.Future.exception)  # also if nobody waits for it any more
    try:
        client = (await asyncio.shield(starting))(engine)
        await client.connect()
    except BaseException:
        engine.give_up()
        await asyncio.wait([starting])
        await in_own_thread(engine.close)
        raise
    if on_end is not None:
        client.call_at_end(on_end)
    return client


def _check(
    model: AnyPath | None, address: str | None, options: EngineOptions
) -> tuple[FrontendConfig, tuple[str, ...]]:
    if address is not None:
        from launcher.messages.connections.sockets import check_address

        own = "an address that only this machine reaches, as ipc:///PATH or tcp://127.0.0.1:0"
        if not isinstance(address, str) or check_address(address, insecure=True, parameter="address"):
            raise ArgumentError.of("address", own, address)
    config, problems = check_given(model, options)
    return msgspec.structs.replace(config, rpc=address), problems


def _start_process(engine: EngineProcess, show: bool) -> Callable[[EngineProcess], Any]:
    """Start the front-end and wait until it is ready. Returns the class of its client."""
    with LoadingBar() if show else nullcontext() as bar, engine.starting():
        on_loading = in_silence if bar is None else bar.show_loading
        on_loading(0, 0, "starting")
        from launcher.setup.engine_client import AsyncEngineClient  # while the ranks import torch

        engine.wait_until_started(on_loading)
        return AsyncEngineClient


def _warning_here() -> Callable[[str], None]:
    """Warn, later and perhaps in a task, as if it were where `launch_async(…)` stands."""
    caller = sys._getframe(3)  # of this, of that, and of what answers unknown keywords
    where = {"filename": caller.f_code.co_filename, "lineno": caller.f_lineno}
    return partial(warnings.warn_explicit, category=UserWarning, **where)
