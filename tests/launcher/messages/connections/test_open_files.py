"""How many files a process may have open."""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from engine.errors import ServerError
from launcher import AsyncClient
from launcher.messages.connections.open_files import check_free, limit, raise_limit, room_for_connections

NONE = 3  # files that are open in any case


@contextmanager
def soft_limit(files: int) -> Iterator[int]:
    """A lower limit of this process. Gives the hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    try:
        yield hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_limit_is_raised_as_far_as_the_system_allows_and_as_is_of_use() -> None:
    with soft_limit(256) as hard:
        raise_limit()
        assert limit() == (65536 if hard == resource.RLIM_INFINITY else min(65536, hard))
        raised = limit()
        raise_limit()
        assert limit() == raised


def test_every_process_of_ours_raises_its_limit() -> None:
    code = "import sys; from launcher.__main__ import main; sys.argv[1:] = ['--version']\ntry: main()\nfinally: print()"
    code += "\n" + "import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    script = code.replace("finally: print()", "except SystemExit: pass")
    lowered = ["sh", "-c", 'ulimit -S -n 100 && ulimit -H -n 200 && exec "$@"', "sh"]  # not in a fork with threads
    done = subprocess.run([*lowered, sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "200"


def test_connections_have_what_is_left_beside_a_reserve() -> None:
    with soft_limit(256):
        assert room_for_connections(reserve=56) == 200
        assert room_for_connections(reserve=58, files=3) == 66
        assert room_for_connections(reserve=300) > 0


def test_a_client_without_files_says_so_with_the_limit_and_how_to_raise_it() -> None:
    async def test() -> None:
        client = AsyncClient("tcp://127.0.0.1:1")
        with soft_limit(NONE), pytest.raises(ServerError, match=r"Too many open files.*3 files.*ulimit -n"):
            await client.connect()

    check_free(10, "fine")
    asyncio.run(test())
