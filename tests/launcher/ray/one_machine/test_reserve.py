"""The port of Serve's proxy, which listens there much later."""

from __future__ import annotations

import socket
import sys

import pytest

from engine.errors import LaunchError
from launcher.ray.one_machine.command import reserve

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="of Linux")


def test_it_is_kept_from_others_and_serves_proxy_may_listen_there() -> None:
    with reserve("127.0.0.1", 0) as taken:
        assert taken.url == f"http://127.0.0.1:{taken.port}"
        with pytest.raises(OSError, match="in use"):
            socket.create_server(("127.0.0.1", taken.port)).close()
        for _ in range(2):  # also when it is started again
            with socket.socket() as proxy:
                proxy.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                proxy.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                proxy.bind(("127.0.0.1", taken.port))
                proxy.listen()
                with socket.create_connection(("127.0.0.1", taken.port), timeout=60):
                    proxy.accept()[0].close()


def test_one_that_is_taken_is_refused_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        refused = pytest.raises(LaunchError, match=f"cannot listen on 127.0.0.1:{port}: .*choose another --port")
        with refused, reserve("127.0.0.1", port):
            pass
