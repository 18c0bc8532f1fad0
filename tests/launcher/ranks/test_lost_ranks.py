"""Ranks that were lost: the next start when they are gone."""

from __future__ import annotations

import asyncio
import signal
import threading
from pathlib import Path

import pytest

from engine.errors import LaunchError
from launcher import processes as process
from launcher.client.async_client import AsyncClient
from launcher.messages import rank_messages as messages
from launcher.processes import Child
from launcher.ranks import supervisor
from tests.launcher.fake_ranks import DEADLINE_S, fake_engine, run
from tests.launcher.ranks.losing_ranks import PROMPT, lose


class SlowChild(Child):
    """A process that has been killed, and is gone when `gone` is set."""

    def __init__(self) -> None:
        self.gone = threading.Event()
        self.killed = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def wait(self, timeout_s: float) -> bool:
        return self.gone.wait(timeout_s)

    def on_exit(self, callback: object) -> None:
        pass

    def ask_to_stop(self) -> None:
        pass

    def send_signal(self, number: signal.Signals) -> None:
        if number == signal.SIGKILL:
            self._loop.call_soon_threadsafe(self.killed.set)


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_PATIENCE_S", 0.01)
    monkeypatch.setattr(process, "TERMINATE_S", 0.01)


@pytest.mark.usefixtures("_impatient")
def test_the_next_ranks_start_when_the_lost_ones_are_gone(run_folder: Path) -> None:
    async def test() -> None:
        children = [SlowChild(), SlowChild()]
        held: list[Child] = [*children]
        async with fake_engine(run_folder, tp=2, replace_ranks=True, children=held) as fakes:
            fakes.ranks[0].fail("rank_failed", "rank 0: lost")
            await children[1].killed.wait()
            children[0].gone.set()
            await asyncio.sleep(0.5)  # far longer than killing takes here
            assert fakes.generation == 0
            children[1].gone.set()
            await fakes.has_generation(1)
            assert held == []

    run(test())


@pytest.mark.usefixtures("_impatient")
def test_ranks_that_never_go_are_told_of_and_kept(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervisor, "_GONE_S", 0.2)

    async def test() -> None:
        children = [SlowChild(), SlowChild()]
        children[0].gone.set()
        held: list[Child] = [*children]
        async with fake_engine(run_folder, tp=2, replace_ranks=True, children=held) as fakes:
            await lose(fakes)
            assert held == [children[1]], "it will be stopped again when the server ends"
            (left,) = (record for record in caplog.records if record.getMessage() == "lost ranks have not ended")
            assert left.fields == {"processes": 1, "waited_s": 0.2}  # type: ignore[attr-defined]

    run(test())


def test_a_full_disk_keeps_the_next_ranks_waiting_until_there_is_room(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervisor, "_PAUSE_S", 0.05)
    is_full = True

    def given_up() -> bool:
        return any(record.getMessage() == "ranks given up" for record in caplog.records)

    ranks_address = messages.ranks_address

    def address(folder: str, generation: int) -> str:  # libzmq is told of a missing folder as of a full disk: by bind
        return ranks_address(f"{folder}/gone" if is_full else folder, generation)

    async def test() -> None:
        nonlocal is_full
        async with fake_engine(run_folder, replace_ranks=True) as fakes, AsyncClient(fakes.address) as client:
            monkeypatch.setattr(messages, "ranks_address", address)
            fakes.ranks[0].fail("rank_failed", "rank 0: lost")
            async with asyncio.timeout(DEADLINE_S):
                while (await client.status()).ready or not given_up():
                    await asyncio.sleep(0.02)
            with pytest.raises(LaunchError, match=r"cannot listen on ipc://.*/gone/ranks-1 for ranks: No such file"):
                await client.generate(PROMPT)
            assert "cannot listen on" in str((await client.status()).not_ready)
            is_full = False
            await fakes.has_generation(1)
            async with asyncio.timeout(DEADLINE_S):
                while not (await client.status()).ready:  # until then requests are told why they would wait
                    await asyncio.sleep(0.02)
            assert (await client.generate(PROMPT, seed=1)).seed == 1

    run(test())


def test_a_disk_that_is_full_for_a_moment_costs_nobody_a_request(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_PAUSE_S", 0.05)
    ranks_address, tries = messages.ranks_address, 0

    def address(folder: str, generation: int) -> str:
        nonlocal tries
        tries += 1
        return ranks_address(f"{folder}/gone" if tries < supervisor._STRIKES else folder, generation)

    async def test() -> None:
        async with fake_engine(run_folder, replace_ranks=True) as fakes, AsyncClient(fakes.address) as client:
            monkeypatch.setattr(messages, "ranks_address", address)
            start, heard = fakes.start_ranks, asyncio.get_running_loop().create_future()

            def start_later(generation: int) -> None:
                heard.add_done_callback(lambda _: start(generation))

            monkeypatch.setattr(fakes, "start_ranks", start_later)
            assert (await client.status()).not_ready is None
            fakes.ranks[0].fail("rank_failed", "rank 0: lost")
            call = asyncio.create_task(client.generate(PROMPT, seed=1))
            async with asyncio.timeout(DEADLINE_S):
                while (reason := (await client.status()).not_ready) is None:
                    await asyncio.sleep(0.005)
            assert reason == "lost ranks are being replaced"
            heard.set_result(None)
            assert (await call).seed == 1
            assert tries >= supervisor._STRIKES

    run(test())
