"""The names under which the server is reached: those that Host may have, and the origins of its own pages."""

from __future__ import annotations

import ipaddress
import re
from contextlib import suppress
from urllib.parse import urlsplit

from engine.errors import ArgumentError
from launcher.messages.configs import HttpConfig
from launcher.messages.sockets import is_loopback

_NAME = re.compile(r"[a-z0-9_]([a-z0-9._-]{0,251}[a-z0-9_])?", re.IGNORECASE)
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def allowed_hosts(config: HttpConfig) -> set[str] | None:
    """The names that Host may have, or None for all, where other machines reach the server."""
    if not is_loopback(config.host):
        return None
    return {"localhost", "127.0.0.1", "::1", config.host.lower(), *map(str.lower, config.allowed_hosts)}


def host_name(host: str) -> str:
    """The name in a Host header, without port and brackets; empty if it is none."""
    with suppress(ValueError):
        return urlsplit(f"//{host}").hostname or ""
    return ""


def is_own_origin(origin: str, host: str, public_url: str | None) -> bool:
    """Whether a page of this server says so in Origin; `host` is the same request's Host."""
    with suppress(ValueError):
        is_same = urlsplit(origin).netloc.lower() == host.lower()
        return is_same or (public_url is not None and _origin_of(origin) == _origin_of(public_url))
    return False


def check_allowed_host(name: str) -> None:
    """Raise `ArgumentError` for what is neither a host name nor an address, as one with a port."""
    if not _is_host(name):
        raise ArgumentError.of("allowed_host", "a host name or address without port, as images.example", name)


def check_public_url(url: str) -> None:
    """Raise `ArgumentError` for what links cannot begin with."""
    with suppress(ValueError):
        parts = urlsplit(url)
        is_plain = url.isascii() and url.isprintable() and not set(url) & set(" ?#@\\")
        if is_plain and parts.scheme in _DEFAULT_PORTS and parts.port != 0 and _is_host(parts.hostname or ""):
            return
    raise ArgumentError.of("public_url", "http:// or https://, a host, and a path or none", url)


def _is_host(name: str) -> bool:
    with suppress(ValueError):
        ipaddress.ip_address(name)
        return True
    return _NAME.fullmatch(name) is not None


def _origin_of(url: str) -> str:
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    return f"{scheme}://{parts.netloc.lower().removesuffix(_DEFAULT_PORTS.get(scheme, ''))}"
