"""The client that `launch` gives, with which its engine ends."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, TypeVar

from launcher.client.client import Client
from launcher.messages.configs import FrontendConfig

T = TypeVar("T")


class EngineClient(Client):
    """A client of an engine that this program has started: closing it stops the engine.

    engine: what that takes, to which disconnecting is added. explaining: adds to errors what the engine has said.
    """

    def __init__(
        self,
        address: str,
        config: FrontendConfig,
        engine: ExitStack,
        explaining: Callable[[], AbstractContextManager[None]],
    ) -> None:
        super().__init__(address, connect=False, name=config.client_name)
        self._config, self._engine, self._explaining = config.engine, engine, explaining
        engine.callback(self.thread.close)
        self._forgotten.detach()
        self._forgotten = self._when_forgotten(engine.close)

    def __repr__(self) -> str:
        model, ranks = Path(self._config.model or "demo").name, self._config.ranks
        state = "stopped" if self.thread.closed else f"{ranks} rank{'s' if ranks > 1 else ''}, {self.address}"
        return f"<Client of an engine of its own: {model}, {state}>"

    def close(self) -> None:
        """Cancel what is waiting and stop the engine; doing so again does nothing."""
        super().close()
        self._engine.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine over the asyncio client in this client's thread, and wait for it."""
        if self.thread.closed:
            return super().run(work)
        with self._explaining():
            return super().run(work)
