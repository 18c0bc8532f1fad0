"""What an ingress holds on its machine, and for how long."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from engine.errors import ArgumentError
from launcher.http.answers.engine_link import EngineLink
from launcher.ray.ingress import ingress_config, make_ingress
from launcher.ray.one_machine.environment import set_up
from launcher.ray.settled import settle
from launcher.ray.web.ingresses import Ingresses
from launcher.run_folder import RunFolder

ARGS: dict[str, Any] = {"model": "demo", "device": "cpu"}


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("KREA2_API_KEY", raising=False)
    return tmp_path


def _start(**options: Any) -> list[Any]:
    _, beside = make_ingress(settle(ARGS | options), EngineLink("ipc:///nowhere", None), Ingresses("a", None))
    return beside


def test_an_ingress_that_was_killed_leaves_no_pictures_once_another_runs(temporary: Path) -> None:
    killed = RunFolder.make()
    (Path(killed.path) / "images").mkdir()
    assert killed._lock is not None
    os.close(killed._lock)  # as the kernel does

    async def run() -> None:
        running = [asyncio.create_task(work) for work in _start()]
        await asyncio.sleep(0)
        assert [entry.name for entry in temporary.iterdir()] != [Path(killed.path).name]
        assert len(list(temporary.iterdir())) == 1
        for task in running:
            task.cancel()
        await asyncio.wait(running)
        assert not list(temporary.iterdir())

    asyncio.run(run())


@pytest.mark.parametrize(
    ("options", "parameter"), [({"host": "0.0.0.0"}, "host"), ({"images_folder": "/nowhere"}, "images_folder")]
)
def test_an_ingress_that_cannot_start_leaves_nothing(temporary: Path, options: dict[str, Any], parameter: str) -> None:
    with pytest.raises(ArgumentError) as raised:
        _start(**options)
    assert raised.value.parameter == parameter
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("is_told", [False, True])
def test_an_ingress_says_who_can_use_it_unless_the_command_that_started_it_has(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, is_told: bool
) -> None:
    if is_told:
        set_up(environment := {}, str(temporary))
        monkeypatch.setenv("KREA2_ACCESS_TOLD", environment["KREA2_ACCESS_TOLD"])
    said: list[str] = []
    monkeypatch.setattr("launcher.ray.ingress.log_event", lambda event, **_: said.append(event))
    (keys := temporary / "keys").write_text("secret\n")
    keys.chmod(0o644)
    for options in ({"insecure": True}, {"api_key_file": str(keys)}):
        ingress_config(settle(ARGS | {"host": "0.0.0.0"} | options))
    told = ["whoever reaches the proxies can use this cluster", "every user of this machine can read the file of keys"]
    assert said == ([] if is_told else told)
