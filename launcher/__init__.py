"""The processes around the engine: front-end, ranks, clients and the command line.

`launch` and `launch_async` start an engine on this machine, `Client` and `AsyncClient` talk to one that runs already:
`krea2.py`, which users import, has them from here. Importing this package imports neither torch nor zmq; what is used
is imported when it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from launcher.client.async_client import AsyncClient
    from launcher.client.client import Client
    from launcher.client.results import ImageFile, PreviewFile, Result
    from launcher.messages.client_messages import Accepted, Progress
    from launcher.setup.async_launch import launch_async
    from launcher.setup.launch import launch

__all__ = [
    "Accepted",
    "AsyncClient",
    "Client",
    "ImageFile",
    "PreviewFile",
    "Progress",
    "Result",
    "launch",
    "launch_async",
]

_HOMES = {
    "Accepted": "messages.client_messages",
    "AsyncClient": "client.async_client",
    "Client": "client.client",
    "ImageFile": "client.results",
    "PreviewFile": "client.results",
    "Progress": "messages.client_messages",
    "Result": "client.results",
    "launch": "setup.launch",
    "launch_async": "setup.async_launch",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"launcher.{_HOMES[name]}"), name)
