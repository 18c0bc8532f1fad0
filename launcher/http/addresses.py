"""Hosts, origins and urls as options and headers have them."""

from __future__ import annotations

import ipaddress
import re
from contextlib import suppress
from urllib.parse import urlsplit

_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
_NAME = re.compile(r"[a-z0-9_]([a-z0-9._-]{0,251}[a-z0-9_])?", re.IGNORECASE)
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*\]|(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)(?::[0-9]*)?")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*", re.IGNORECASE)


def is_host(name: str) -> bool:
    """Whether it is a host's name or address, without a port."""
    with suppress(ValueError):
        ipaddress.ip_address(name)
        return True
    return _NAME.fullmatch(name) is not None


def host_name(host: str) -> str | None:
    """The name in a Host header (RFC 3986), without port and brackets; None if it is no such header."""
    match = _HOST.fullmatch(host)
    return None if match is None else match[1].strip("[]").lower()


def can_begin_links(url: str) -> bool:
    """Whether links to this server may begin with it."""
    with suppress(ValueError):
        return _is_plain(url) and urlsplit(url).scheme in _DEFAULT_PORTS
    return False


def is_origin(text: str) -> bool:
    """Whether it is scheme://host or scheme://host:port. Extensions and apps have schemes of their own."""
    with suppress(ValueError):
        parts = urlsplit(text)
        is_short = f"{parts.scheme}://{parts.netloc}".lower() == text.lower()
        return is_short and _SCHEME.fullmatch(parts.scheme) is not None and _is_plain(text)
    return False


def origin_of(url: str) -> str:
    """The origin of what lies at a url, as browsers write it. Raises `ValueError` for some that are none."""
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    return f"{scheme}://{parts.netloc.lower().removesuffix(_DEFAULT_PORTS.get(scheme, ''))}"


def _is_plain(url: str) -> bool:
    parts = urlsplit(url)
    is_plain = url.isascii() and url.isprintable() and not set(url) & set(" ?#@\\")
    return is_plain and parts.port != 0 and not parts.netloc.endswith(":") and is_host(parts.hostname or "")
