"""The network that tests of Ray run in has a loopback alone; where none can be made, it is said why."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.network import own_network

_SCRIPT = """
import socket
from tests.network.own_network import is_own_network
assert is_own_network()
with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
    print("connected")
"""


def test_a_command_runs_in_a_network_of_its_own_or_it_is_told_what_is_needed() -> None:
    command = [sys.executable, "-m", "tests.network.own_network", sys.executable, "-c", _SCRIPT]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if ran.returncode == 0:
        assert ran.stdout == "connected\n"
    else:
        assert ran.stderr.startswith("error: a network namespace is needed"), ran.stderr


def test_where_it_is_not_allowed_the_error_says_what_allows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_flags: int) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(own_network, "_unshare", refuse)
    with pytest.raises(SystemExit) as ended:
        own_network.main(["true"])
    told = str(ended.value)
    assert "cannot be made here: Operation not permitted" in told
    assert "user.max_user_namespaces" in told
