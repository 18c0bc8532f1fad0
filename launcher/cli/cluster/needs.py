"""Says what a cluster needs that is not here."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from engine.errors import ArgumentError

INSTALL = "pip install 'krea2-engine[ray]'"


def need_ray(what: str) -> None:
    """Raise `ArgumentError` where there is no Ray, as on systems that there is none for."""
    if sys.platform != "linux":
        raise ArgumentError(f"{what} needs Linux: it runs on Ray, of which the extra for other systems has none")
    if find_spec("ray") is None:
        raise ArgumentError(f"{what} needs Ray: {INSTALL}")
