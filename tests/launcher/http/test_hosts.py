"""Names and URLs under which the server may be reached."""

from __future__ import annotations

import pytest

from engine.errors import ArgumentError
from launcher.http.hosts import check_allowed_host, check_public_url


@pytest.mark.parametrize("name", ["images.example", "localhost", "a_b", "10.0.0.1", "::1", "x" * 253])
def test_names_and_addresses_are_hosts(name: str) -> None:
    check_allowed_host(name)


@pytest.mark.parametrize("name", ["", "*", "images.example:80", "http://images.example", "a b", ".a", "x" * 254, "é"])
def test_anything_else_is_not_a_host(name: str) -> None:
    with pytest.raises(ArgumentError, match="allowed_host must be a host name or address without port"):
        check_allowed_host(name)


@pytest.mark.parametrize(
    "url", ["https://images.example", "http://images.example:8080/", "https://[::1]:1/krea/2", "http://10.0.0.1"]
)
def test_links_may_begin_with_these(url: str) -> None:
    check_public_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "", "images.example", "ftp://images.example", "https://", "https:///path", "https://a:b@images.example",
        "https://images.example?x", "https://images.example#x", "https://images.example:99999", "https://a b",
        "https://a\n.example", "https://[::1", "https://é.example", "https://a.example:0", "https://*.example",
    ],
)  # fmt: skip
def test_links_cannot_begin_with_those(url: str) -> None:
    with pytest.raises(ArgumentError, match="public_url must be http:// or https://, a host, and a path or none"):
        check_public_url(url)
