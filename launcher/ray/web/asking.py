"""Collects what the replicas of a deployment answer to a question that all are asked."""

from __future__ import annotations

import asyncio
from typing import Any


async def answers_within(asked: Any, seconds: float) -> list[Any]:
    """Wait for the answers to one of Serve's broadcasts: those that come in so many seconds, the others' errors left
    out. Raises `TimeoutError` where Serve knows of no replicas yet, and what `broadcast` raises.

    Serve itself would give none before the last has answered, and one that hangs, or whose node is cut off, would
    silence all.
    """
    ends = asyncio.get_running_loop().time() + seconds
    async with asyncio.timeout_at(ends):
        results = await asked._fetch_replica_results_async()  # Serve's own: see the release that `pyproject.toml` pins
    answering = [asyncio.ensure_future(each.get_async()) for each in results]
    try:
        await asyncio.wait(answering, timeout=max(0.0, ends - asyncio.get_running_loop().time()))
    finally:
        for each in answering:
            each.cancel()
    return [each.result() for each in answering if each.done() and not each.cancelled() and not each.exception()]
