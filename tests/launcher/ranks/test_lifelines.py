"""Lifelines of ranks that torchrun started."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from launcher.ranks.lifelines import hold_lifelines
from tests.launcher.processes import PATIENCE_S, temporary_folder


async def _connect(path: str, rank: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    while not Path(path).exists():
        await asyncio.sleep(0.01)
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(bytes([rank]))
    return reader, writer


def test_a_lifeline_that_breaks_is_heard_of_and_one_that_is_held_to_the_end_leaves_no_complaint() -> None:
    complaints: list[dict[str, Any]] = []

    async def hold(path: str) -> list[int]:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        lost: asyncio.Queue[int] = asyncio.Queue()
        holding = asyncio.create_task(hold_lifelines(path, lost.put_nowait))
        async with asyncio.timeout(PATIENCE_S):
            held, writer = await _connect(path, 1)
            _, broken = await _connect(path, 2)
            broken.close()
            heard = [await lost.get()]
        assert not held.at_eof()
        assert not writer.is_closing()
        assert not holding.done()
        return heard  # what is still held is cancelled, as at a front-end's end

    with temporary_folder() as folder:
        assert asyncio.run(hold(f"{folder}/lifelines")) == [2]
    assert complaints == []
