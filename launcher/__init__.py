"""The processes around the engine: front-end, ranks, clients and the command line.

`launch` starts an engine on this machine, `Client` and `AsyncClient` talk to one that runs already. Importing this
package imports neither torch nor zmq; what is used is imported when it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from launcher.client import AsyncClient, Client, Result
    from launcher.spawn import launch

__all__ = ["AsyncClient", "Client", "Result", "launch"]


def __getattr__(name: str) -> Any:
    if name == "launch":
        from launcher.spawn import launch

        return launch
    if name in __all__:
        from launcher import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
