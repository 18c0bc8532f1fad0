"""Which ports are open on every interface, and what was written to a connection and not read."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from launcher.ray.one_machine.listening import has_unsent, open_ports, process_name
from tests.launcher.processes import PATIENCE_S, wait_until

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


def test_what_a_client_has_not_taken_is_unsent_until_it_has_or_is_gone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as client:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"x")
                assert client.recv(1) == b"x"
                wait_until(lambda: not has_unsent(port), "the acknowledgement")
                connection.setblocking(False)
                written = 0
                with suppress(BlockingIOError):
                    while True:
                        written += connection.send(b"x" * 65536)
                assert has_unsent(port)
                while written:
                    written -= len(client.recv(65536))
                wait_until(lambda: not has_unsent(port), "the acknowledgement")


def test_a_process_that_has_ended_has_none() -> None:
    assert open_ports([2**22 + 1]) == []


@pytest.mark.parametrize("method", ["", ".record_routing_stats"])
def test_a_process_is_named_by_all_that_it_calls_itself_but_for_what_it_runs(method: str) -> None:
    name = "ray::ServeReplica:krea2:engine"
    code = (
        f"import socket; open('/proc/self/comm', 'w').write('{name}')\n"  # as setproctitle does: 15 bytes are kept
        "listening = socket.create_server(('', 0)); print('listens', flush=True); input()"
    )
    with subprocess.Popen(
        [name + method, "-c", code], executable=sys.executable, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"listens\n"
            assert [each.process for each in open_ports([process.pid])] == [name]
        finally:
            process.kill()


def test_a_process_is_named_by_the_script_that_it_runs(tmp_path: Path) -> None:
    (tmp_path / "log_monitor.py").write_text("print('runs', flush=True); input()")
    command = [sys.executable, "-u", str(tmp_path / "log_monitor.py"), "--of", "others.py"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"runs\n"
            assert process_name(process.pid) == "log_monitor.py"
        finally:
            process.kill()
