"""The router as Serve takes it: it copies everything that the module of a router's class has, so this has next to
nothing. The class below it stays the one that the ingress imports, and with it what the process knows of its fleet."""

from __future__ import annotations

from launcher.ray.router import WorkRouter


class Router(WorkRouter):
    """`WorkRouter`."""
