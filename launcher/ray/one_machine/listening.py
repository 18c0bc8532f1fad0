"""Tells at which TCP ports processes listen on every interface."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from launcher.ray.one_machine.messages import OpenPort

_LISTENS = "0A"  # a state, in the kernel's table of sockets


def open_ports(processes: Iterable[int]) -> list[OpenPort]:
    """List the ports at which these listen for whoever reaches any address of this machine."""
    found: set[OpenPort] = set()
    for process in processes:
        with suppress(OSError):  # it has ended
            sockets = _sockets(process)
            name = Path(f"/proc/{process}/comm").read_text(errors="replace").strip()
            for table in ("tcp", "tcp6"):
                for port, inode in _everywhere(Path(f"/proc/{process}/net/{table}")):
                    if inode in sockets:
                        found.add(OpenPort(port, name))
    return sorted(found)


def _sockets(process: int) -> set[str]:
    """The inodes of the sockets that a process has open."""
    found = set()
    for number in os.listdir(folder := f"/proc/{process}/fd"):
        with suppress(OSError):  # it was closed meanwhile
            kind, _, inode = os.readlink(f"{folder}/{number}").partition(":")
            if kind == "socket":
                found.add(inode.strip("[]"))
    return found


def _everywhere(table: Path) -> list[tuple[int, str]]:
    """Ports and inodes of the sockets in a table of the kernel that listen on no address in particular."""
    found = []
    for line in table.read_text().splitlines()[1:]:
        fields = line.split()
        address, _, port = fields[1].rpartition(":")
        if fields[3] == _LISTENS and not address.strip("0"):
            found.append((int(port, 16), fields[9]))
    return found
