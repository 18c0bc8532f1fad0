"""Tells the service manager that started us how the server is, as sd_notify(3) says; nothing where there is none."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping
from contextlib import suppress

_TAKE_S = 1.0  # for the service manager to take a state, which may have many to read, as while a machine starts


class ServiceManager:
    """Sends systemd, or whoever set `NOTIFY_SOCKET`, states of this server. Without an address it sends nothing.

    watchdog_s: seconds without a sign of life after which it ends the server; None for never.
    """

    def __init__(self, address: str | None = None, watchdog_s: float | None = None) -> None:
        self._address = address
        self._watchdog_s = watchdog_s if address is not None else None
        self._is_stopping = False

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> ServiceManager:
        """Return the one that an environment names, which is for this process alone (`forget_secrets`)."""
        address = environment.get("NOTIFY_SOCKET", "")
        if address[:1] not in ("/", "@"):  # other kinds are for machines, not for services
            return cls()
        if address[0] == "@":
            address = "\0" + address[1:]
        wanted = environment.get("WATCHDOG_USEC", "")
        is_ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        watched = is_ours and wanted.isascii() and wanted.isdigit() and int(wanted) > 0
        return cls(address, int(wanted) / 1e6 if watched else None)

    def ready(self, not_ready: str | None) -> None:
        """Say that images can be made, which ends the start, or why they cannot for now, in a line."""
        if not_ready is None:
            self._send("READY=1\nSTATUS=images can be made")
        elif not self._is_stopping:
            self._send(f"STATUS=not ready: {not_ready}")

    def stopping(self, what: str) -> None:
        """Say that the server stops, and what it still does."""
        self._is_stopping = True
        self._send(f"STOPPING=1\nSTATUS={what}")

    async def give_signs_of_life(self) -> None:
        """Say again and again that the running event loop runs, until cancelled."""
        while self._watchdog_s is not None:
            self._send("WATCHDOG=1", waits=False)  # the next comes soon
            await asyncio.sleep(self._watchdog_s / 2)
        await asyncio.Event().wait()

    def _send(self, states: str, *, waits: bool = True) -> None:
        if self._address is None:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as wire:
            wire.settimeout(_TAKE_S if waits else 0.0)
            wire.connect(self._address)
            wire.send(states.encode())
