"""The paths that clients send: below the path of `--public-url` or not, with slashes that mean nothing."""

from __future__ import annotations

import re
from urllib.parse import quote, unquote, urlsplit

from starlette.types import Scope


class Paths:
    """Finds the path of a route in what a client sent, so that no slash too many is answered with a redirect, which
    would lead to an address that only a proxy in front of this server knows."""

    def __init__(self, public_url: str | None) -> None:
        path = unquote(urlsplit(public_url).path) if public_url is not None else ""
        self._prefix = _without_empty(path).rstrip("/")

    def simplify(self, scope: Scope) -> None:
        """Leave the path of a route in the `path` of a request, and in its state's `root` the way from where its client
        is to the path `/` of this server: `./`, `../` and so on, or the path of the public URL.

        A proxy may take that path off, or pass it on.
        """
        path = _without_empty(scope["path"])
        if self._prefix:
            root = f"{quote(self._prefix)}/"
            if path == self._prefix or path.startswith(self._prefix + "/"):
                path = path.removeprefix(self._prefix)
        else:
            root = "../" * (scope["raw_path"].count(b"/") - 1) or "./"
        scope["path"] = path.rstrip("/") or "/"
        scope["state"]["root"] = root


def _without_empty(path: str) -> str:
    return re.sub("/{2,}", "/", path)
