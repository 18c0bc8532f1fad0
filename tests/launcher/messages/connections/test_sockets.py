"""Addresses."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import zmq
import zmq.asyncio

from engine.errors import ArgumentError, LaunchError
from launcher.messages.connections.sockets import bind, check_address, remove_socket


@pytest.mark.parametrize(
    "address",
    ["tcp://127.0.0.1:5555", "tcp://127.9.9.9:0", "tcp://[::1]:5555", "tcp://localhost:1", "ipc:///run/me/socket"],
)
def test_addresses_of_this_machine_are_allowed(address: str) -> None:
    assert not check_address(address, insecure=False)


@pytest.mark.parametrize(
    "address", ["tcp://0.0.0.0:5555", "tcp://*:5555", "tcp://10.0.0.3:5555", "tcp://eth0:5", "tcp://[::]:5"]
)
def test_addresses_that_others_reach_must_be_asked_for(address: str) -> None:
    with pytest.raises(ArgumentError, match="--insecure"):
        check_address(address, insecure=False)
    assert check_address(address, insecure=True)
    assert not check_address(address, insecure=False, keys=True)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "5555",
        "tcp://127.0.0.1",
        "tcp://127.0.0.1:99999",
        "tcp://:5",
        "ipc://",
        "ipc:///",
        "inproc://x",
        "http://a:1",
    ],
)
def test_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(ArgumentError, match="rpc must be tcp://HOST:PORT"):
        check_address(address, insecure=True)


def test_an_address_in_use_is_a_launch_error_and_stays_its_owner_s(run_folder: Path) -> None:
    async def test() -> None:
        context = zmq.asyncio.Context()
        try:
            for address in ("tcp://127.0.0.1:0", f"ipc://{run_folder}/socket"):
                owner = context.socket(zmq.ROUTER)
                taken = bind(owner, address)
                assert not taken.endswith(":0")
                with pytest.raises(LaunchError, match="cannot listen on"):
                    bind(context.socket(zmq.ROUTER), taken)
            with pytest.raises(LaunchError, match="cannot listen on"):
                bind(context.socket(zmq.ROUTER), "ipc:///no/such/folder/socket")
        finally:
            context.destroy(linger=0)

    asyncio.run(test())


def test_what_lies_at_an_ipc_address_is_not_deleted(tmp_path: Path) -> None:
    file, link, folder = tmp_path / "file", tmp_path / "link", tmp_path / "folder"
    file.write_text("precious")
    link.symlink_to(file)
    folder.mkdir()
    for path in (file, link, folder):
        with pytest.raises(ArgumentError, match="where nothing lies but an old socket"):
            check_address(f"ipc://{path}", insecure=False)
        remove_socket(f"ipc://{path}")
    assert file.read_text() == "precious"
    assert link.is_symlink()
    assert folder.is_dir()
