"""Files that are held for a while."""

from __future__ import annotations

import asyncio

import pytest

from launcher.http.images import HeldFiles
from tests.launcher.fake_ranks import run


def test_a_file_is_there_until_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        loop = asyncio.get_running_loop()
        clock = loop.time
        files = HeldFiles()
        first, second = files.add(b"first", "png"), files.add(b"second", "webp")
        assert first != second
        assert (first[-4:], second[-5:]) == (".png", ".webp")
        assert len(first) > 32
        for later, held in ((3590.0, (b"first", b"second")), (3600.1, (None, None))):
            monkeypatch.setattr(loop, "time", lambda later=later: clock() + later)
            for _ in range(3):  # whatever is due happens meanwhile
                await asyncio.sleep(0)
            assert (files.get(first), files.get(second), files.get("third")) == (*held, None)

    asyncio.run(test())  # without a deadline, which the clock would reach


def test_beyond_the_bound_the_oldest_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        monkeypatch.setattr("launcher.http.images.HELD_BYTES", 10)
        files = HeldFiles()
        names = [files.add(b"1234", "png") for _ in range(3)]
        assert [files.get(name) for name in names] == [None, b"1234", b"1234"]
        large = files.add(b"12345678901", "png")
        assert [files.get(name) for name in (*names, large)] == [None, None, None, b"12345678901"]

    run(test())
