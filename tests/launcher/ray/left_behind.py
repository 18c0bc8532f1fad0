"""The processes of this network and what they listen on: those of Ray hide their environments, and so their marks."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import psutil

from tests.launcher.processes import wait_until

_LISTENS = "0A"  # a state, in the kernel's table of sockets
MARK = "KREA2_TEST_MARK"


class Listening(NamedTuple):
    """A TCP socket that listens. address: in hexadecimal digits, as the kernel has it. command: of its process."""

    address: str
    port: int
    command: list[str]

    @property
    def is_open(self) -> bool:
        """Whether it listens on more than the loopback."""
        return self.address not in ("0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F")


def processes_here() -> list[psutil.Process]:
    """All that run in this network, but this one and what it comes from."""
    network = os.stat("/proc/self/ns/net").st_ino
    known = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        with suppress(OSError, psutil.NoSuchProcess):
            is_here = os.stat(f"/proc/{process.pid}/ns/net").st_ino == network
            if is_here and process.pid not in known and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def listening(processes: list[psutil.Process]) -> list[Listening]:
    """The sockets at which these listen."""
    owners: dict[str, psutil.Process] = {}
    for process in processes:
        with suppress(OSError):
            for number in os.listdir(folder := f"/proc/{process.pid}/fd"):
                with suppress(OSError):
                    kind, _, inode = os.readlink(f"{folder}/{number}").partition(":")
                    if kind == "socket":
                        owners[inode.strip("[]")] = process
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            address, _, port = fields[1].rpartition(":")
            if fields[3] == _LISTENS and fields[9] in owners:
                with suppress(psutil.NoSuchProcess):
                    found.append(Listening(address, int(port, 16), owners[fields[9]].cmdline()))
    return found


def named(processes: list[psutil.Process], *words: str) -> list[psutil.Process]:
    """Those in whose title or command all these words are, the oldest first."""
    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            title = " ".join(process.cmdline())
            if all(word in title for word in words):
                found.append((process.create_time(), process))
    return [process for _, process in sorted(found, key=lambda pair: pair[0])]


@dataclass
class Before:
    """What there was before a command of a cluster was started. mark: of its processes; others' have others."""

    mark: str
    processes: set[int] = field(default_factory=lambda: {process.pid for process in processes_here()})

    def since(self) -> list[psutil.Process]:
        """The processes that were started since, but for those of other servers in this network."""
        return [process for process in processes_here() if process.pid not in self.processes and self._may_be(process)]

    def _may_be(self, process: psutil.Process) -> bool:
        try:
            line = [process, *process.parents()]  # what Ray starts for another server is below its command
        except psutil.NoSuchProcess:
            return False
        for each in line:
            with suppress(psutil.Error, OSError):
                if (mark := each.environ().get(MARK)) is not None:
                    return mark == self.mark
        return True

    def expect_nothing_left(self, folder: Path) -> None:
        """Fail unless all processes go, and with them what they had in this folder."""
        wait_until(lambda: not self.since(), "the end of all processes")
        wait_until(lambda: not [*folder.glob("krea2-*"), *folder.glob("ray*")], "the removal of all folders")
        assert str(folder) not in Path("/proc/net/unix").read_text()
