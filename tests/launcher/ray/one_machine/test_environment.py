"""What a Ray of our own is told by its environment."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from launcher.processes import forget_secrets
from launcher.ray.one_machine.environment import TOKEN, set_up


def test_it_has_a_token_of_its_own_and_joins_no_other_ray(tmp_path: Path) -> None:
    first = {"RAY_ADDRESS": "10.0.0.1:6379", "RAY_AUTH_TOKEN_PATH": "/x", TOKEN: "known", "PATH": "/bin"}
    second: dict[str, str] = {}
    for environment, name in ((first, "a"), (second, "b")):
        (tmp_path / name).mkdir()
        set_up(environment, str(tmp_path / name))
        assert environment["RAY_AUTH_MODE"] == "token"
        assert environment["RAY_USAGE_STATS_ENABLED"] == "0"
        assert os.path.isdir(environment["TMPDIR"])
    assert len({first[TOKEN], second[TOKEN], "known"}) == 3
    assert not {"RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH"} & {*first}
    assert first["PATH"] == "/bin"


def test_what_engines_start_does_not_inherit_the_token() -> None:
    environment = {TOKEN: "x", "RAY_AUTH_MODE": "token"}
    forget_secrets(environment)
    assert TOKEN not in environment


@pytest.mark.parametrize("header", ["X-Forwarded-For", "X-Forwarded-Proto"])
def test_serves_proxy_believes_no_client_on_this_machine_about_its_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, header: str
) -> None:
    environment: dict[str, str] = {}
    set_up(environment, str(tmp_path))
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", environment["FORWARDED_ALLOW_IPS"])
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope["client"], scope["scheme"]))

    proxy = uvicorn.Config(app, log_config=None, lifespan="off")  # as Serve makes it
    proxy.load()
    value = b"https" if header.endswith("Proto") else b"192.0.2.7"
    scope = {
        "type": "http",
        "client": ("127.0.0.1", 5),
        "scheme": "http",
        "headers": [(header.lower().encode(), value)],
    }
    asyncio.run(proxy.loaded_app(scope, None, None))  # type: ignore[arg-type]
    assert seen == [(("127.0.0.1", 5), "http")]
