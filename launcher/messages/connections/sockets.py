"""ZMQ sockets: which addresses clients may use, listening there, and sending without waiting."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import re
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import zmq
import zmq.asyncio

from engine.errors import ArgumentError, LaunchError

_TCP = re.compile(r"tcp://(?P<host>\[[^\]]+\]|[^:/\[\]]+):(?P<port>[0-9]{1,5})")


def check_address(address: str, *, insecure: bool, keys: bool = False, parameter: str = "rpc") -> bool:
    """Whether anybody on the network can use the address, which only `insecure` allows; with `keys`, nobody can.

    Raises `ArgumentError` about the parameter if it is neither `tcp://HOST:PORT` nor `ipc://PATH`.
    """
    if address.startswith("ipc:///") and len(address) > len("ipc:///"):
        _check_path(address, parameter)
        return False
    match = _TCP.fullmatch(address)
    if match is None or int(match["port"]) > 65535:
        raise ArgumentError.of(parameter, "tcp://HOST:PORT (port 0 for a free one) or ipc:///PATH", address)
    instead = "use a loopback address such as tcp://127.0.0.1:5555, --rpc-keys,"
    return is_open(parameter, address, match["host"].strip("[]"), keys=keys, insecure=insecure, instead=instead)


def is_open(parameter: str, value: str, host: str, *, keys: bool, insecure: bool, instead: str) -> bool:
    """Whether anybody who reaches the host can use the server, which only `insecure` allows.

    Otherwise raises `ArgumentError` about the parameter, which says what to do `instead`.
    """
    if keys or is_loopback(host):
        return False
    if not insecure:
        raise ArgumentError(
            f"{parameter} {value} can be reached from other machines, and nothing asks who they are: {instead} or "
            "--insecure in a network that you trust",
            parameter=parameter,
        )
    return True


def check_address_of_server(address: object) -> None:
    """Raise `ArgumentError` for what is no address of a front-end, with what may have been meant."""
    allowed = "tcp://HOST:PORT or ipc:///PATH"
    if not isinstance(address, str) or not address:
        raise ArgumentError.of("address", allowed, address)
    hint = None
    if address.startswith(("http:", "https:")):
        hint = "the address for HTTP; krea2 serve prints the one for Python after `rpc:`"
    elif "://" not in address and ("/" in address or re.fullmatch(r".+:\d+", address)):
        scheme = "ipc" if "/" in address else "tcp"
        hint = f"did you mean {scheme}://{address}?"
    if hint is not None:
        problem = ArgumentError.of("address", allowed, address)
        raise ArgumentError(f"{problem.message}: {hint}", parameter="address")


def bind(server: zmq.Socket[Any], address: str, *, ipv6: bool = False) -> str:
    """Listen on a checked address; returns it with the port that was taken. Raises `LaunchError` if it is in use.

    ipv6: listen for IPv6, too, where the address stands for all.
    """
    if address.startswith("ipc://"):
        _check_path(address)
        if _someone_listens(address.removeprefix("ipc://")):
            raise LaunchError(f"cannot listen on {address}: another server does")
    server.set(zmq.IPV6, int(ipv6 or "[" in address))
    try:
        server.bind(address)
    except zmq.ZMQError as error:
        hint = "; choose another --rpc, with port 0 for any that is free" if error.errno == errno.EADDRINUSE else ""
        raise LaunchError(f"cannot listen on {address}: {zmq.strerror(error.errno or 0)}{hint}") from None
    return server.get_string(zmq.LAST_ENDPOINT)


def remove_socket(address: str) -> None:
    """Remove the file of an address that was listened on, which zmq leaves."""
    if address.startswith("ipc://"):
        path = Path(address.removeprefix("ipc://"))
        if path.is_socket() and not path.is_symlink():
            path.unlink(missing_ok=True)


def send_now(socket: zmq.asyncio.Socket, frames: list[bytes]) -> bool:
    """Send a message if the socket takes it at once, or drop it. Returns whether it was taken."""
    sent = cast("asyncio.Future[object]", socket.send_multipart(frames, flags=zmq.NOBLOCK))  # done already
    return sent.exception() is None


def _check_path(address: str, parameter: str = "rpc") -> None:
    """Raise `ArgumentError` if something other than a socket lies there: zmq deletes whatever does before it binds."""
    path = Path(address.removeprefix("ipc://"))
    if path.is_symlink() or (path.exists() and not path.is_socket()):
        raise ArgumentError.of(parameter, "a path where nothing lies but an old socket", address)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the host."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _someone_listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, suppress(OSError):
        probe.settimeout(1.0)
        probe.connect(path)
        return True
    return False
