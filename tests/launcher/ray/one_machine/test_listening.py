"""Which ports are open on every interface."""

from __future__ import annotations

import os
import socket
import sys

import pytest

from launcher.ray.one_machine.listening import open_ports

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="of Linux")


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")])
def test_those_that_listen_on_every_interface_are_found_and_others_not(family: int, address: str) -> None:
    own = {"127.0.0.1": socket.AF_INET, address: family}
    sockets = [socket.create_server((host, 0), family=kind) for host, kind in own.items()]
    bound = socket.socket(socket.AF_INET)
    try:
        bound.bind(("0.0.0.0", 0))  # and does not listen
        found = {each.port for each in open_ports([os.getpid()])}
        local, everywhere = (each.getsockname()[1] for each in sockets)
        assert everywhere in found
        assert not {local, bound.getsockname()[1]} & found
        assert all(each.process for each in open_ports([os.getpid()]))
    finally:
        for each in (*sockets, bound):
            each.close()


def test_a_process_that_has_ended_has_none() -> None:
    assert open_ports([2**22 + 1]) == []
