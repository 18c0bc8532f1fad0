"""The parent's side of the HTTP process: it listens, starts the process, and starts it again if it dies.

The listening socket is the parent's, so the port stays taken: the next process serves clients that come meanwhile.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import threading
import time
from contextlib import suppress
from urllib.parse import urlsplit

import msgspec

from engine.errors import ArgumentError, LaunchError
from launcher.logs import log_event
from launcher.messages.configs import HttpConfig
from launcher.messages.own_clients import OwnClients
from launcher.messages.sockets import is_open
from launcher.processes import Child

DEFAULT_PORTS = {"http": ":80", "https": ":443"}
_NAME = re.compile(r"[a-z0-9_]([a-z0-9._-]{0,251}[a-z0-9_])?", re.IGNORECASE)
_BACKLOG = 512
SEND_S = 60.0  # seconds for a client to read what it was sent
_PAUSE_S = 0.1  # before the process is started again, twice as long each time
_LONGEST_PAUSE_S = 10.0
_SETTLED_S = 30.0  # after which a process that dies counts as the first


def check_http(config: HttpConfig, *, insecure: bool) -> bool:
    """Whether anybody who reaches the host can use the server, which only `insecure` allows.

    Raises `ArgumentError` for that, and for what an HTTP process cannot be started with.
    """
    for name, values in (("api_key", config.api_keys), ("served_model_name", config.model_names)):
        if not all(values):
            raise ArgumentError(f"{name} must not be empty", parameter=name)
    for host in config.allowed_hosts:
        if not _is_host(host):
            raise ArgumentError.of("allowed_host", "a host name or address without port, as images.example", host)
    if config.public_url is not None and not _can_begin_links(config.public_url):
        raise ArgumentError.of("public_url", "http:// or https://, a host, and a path or none", config.public_url)
    instead = "give an --api-key, use 127.0.0.1,"
    host, keys = config.host, bool(config.api_keys)
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
        raise LaunchError(f"cannot listen on {_shown(host)}:{port}: {reason}") from None
    # Connections inherit it. asyncio does not set it for a socket made like this, and a response of two small packets
    # waits 40 ms for the client's delayed acknowledgement.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # ends connections whose client takes nothing, also once they are closing
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(SEND_S * 1000))
    return listening


class HttpServer:
    """An HTTP process on a socket that listens, until `ask_to_stop`. `url` is where browsers find it.

    own_clients: what the front-end is to know its processes by.
    """

    def __init__(self, config: HttpConfig, listening: socket.socket) -> None:
        self._config = msgspec.structs.replace(config, socket_fd=listening.fileno())
        self._socket = listening
        self._child: Child | None = None
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self.own_clients = OwnClients()
        self.url = f"http://{_shown(config.host)}:{listening.getsockname()[1]}"

    def start(self, rpc: str) -> None:
        """Start the process; `rpc` is where the front-end listens, or will. Does nothing the second time."""
        if self._child is None:
            self._config = msgspec.structs.replace(self._config, rpc=rpc)
            self._start(_PAUSE_S)

    def ask_to_stop(self) -> list[Child]:
        """Start no process any more. Returns the one that runs, to be stopped."""
        self._stopping.set()
        with self._lock:
            self._socket.close()
            return [self._child] if self._child is not None else []

    def _start(self, pause_s: float) -> None:
        """Start a process. pause_s: seconds to wait before the next one if this one is lost soon."""
        with self._lock:
            if self._stopping.is_set():
                return
            started = time.monotonic()
            name = self.own_clients.add()
            config = msgspec.structs.replace(self._config, client_name=name)
            fds = (self._socket.fileno(),)
            try:
                self._child = child = Child("_http", config, echo="http", has_log=True, pass_fds=fds)
            except OSError:
                self.own_clients.remove(name)
                raise
        child.on_exit(lambda: self._replace(child, name, started, pause_s))

    def _replace(self, lost: Child, name: bytes, started: float, pause_s: float) -> None:
        """Start another process, in the thread that has seen the last one end."""
        self.own_clients.end(name)
        if self._stopping.is_set():
            return
        if time.monotonic() - started > _SETTLED_S:
            pause_s = _PAUSE_S
        log_event("http process lost", level="error", reason=lost.describe_exit(), restart_in_s=pause_s)
        while not self._stopping.wait(pause_s):
            pause_s = min(_LONGEST_PAUSE_S, 2 * pause_s)
            try:
                return self._start(pause_s)
            except OSError as error:
                reason = str(error)
            log_event("http process cannot be started", level="error", reason=reason, restart_in_s=pause_s)


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _can_begin_links(url: str) -> bool:
    with suppress(ValueError):
        parts = urlsplit(url)
        is_plain = url.isascii() and url.isprintable() and not set(url) & set(" ?#@\\")
        return is_plain and parts.scheme in DEFAULT_PORTS and parts.port != 0 and _is_host(parts.hostname or "")
    return False


def _is_host(name: str) -> bool:
    with suppress(ValueError):
        ipaddress.ip_address(name)
        return True
    return _NAME.fullmatch(name) is not None
