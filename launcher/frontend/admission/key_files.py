"""Reads files of keys and of their limits again while a server runs, as SIGHUP asks for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from engine.errors import ArgumentError
from launcher.logs import log_event


async def read_again(files: Mapping[str, Callable[[], int]]) -> None:
    """Read each file, or folder, in a thread, and log how many keys it has. A damaged one leaves what was."""
    for file, read in files.items():
        try:
            log_event("keys read again", file=file, keys=await asyncio.to_thread(read))
        except ArgumentError as error:
            log_event("keys not read again", level="error", message=error.message)
