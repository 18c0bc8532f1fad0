"""How what runs for a request takes leave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress

FAREWELL_S = 2.0  # for an engine to be told that nobody follows any more, or to end a call by itself


async def end(task: asyncio.Task[None]) -> None:
    """Cancel a task, and give it a while to take leave."""
    task.cancel()
    if not task.done():
        await asyncio.wait((task,), timeout=FAREWELL_S)
    if task.done():
        _see(task)
    else:
        task.add_done_callback(_see)


async def drain(chunks: AsyncGenerator[bytes, None]) -> None:
    """Let a call end by itself, which has nothing more to say."""
    with suppress(Exception):
        async with asyncio.timeout(FAREWELL_S):
            async for _ in chunks:
                pass


def _see(task: asyncio.Task[None]) -> None:
    """Look at what a task has raised, which nobody waits for."""
    if not task.cancelled():
        task.exception()
