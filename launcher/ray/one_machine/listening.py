"""Tells at which TCP ports processes listen on every interface, and whether clients of one have all that was sent."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from launcher.ray.one_machine.messages import OpenPort

_ESTABLISHED, _LISTENS = "01", "0A"  # states, in the kernel's table of sockets
_TABLES = ("tcp", "tcp6")


def open_ports(processes: Iterable[int]) -> list[OpenPort]:
    """List the ports at which these listen for whoever reaches any address of this machine."""
    found: set[OpenPort] = set()
    for process in processes:
        with suppress(OSError):  # it has ended
            sockets = _sockets(process)
            name = process_name(process)
            for table in _TABLES:
                for port, inode in _everywhere(_rows(f"/proc/{process}/net/{table}")):
                    if inode in sockets:
                        found.add(OpenPort(port, name))
    return sorted(found)


def has_unsent(port: int) -> bool:
    """Whether something that was written to a connection of this port has not reached the other side."""
    for table in _TABLES:
        for fields in _rows(f"/proc/self/net/{table}"):
            here, waits = int(fields[1].rpartition(":")[2], 16), int(fields[4].partition(":")[0], 16)
            if here == port and fields[3] == _ESTABLISHED and waits:
                return True
    return False


def process_name(process: int) -> str:
    """What a process calls itself, as Ray's do by their command line, of which the kernel keeps 15 bytes, without the
    method that it runs just now; or the script that it runs. Raises `OSError` for one that has ended."""
    short = Path(f"/proc/{process}/comm").read_text(errors="replace").strip()
    command, *words = Path(f"/proc/{process}/cmdline").read_text(errors="replace").split("\0")
    called = command.strip().partition(" ")[0]
    if short and called.startswith(short):
        return called.partition(".")[0]
    return next((os.path.basename(word) for word in words[:2] if word.endswith(".py")), short)


def _sockets(process: int) -> set[str]:
    """The inodes of the sockets that a process has open."""
    found = set()
    for number in os.listdir(folder := f"/proc/{process}/fd"):
        with suppress(OSError):  # it was closed meanwhile
            kind, _, inode = os.readlink(f"{folder}/{number}").partition(":")
            if kind == "socket":
                found.add(inode.strip("[]"))
    return found


def _rows(table: str) -> list[list[str]]:
    """The rows of a table of the kernel's sockets; none where there is no such kind."""
    with suppress(FileNotFoundError):
        return [line.split() for line in Path(table).read_text().splitlines()[1:]]
    return []


def _everywhere(rows: Iterable[list[str]]) -> list[tuple[int, str]]:
    """Ports and inodes of the sockets that listen on no address in particular."""
    found = []
    for fields in rows:
        address, _, port = fields[1].rpartition(":")
        if fields[3] == _LISTENS and not address.strip("0"):
            found.append((int(port, 16), fields[9]))
    return found
