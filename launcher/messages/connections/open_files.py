"""How many files a process may have open, each connection being one, and how many of them connections may take."""

from __future__ import annotations

import os
import resource
from contextlib import suppress

from engine.errors import ServerError

_ENOUGH = (65536, 10240)  # the second where the system grants no more, as macOS may
_FEWEST_CONNECTIONS = 4
_STDERR = 2


def hold_standard_files() -> None:
    """Put nothing where stdin, stdout or stderr is closed: a socket there would be lost on the way to a child."""
    while True:
        fd = os.open(os.devnull, os.O_RDWR)  # the first that is free
        if fd > _STDERR:
            return os.close(fd)
        os.set_inheritable(fd, True)


def raise_limit() -> None:
    """Raise this process' soft limit of open files as far as the hard one allows, to 65,536 at most."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for enough in _ENOUGH:
        wanted = enough if hard == resource.RLIM_INFINITY else min(enough, hard)
        if soft == resource.RLIM_INFINITY or soft >= wanted:
            return
        with suppress(ValueError, OSError):  # macOS calls unlimited what it does not grant
            return resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def limit() -> int:
    """Return how many files this process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _ENOUGH[0] if soft == resource.RLIM_INFINITY else soft


def room_for_connections(*, reserve: int, files: int = 1) -> int:
    """Return how many connections of `files` files each this process may hold besides `reserve` other files."""
    return max(_FEWEST_CONNECTIONS, (limit() - reserve) // files)


def check_free(count: int, purpose: str) -> None:
    """Raise `ServerError` unless this process may open `count` more files: zmq would abort it where one is missing."""
    opened: list[int] = []
    try:
        for _ in range(count):
            opened.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        hint = f"this process may have {limit()} files open, which `ulimit -n` raises"
        raise ServerError(f"{purpose}: {os.strerror(error.errno or 0)}: {hint}") from None
    finally:
        for fd in opened:
            os.close(fd)
