"""Which URLs a filter may ask."""

from __future__ import annotations

import pytest

from engine.errors import ArgumentError
from launcher.filters.built_in import chat, moderation
from launcher.filters.urls.address import read_address
from tests.launcher.filters.urls.stand_in import StandIn


@pytest.mark.parametrize(
    ("url", "shown", "target"),
    [
        ("https://api.example.com", "api.example.com:443", "/v1/moderations"),
        ("https://api.example.com/", "api.example.com:443", "/v1/moderations"),
        ("https://api.example.com/openai/v1/", "api.example.com:443", "/openai/v1/moderations"),
        ("https://api.example.com:8443/check?version=2", "api.example.com:8443", "/check?version=2"),
        ("http://127.0.0.1:8000/v1", "127.0.0.1:8000", "/v1/moderations"),
        ("http://localhost:8000/v1/moderations", "localhost:8000", "/v1/moderations"),
        ("http://[::1]/v1", "[::1]:80", "/v1/moderations"),
    ],
)
def test_urls_are_completed_to_the_route(url: str, shown: str, target: str) -> None:
    address = read_address(url, "moderations", insecure=False)
    assert (str(address), address.target) == (shown, target)
    assert address.is_tls == url.startswith("https")


@pytest.mark.parametrize("host", ["guard.example.com", "10.0.0.7", "127.0.0.1.example.com", "[2001:db8::1]"])
def test_other_machines_are_asked_by_https_unless_said_otherwise(host: str) -> None:
    with pytest.raises(ValueError, match="use https, or add insecure=yes"):
        read_address(f"http://{host}/v1", "moderations", insecure=False)
    assert not read_address(f"http://{host}/v1", "moderations", insecure=True).is_tls


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("api.example.com", "must begin with https://HOST"),
        ("file:///etc/passwd", "must begin with https://HOST"),
        ("https:///v1", "must begin with https://HOST"),
        ("https://example.com:99999/", "cannot be read"),
        ("https://[::1", "cannot be read"),
        ("https://me:secret@example.com/", "has a key in it"),
        ("https://example.com/#top", "has a fragment"),
        ("https://example.com/a b", "characters"),
        ("https://example.com/\r\nX: y", "characters"),
        ("https://exämple.com/", "characters"),
    ],
)
def test_what_is_no_url_of_a_service_is_refused(url: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        read_address(url, "moderations", insecure=False)
    with pytest.raises(ArgumentError, match=told) as refused:
        moderation.check_options(url, {})
    assert refused.value.parameter == "filters"
    assert "secret" not in refused.value.message


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"connections": "0"}, "connections= must be a whole number from 1 to 64, got '0'"),
        ({"connections": "many"}, "connections= must be a whole number"),
        ({"insecure": "true"}, "insecure= must be yes or no, got 'true'"),
        ({"model": ""}, "model= must be a name"),
        ({"key-env": "HF_TOKEN"}, "must be another variable than HF_TOKEN, which the engine's processes do not get$"),
        ({"key-env": "sk-123"}, "must be the name of an environment variable that holds the key, not the key$"),
        ({"model": "guard", "style": "other"}, "style= must be llama-guard or shieldgemma, got 'other'"),
        ({"model": "guard", "images": "1"}, "images= must be yes or no"),
        ({"model": "guard", "policies": "sexual"}, "policies= is for style=shieldgemma"),
        ({"model": "guard", "style": "shieldgemma", "policies": "sexual/tax"}, "server or some of sexual/dangerous/"),
        ({"model": "guard", "logprobs": "5"}, "logprobs= must be yes or no"),
        ({"style": "llama-guard"}, "it needs model="),
    ],
)
def test_options_that_are_not_allowed_are_refused(options: dict[str, str], told: str) -> None:
    with pytest.raises(ArgumentError, match=told) as refused:
        chat.check_options("https://example.com", options)
    assert refused.value.message.startswith("filter chat: ")
    assert refused.value.parameter == "filters"


def test_a_url_must_be_given() -> None:
    with pytest.raises(ArgumentError, match="filter moderation: it needs a URL, as moderation:https://HOST/v1/moder"):
        moderation.check_options("", {})


def test_the_key_must_be_in_its_variable(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"key-env": "GUARD_KEY"}
    moderation.check_options("https://example.com", options)  # the key is on the machine where the filter runs
    for value in ("", " ", "sk-a b", "sk-ü", "a\r\nX: b"):
        monkeypatch.setenv("GUARD_KEY", value)
        with pytest.raises(
            ArgumentError, match=r"variable GUARD_KEY, which key-env= names, is not set or holds no key$"
        ):
            moderation.make(stand_in.url, options)
    assert stand_in.requests == []
    monkeypatch.setenv("GUARD_KEY", "sk-123\n")
    moderation.make(stand_in.url, options)
    assert stand_in.requests[0][1]["Authorization"] == "Bearer sk-123"
