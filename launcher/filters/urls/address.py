"""Reads the URL that a filter asks, and refuses what would carry prompts and keys over a network in the clear."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

_PORTS = {"https": 443, "http": 80}


@dataclass(frozen=True)
class Address:
    """Where a service answers. target: path and query, which are in no error, since a query may hold a key."""

    host: str
    port: int
    target: str
    is_tls: bool

    def __str__(self) -> str:
        return f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def read_address(url: str, route: str, *, insecure: bool) -> Address:
    """Read a URL. route: what a URL lacks that ends with its host or with /v1, such as "moderations".

    insecure: allows http to other machines. Raises `ValueError`, which says what is wrong with the URL.
    """
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError("has characters that are written as %XX there, or as punycode in a host")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError("cannot be read") from None
    if parts.scheme not in _PORTS or not host or port == 0:
        raise ValueError("must begin with https://HOST, or with http://HOST for this machine")
    if parts.username is not None:
        raise ValueError("has a key in it, which logs would show: name an environment variable that has it by key-env=")
    if parts.fragment:
        raise ValueError("has a fragment (#…), which is never sent")
    if parts.scheme == "http" and not insecure and not _is_loopback(host):
        raise ValueError(
            f"would carry prompts, pictures and keys to {host} for all in between to read: use https, or add "
            "insecure=yes where you trust the network"
        )
    path = parts.path.rstrip("/")
    if path == "" or path.endswith("/v1"):
        path = f"{path or '/v1'}/{route}"
    target = f"{path}?{parts.query}" if parts.query else path
    return Address(host, port or _PORTS[parts.scheme], target, parts.scheme == "https")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
