"""The clients of a front-end that are processes of its own, which it knows by secret names, and where they connect."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from contextlib import suppress

PREFIX = b"own-"  # of their names, which nobody else's may have


class OwnClients:
    """Names, as zmq's routing ids, of the clients that are our own processes. Random, so that nobody can take one.

    A process' parent adds a name before it starts the process, and says from any thread when the process has ended. Of
    a client that is here nobody need guess by its silence whether it lives.
    """

    def __init__(self) -> None:
        self._names: set[bytes] = set()
        self._on_end: Callable[[bytes], object] = self.remove

    def __contains__(self, client: object) -> bool:
        return client in self._names

    def add(self, name: bytes | None = None) -> bytes:
        """Return the name of a process that is to be started, or that has been given this one."""
        name = new_name() if name is None else name
        self._names.add(name)
        return name

    def end(self, name: bytes) -> None:
        """Note that the process of this name has ended: whoever follows the ends hears it, or else it is removed."""
        with suppress(RuntimeError):  # the loop has ended
            self._on_end(name)

    def follow(self, on_end: Callable[[bytes], None]) -> None:
        """Call back, in the running loop, with the name of each process that ends, which is then to be removed."""
        loop = asyncio.get_running_loop()
        self._on_end = lambda name: loop.call_soon_threadsafe(on_end, name)

    def remove(self, name: bytes) -> None:
        """Forget a name."""
        self._names.discard(name)


def new_name() -> bytes:
    """Draw a name."""
    return PREFIX + secrets.token_bytes(16)


def own_address(run_folder: str) -> str:
    """Give the address where a front-end listens for its own processes, and the `Entrance` for everybody else."""
    return f"ipc://{run_folder}/inside"
