"""What a filter's processes are for: whoever gives up, and starts that fail for want of files."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import weakref
from pathlib import Path

import pytest

from engine.errors import FilterUnavailableError
from launcher.filters.checks import Judged
from launcher.filters.protocol import Picture, Prompt
from tests.launcher.filters.faulty_gate import TIMEOUT_S, gate_of, run, turn, until


def test_a_filter_that_no_file_is_left_for_comes_up_again_when_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def main() -> None:
        async with gate_of(tmp_path) as (gate, _):
            with monkeypatch.context() as patches:
                patches.setattr("launcher.filters.child.socket.socketpair", none_left)
                with pytest.raises(FilterUnavailableError):
                    await gate.check_prompt(Prompt("dies"))
                assert gate.not_ready == "content filter mine is down"
            turn(1.0)
            await until(lambda: gate.not_ready is None)
            assert await gate.check_prompt(Prompt("a cat")) == Judged()

    run(main())


def test_who_gives_up_keeps_nobody_waiting(tmp_path: Path) -> None:
    async def main() -> None:
        async with gate_of(tmp_path, options=",most=1") as (gate, failures):
            check = asyncio.ensure_future(gate.check_prompt(Prompt("sleeps")))
            await until(lambda: bool([*tmp_path.iterdir()]))
            check.cancel()
            other = asyncio.ensure_future(gate.check_prompt(Prompt("a cat")))
            upload = Picture(1, 1, bytes(3), "upload", "a cat")
            held = weakref.ref(upload)
            check = asyncio.ensure_future(gate.check_prompt(Prompt("a cat"), [upload]))
            await asyncio.sleep(0)
            check.cancel()
            del upload
            await asyncio.wait([check])
            del check
            gc.collect()
            assert held() is None  # nor does it keep what it brought
            turn(TIMEOUT_S / 2 + 1)
            assert await other == Judged()
            assert failures == []

    run(main())
