"""What systemd is told of a server, at a socket of the test's own."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from launcher import service_manager
from launcher.service_manager import ServiceManager
from tests.launcher.processes import PATIENCE_S, Marked

STARTED = ["READY=1\nSTATUS=images can be made"]


@contextmanager
def manager_at(address: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address.replace("@", "\0", 1))
        manager.settimeout(PATIENCE_S)
        yield manager


def test_a_server_says_that_it_is_ready_lives_and_stops(marked: Marked) -> None:
    address = f"{marked.folder}/notify"
    marked.environment |= {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "400000"}
    marked.use_hollow_ranks()
    with manager_at(address) as manager:
        process = marked.start_krea2("serve", "--device", "cpu", "--no-http")

        def said() -> str:
            return manager.recv(1000).decode()

        heard = [said()]
        while "READY=1" not in heard[-1]:
            heard.append(said())
        heard += [said() for _ in range(3)]
        assert {*heard} == {"WATCHDOG=1", *STARTED}
        for child in marked.alive("_rank"):
            assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC"} & child.environ().keys()
        process.send_signal(signal.SIGTERM)
        while (last := said()) == "WATCHDOG=1":
            pass
        assert last == "STOPPING=1\nSTATUS=finishing 0 requests"
        assert process.wait(PATIENCE_S) == 128 + signal.SIGTERM


def test_addresses_may_be_abstract_and_a_manager_that_is_gone_is_no_error(run_folder: Path) -> None:
    addresses = [f"{run_folder}/notify"]
    if sys.platform == "linux":
        addresses.append(f"@krea2-test-{secrets.token_hex(8)}")
    for address in addresses:
        with manager_at(address) as manager:
            ServiceManager.of({"NOTIFY_SOCKET": address}).ready(None)
            assert [manager.recv(1000).decode()] == STARTED
        ServiceManager.of({"NOTIFY_SOCKET": address}).ready("it warms up")


def test_a_state_waits_for_a_manager_with_much_to_read_and_a_sign_of_life_does_not(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_manager, "_TAKE_S", PATIENCE_S)
    address = f"{run_folder}/notify"

    async def give_signs_of_life(server: ServiceManager) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(server.give_signs_of_life(), 0.01)

    with manager_at(address) as manager, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                other.sendto(b"another", address)
        asyncio.run(give_signs_of_life(ServiceManager(address, watchdog_s=60.0)))
        server = threading.Thread(target=ServiceManager(address).ready, args=(None,))
        server.start()
        server.join(0.1)
        while (said := manager.recv(1000).decode()) == "another":
            pass
        assert [said] == STARTED
        server.join()


def test_a_server_that_stops_says_nothing_else_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(ServiceManager, "_send", lambda _, states, **__: said.append(states))
    manager = ServiceManager("/nowhere")
    manager.ready("lost ranks are being replaced")
    manager.stopping("finishing 2 requests")
    manager.ready("it is being stopped")
    assert said == ["STATUS=not ready: lost ranks are being replaced", "STOPPING=1\nSTATUS=finishing 2 requests"]


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"NOTIFY_SOCKET": ""},
        {"NOTIFY_SOCKET": "vsock:2:1234"},
        {"WATCHDOG_USEC": "1000"},
        {"NOTIFY_SOCKET": "@krea2-test", "WATCHDOG_USEC": "0"},
        {"NOTIFY_SOCKET": "@krea2-test", "WATCHDOG_USEC": "soon"},
        {"NOTIFY_SOCKET": "@krea2-test", "WATCHDOG_USEC": "1000", "WATCHDOG_PID": str(os.getppid())},
    ],
)
def test_nobody_gets_signs_of_life_who_does_not_ask_for_them(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(ServiceManager, "_send", lambda _, states, **__: said.append(states))

    async def test() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ServiceManager.of(environment).give_signs_of_life(), 0.02)

    asyncio.run(test())
    assert not said
