"""Stands before a server and keeps all bytes that leave it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass
class Recorder:
    """An address on loopback behind which a server is, and what it has sent over each connection."""

    port: int = 0
    sent: list[bytearray] = field(default_factory=list)


@asynccontextmanager
async def recorded(address: str) -> AsyncIterator[Recorder]:
    """Record what leaves a server at `http://HOST:PORT`, `tcp://HOST:PORT` or `ipc://PATH`."""
    recorder, under_way = Recorder(), set[asyncio.Task[None]]()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        under_way.add(task)
        try:
            await _pass_on(recorder, address, reader, writer)
        except asyncio.CancelledError:  # which asyncio's streams would report
            pass
        finally:
            under_way.discard(task)

    async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
        recorder.port = server.sockets[0].getsockname()[1]
        try:
            yield recorder
        finally:
            for task in [*under_way]:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)


async def _pass_on(
    recorder: Recorder, address: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    sent = bytearray()
    recorder.sent.append(sent)
    from_server, to_server = await _open(address)
    try:
        tasks = [asyncio.create_task(_copy(reader, to_server)), asyncio.create_task(_copy(from_server, writer, sent))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        to_server.close()
        writer.close()


async def _open(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(address)
    if parts.scheme == "ipc":
        return await asyncio.open_unix_connection(address.removeprefix("ipc://"))
    return await asyncio.open_connection(parts.hostname, parts.port)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: bytearray | None = None) -> None:
    while data := await reader.read(2**16):
        if kept is not None:
            kept += data
        writer.write(data)
        await writer.drain()
