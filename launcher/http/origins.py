"""Whose web pages may use the server: the names that Host may have, and what browsers are told of other origins (CORS).

Host is checked whatever the origin, or a page could rebind its own name to this machine and be of our origin.
"""

from __future__ import annotations

import re
from contextlib import suppress
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response

from engine.errors import error_from_code
from launcher.http.addresses import host_name, origin_of
from launcher.http.answers.errors import shorten
from launcher.messages.configs import HttpConfig
from launcher.messages.connections.sockets import is_loopback

ANY = "*"
_METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE"
_HEADERS = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~, -]+")
_MAX_AGE_S = 7200  # that a browser remembers an answer; Chromium's most
# What scripts may read of an answer besides the few that they always may.
_READABLE = "Retry-After, X-Request-ID, X-Should-Retry, Idempotent-Replayed, WWW-Authenticate, Allow, ETag, Date"


class Origins:
    """The hosts and the origins that a server answers."""

    def __init__(self, config: HttpConfig) -> None:
        self._public_url = config.public_url
        self._is_open = ANY in config.allowed_origins
        self._allowed = {origin_of(origin) for origin in config.allowed_origins if origin != ANY}
        self._hosts: set[str] | None = None  # that Host may name; any where other machines reach the server
        if is_loopback(config.host):
            self._hosts = {"localhost", "127.0.0.1", "::1", config.host.lower(), *map(str.lower, config.allowed_hosts)}
            if config.public_url is not None and (public := urlsplit(config.public_url).hostname):
                self._hosts.add(public)  # in lower case

    def check(self, request: Request, *, is_probe: bool) -> None:
        """Refuse what a web page of somebody else makes the user's browser send. is_probe: answer whatever the Host."""
        host = request.headers.get("host", "")
        name = host_name(host)
        if not is_probe and (name is None or (self._hosts is not None and name not in self._hosts)):
            allowed = "localhost, the address of this server, the --public-url's or an --allowed-host"
            if self._hosts is None:
                allowed = "a name or an address, and a port or none"
            raise error_from_code("host_not_allowed", f"Host must be {allowed}, got {shorten(host)!a}")
        origin = request.headers.get("origin")
        if request.method in ("GET", "HEAD") or origin is None:
            return
        if not (self._allows(origin) or self._is_own(origin, host)):
            told = f"Origin must be this server's own or an --allow-origin, got {shorten(origin)!a}"
            raise error_from_code("origin_not_allowed", told)

    def headers(self, request: Request) -> dict[str, str]:
        """The headers by which a browser knows whether to show an answer to the page that asked. No page may use what
        the browser itself would add, as cookies: a key is sent by the page."""
        origin = request.headers.get("origin")
        if self._is_open:
            return {"Access-Control-Allow-Origin": ANY, "Access-Control-Expose-Headers": _READABLE}
        if not self._allowed:
            return {}
        vary = {"Vary": "Origin"}
        if origin is None or not self._allows(origin):
            return vary
        return vary | {"Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": _READABLE}

    def answer_preflight(self, request: Request) -> Response | None:
        """Answer a browser that asks whether a page may send what it wants to; None if that is not the question.

        Whatever the route, so that the page can read what is wrong with its request. Comes after `check`.
        """
        asked, origin = request.headers, request.headers.get("origin")
        if request.method != "OPTIONS" or "access-control-request-method" not in asked:
            return None
        if origin is None or not self._allows(origin):
            return None
        headers = {"Access-Control-Allow-Methods": _METHODS, "Access-Control-Max-Age": str(_MAX_AGE_S)}
        if _HEADERS.fullmatch(wanted := asked.get("access-control-request-headers", "")):
            headers["Access-Control-Allow-Headers"] = wanted  # * would leave out Authorization
        if asked.get("access-control-request-private-network") == "true":
            headers["Access-Control-Allow-Private-Network"] = "true"
        return Response(status_code=204, headers=headers)

    def _allows(self, origin: str) -> bool:
        return self._is_open or origin.lower() in self._allowed

    def _is_own(self, origin: str, host: str) -> bool:
        """Whether a page of this server says so in Origin; `host` is the same request's Host."""
        with suppress(ValueError):
            if urlsplit(origin).netloc.lower() == host.lower():
                return True
            return self._public_url is not None and origin_of(origin) == origin_of(self._public_url)
        return False
