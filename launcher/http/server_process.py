"""The parent's side of the HTTP processes: what they are started with, and where they listen.

The listening socket is the parent's, so the port stays taken while a process is replaced: the next, or another, serves
clients that come meanwhile.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections.abc import Callable
from functools import partial

import msgspec

from engine.errors import ArgumentError, LaunchError
from launcher.http.addresses import can_begin_links, is_host, is_origin
from launcher.http.workers.worker import HttpWorker
from launcher.messages.api_keys import name_keys, read_keys
from launcher.messages.configs import HttpConfig
from launcher.messages.connections.sockets import is_open
from launcher.messages.own_clients import OwnClients
from launcher.processes import Child

_BACKLOG = 512
SEND_S = 60.0  # seconds for a client to read what it was sent


def check_http(config: HttpConfig, *, insecure: bool) -> bool:
    """Whether anybody who reaches the host can use the server, which only `insecure` allows.

    Raises `ArgumentError` for that, and for what an HTTP process cannot be started with.
    """
    for name, values in (("api_key", config.api_keys), ("served_model_name", config.model_names)):
        if not all(values):
            raise ArgumentError(f"{name} must not be empty", parameter=name)
    for host in config.allowed_hosts:
        if not is_host(host):
            raise ArgumentError.of("allowed_host", "a host name or address without port, as images.example", host)
    if config.public_url is not None and not can_begin_links(config.public_url):
        raise ArgumentError.of("public_url", "http:// or https://, a host, and a path or none", config.public_url)
    if config.public_url is not None and config.public_url.rstrip("/").endswith("/v1"):
        raise ArgumentError.of("public_url", "where the page is, without /v1 at its end", config.public_url)
    for origin in config.allowed_origins:
        if origin != "*" and not is_origin(origin):
            allowed = "* or scheme://host[:port] without a path, as https://app.example"
            raise ArgumentError.of("allow_origin", allowed, origin)
    instead = "give an --api-key or --api-key-file, use 127.0.0.1,"
    host, keys = config.host, bool(config.api_keys or config.file_keys)
    return is_open("host", host, host, keys=keys, insecure=insecure, instead=instead)


def listen(host: str, port: int) -> socket.socket:
    """Listen on a port, 0 for a free one. Raises `ArgumentError` for its number, `LaunchError` if that fails."""
    if not 0 <= port <= 65535:
        raise ArgumentError.of("port", "between 0 and 65535", port)
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.create_server(address, family=family, backlog=_BACKLOG)
    except (OSError, UnicodeError) as error:
        number = getattr(error, "errno", None) or 0  # those of name look-up are negative
        reason = os.strerror(number) if number > 0 else str(error)
        if number == errno.EADDRINUSE:
            reason += "; choose another --port, or 0 for any that is free"
        elif number == errno.EACCES:
            reason += "; choose a --port from 1024 on, those below are the system's"
        elif number == errno.EADDRNOTAVAIL or number <= 0:
            reason += "; --host must be a name or an address of this machine, as 127.0.0.1, or 0.0.0.0 for all it has"
        raise LaunchError(f"cannot listen on {_shown(host)}:{port}: {reason}") from None
    # Connections inherit it. asyncio does not set it for a socket made like this, and a response of two small packets
    # waits 40 ms for the client's delayed acknowledgement.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # ends connections whose client takes nothing, also once they are closing
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(SEND_S * 1000))
    return listening


class HttpServer:
    """HTTP processes on a socket that listens, `workers` of them, until `ask_to_stop`. `url` is where browsers find it.

    own_clients: what the front-end is to know its processes by.
    """

    def __init__(self, config: HttpConfig, listening: socket.socket, *, workers: int = 1) -> None:
        self._config = msgspec.structs.replace(config, socket_fd=listening.fileno(), created=int(time.time()))
        self._socket = listening
        self._numbers = [None] if workers == 1 else [*range(workers)]
        self._workers: list[HttpWorker] = []
        self._stopping = threading.Event()
        self.own_clients = OwnClients()
        self.url = f"http://{_shown(config.host)}:{listening.getsockname()[1]}"

    def start(self, rpc: str, run_folder: str) -> None:
        """Start the processes; `rpc` is where the front-end listens, or will. Does nothing the second time.

        Raises `LaunchError` if the run folder's disk has no room for what they share.
        """
        if self._workers:
            return
        if len(self._numbers) > 1:
            from launcher.http.workers.metrics import make_files

            make_files(run_folder, len(self._numbers))
        for number in self._numbers:
            config = msgspec.structs.replace(self._config, rpc=rpc, run_folder=run_folder, worker=number)
            self._workers.append(HttpWorker(config, self.own_clients, self._stopping))

    @property
    def key_files(self) -> dict[str, Callable[[], int]]:
        """The file of keys, if there is one, and what reads it again, in any thread, and returns how many it has."""
        file = self._config.api_key_file
        return {} if file is None else {file: partial(self._read_keys, file)}

    @property
    def key_names(self) -> set[str]:
        """The names of all keys."""
        return {key.name for key in name_keys(self._config.api_keys, self._config.file_keys)}

    def _read_keys(self, file: str) -> int:
        keys = read_keys(file)
        self._config = msgspec.structs.replace(self._config, file_keys=keys)
        for worker in self._workers:
            worker.renew_keys(keys)
        return len(keys)

    def ask_to_stop(self) -> list[Child]:
        """Start no process any more. Returns those that run, to be stopped."""
        self._stopping.set()
        children = [child for worker in self._workers for child in worker.child()]
        self._socket.close()
        return children


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
