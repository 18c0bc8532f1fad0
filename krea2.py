"""What Python programs import of krea2-engine: `from krea2 import launch, Client, AsyncClient`.

`launch` and, for asyncio, `launch_async` start an engine on this machine, `Client` and `AsyncClient` talk to one that
runs already, and errors are subclasses of `Krea2Error`. Importing this imports neither torch nor zmq; what is used is
imported when it is used. `python -m krea2` is the command `krea2`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import launcher
from engine import __version__ as __version__
from engine.errors import (
    ArgumentError,
    CancelledError,
    CheckpointError,
    ConflictError,
    FilterUnavailableError,
    IdempotencyConflictError,
    Krea2Error,
    LaunchError,
    LoraError,
    ModerationBlockedError,
    NotFiniteError,
    OutOfMemoryError,
    QueueFullError,
    RankError,
    RateLimitedError,
    RequestKilledRanksError,
    RequestTimeoutError,
    ServerError,
)

if TYPE_CHECKING:
    from launcher import Accepted, AsyncClient, Client, ImageFile, PreviewFile, Progress, Result, launch, launch_async

__all__ = [
    "Accepted",
    "ArgumentError",
    "AsyncClient",
    "CancelledError",
    "CheckpointError",
    "Client",
    "ConflictError",
    "FilterUnavailableError",
    "IdempotencyConflictError",
    "ImageFile",
    "Krea2Error",
    "LaunchError",
    "LoraError",
    "ModerationBlockedError",
    "NotFiniteError",
    "OutOfMemoryError",
    "PreviewFile",
    "Progress",
    "QueueFullError",
    "RankError",
    "RateLimitedError",
    "RequestKilledRanksError",
    "RequestTimeoutError",
    "Result",
    "ServerError",
    "launch",
    "launch_async",
]


def __getattr__(name: str) -> Any:
    if name not in launcher.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(launcher, name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


if __name__ == "__main__":
    from launcher.__main__ import main

    main()
