"""GPUs that fail under fake ranks: these run on others then, or not at all, and everybody is told why."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from engine.config.engine_config import EngineConfig
from engine.errors import RankError
from launcher.client.async_client import AsyncClient
from launcher.messages.rank_messages import Ready
from launcher.ranks import gpu_watch, nvml
from launcher.ranks.gpu_watch import GpuWatch
from tests.launcher.fake_ranks import DEADLINE_S, FakeRank, Fakes, fake_engine, run
from tests.launcher.processes import PATIENCE_S, wait_until
from tests.launcher.ranks.gpus.fake_nvml import FakeNvml
from tests.launcher.ranks.losing_ranks import PROMPT, lose

UUIDS = ("a", "b", "c")


class Machine:
    """Three GPUs, the ranks that see them as CUDA_VISIBLE_DEVICES says, and what a front-end has logged of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, run_folder: Path) -> None:
        monkeypatch.setattr(nvml, "_WAIT_MS", 20)
        monkeypatch.setattr(gpu_watch, "_LOOK_S", PATIENCE_S)
        self.nvml = FakeNvml(*UUIDS)
        monkeypatch.setitem(sys.modules, "pynvml", self.nvml)
        self._folder, self._caplog = run_folder, caplog
        self.fakes: Fakes | None = None

    @asynccontextmanager
    async def serve(self, **options: Any) -> AsyncIterator[tuple[Fakes, AsyncClient]]:
        machine = self

        class GpuRank(FakeRank):
            def ready(self) -> Ready:
                variables = machine.fakes.variables if machine.fakes is not None else {}
                chosen = variables.get("CUDA_VISIBLE_DEVICES")
                visible = UUIDS if chosen is None else tuple(each.removeprefix("GPU-") for each in chosen.split(","))
                gpu = visible[self.rank % len(visible)]
                return Ready(
                    rank=self.rank,
                    device="cuda:0",
                    gpu=gpu,
                    visible_gpus=visible,
                    memory=self._memory,
                    attention={},
                )

        options = {"replace_ranks": True, "make_rank": GpuRank, "step_timeout_s": 60.0} | options
        async with fake_engine(self._folder, **options) as fakes, AsyncClient(fakes.address) as client:
            self.fakes = fakes
            await self.until(lambda: "nvmlEventSetWait_v2" in self.nvml.calls)
            yield fakes, client

    def logged(self, event: str) -> list[dict[str, Any]]:
        return [vars(record)["fields"] for record in self._caplog.records if record.getMessage() == event]

    async def until(self, happened: Any) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not happened():
                await asyncio.sleep(0.01)

    async def fails(self, index: int, xid: int) -> None:
        """A GPU has an error, of which the ranks die."""
        assert self.fakes is not None
        before = len(self.logged("gpu error"))
        self.nvml.happens(index, xid)
        await self.until(lambda: len(self.logged("gpu error")) > before)
        await lose(self.fakes, "rank 0: CUDA error: uncorrectable ECC error encountered")


def nvml_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "nvml"}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, run_folder: Path) -> Machine:
    return Machine(monkeypatch, caplog, run_folder)


def test_a_gpu_that_fails_twice_is_not_used_any_more_and_another_is(machine: Machine) -> None:
    async def test() -> None:
        async with machine.serve(tp=2) as (fakes, client):
            await machine.fails(1, 95)
            assert fakes.variables == {}, "once may be chance"
            assert (await client.generate(PROMPT, seed=1)).seed == 1
            await machine.fails(1, 95)
            assert fakes.variables == {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-c"}
            assert (await client.generate(PROMPT, seed=2)).seed == 2
            await machine.fails(2, 63)  # the one that has taken its place, for the first time
            assert (await client.generate(PROMPT, seed=3)).seed == 3
            status = await client.status()
            assert status.ready
            assert [text.split(" has failed")[0] for text in status.quarantined] == ["GPU 1 (Fake H200, GPU-b)"]
            metrics = (await client.metrics()).decode()
            assert 'krea2_gpu_xid_errors_total{device="1",xid="95"} 2.0' in metrics
            assert 'krea2_gpu_xid_errors_total{device="2",xid="63"} 1.0' in metrics
            assert 'krea2_device_quarantined{device="1"} 1.0' in metrics
            assert 'krea2_device_quarantined{device="2"}' not in metrics
        gpu = {"device": 1, "name": "Fake H200", "uuid": "GPU-b"}
        meaning = "a memory error that cannot be corrected, in any program"
        assert machine.logged("gpu error")[0] == gpu | {"xid": "95", "message": meaning}
        reason = f"GPU 1 (Fake H200, GPU-b) has failed 2 times, the last time with Xid 95: {meaning}"
        assert machine.logged("gpu quarantined") == [gpu | {"message": reason}]

    run(test())
    assert machine.nvml.ended.wait(PATIENCE_S)
    wait_until(lambda: not nvml_threads(), "the end of the thread")


def test_without_a_gpu_left_requests_and_ready_say_which_has_failed(machine: Machine) -> None:
    async def test() -> None:
        async with machine.serve(tp=2) as (fakes, client):
            for index in (0, 2):
                fakes.ranks[0].hold = True
                call = asyncio.create_task(client.generate(PROMPT, seed=index))
                await fakes.ranks[0].has_steps(1)
                machine.nvml.happens(index, 79)  # ranks need not notice: they would wait for long
                if index == 0:
                    await fakes.has_generation(1)
                    assert fakes.variables == {"CUDA_VISIBLE_DEVICES": "GPU-b,GPU-c"}
                    assert (await call).attempt == 2
            with pytest.raises(RankError, match=r"GPU 0 .*fallen off the bus; GPU 2 .*`nvidia-smi -q -i 0,2`"):
                await call
            with pytest.raises(RankError, match=r"GPU 0 .* start the server again"):
                await client.generate(PROMPT)
            status = await client.status()
            assert (status.ready, status.given_up, status.restarts, len(status.quarantined)) == (False, True, 1, 2)
            assert "GPU 0 (Fake H200, GPU-a) has failed with" in str(status.not_ready)
            assert fakes.generation == 1, "no more ranks are started"
            assert machine.logged("ranks given up")[-1]["code"] == "rank_failed"

    run(test())


def test_ranks_that_share_gpus_go_on_with_those_that_are_left(machine: Machine) -> None:
    async def test() -> None:
        async with machine.serve(engine=EngineConfig(tp=4, share_gpu=True)) as (fakes, client):
            for index, left in ((0, "GPU-b,GPU-c"), (1, "GPU-c")):
                machine.nvml.happens(index, 79)
                await fakes.has_generation(fakes.generation + 1)
                assert fakes.variables == {"CUDA_VISIBLE_DEVICES": left}
            assert (await client.generate(PROMPT, seed=4)).seed == 4

    run(test())


def test_errors_that_are_no_fault_of_a_gpu_in_use_only_replace_ranks(machine: Machine) -> None:
    async def test() -> None:
        async with machine.serve(tp=2) as (fakes, client):
            for _ in range(3):
                machine.nvml.happens(2, 79)  # a GPU that others use
                await machine.fails(0, 13)
                assert (await client.generate(PROMPT, seed=5)).seed == 5
            assert fakes.variables == {}
            assert {fields["device"] for fields in machine.logged("gpu error")} == {0}

    run(test())


def test_counters_are_read_when_ranks_are_lost(machine: Machine) -> None:
    async def test() -> None:
        async with machine.serve() as (fakes, client):
            for _ in range(2):
                machine.nvml.counters[0] += 1
                await lose(fakes)
            assert fakes.variables == {"CUDA_VISIBLE_DEVICES": "GPU-b,GPU-c"}
            assert (await client.generate(PROMPT, seed=6)).seed == 6

    run(test())


def test_an_nvml_that_hangs_keeps_nobody_waiting(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_watch, "_LOOK_S", 0.1)
    hangs, released = threading.Event(), threading.Event()

    def hang(*_: object) -> None:
        hangs.set()
        released.wait()

    async def test() -> None:
        async with machine.serve() as (fakes, client):
            machine.nvml.raising["nvmlEventSetWait_v2"] = hang
            await machine.until(hangs.is_set)
            await lose(fakes)
            assert (await client.generate(PROMPT, seed=7)).seed == 7
            del machine.nvml.raising["nvmlEventSetWait_v2"]
            released.set()
            waits = machine.nvml.calls.count("nvmlEventSetWait_v2")
            await machine.until(lambda: machine.nvml.calls.count("nvmlEventSetWait_v2") > waits + 1)
            await machine.fails(0, 79)  # it is heard again
            assert fakes.variables == {"CUDA_VISIBLE_DEVICES": "GPU-b,GPU-c"}

    run(test())


def test_ranks_of_torchrun_are_left_alone(machine: Machine) -> None:
    async def test() -> None:
        async with machine.serve(tp=2, replace_ranks=False) as (fakes, client):
            machine.nvml.happens(0, 79)
            await machine.until(lambda: machine.logged("gpu error"))
            assert (await client.generate(PROMPT, seed=8)).seed == 8
            assert not fakes.served.done()

    run(test())


def test_ranks_without_a_gpu_ask_nvml_nothing(machine: Machine, run_folder: Path) -> None:
    others = nvml_threads()  # of tests before, which have been told to end

    async def test() -> None:
        async with fake_engine(run_folder) as fakes, AsyncClient(fakes.address) as client:
            await client.generate(PROMPT)

    run(test())
    assert machine.nvml.calls == []
    assert nvml_threads() <= others


def test_what_else_a_quarantined_gpu_reports_is_no_matter_to_the_next_ranks(machine: Machine) -> None:
    async def test() -> None:
        failed: list[Exception] = []
        watch = GpuWatch(60.0, on_error=lambda _: None, on_quarantine=lambda *_: None, fail=failed.append)
        watch.uses(Ready(rank=0, device="cuda:0", gpu="a", visible_gpus=UUIDS, memory={}, attention={}))
        machine.nvml.happens(0, 79)
        await machine.until(lambda: failed)
        await watch.ranks_lost(asyncio.get_running_loop().time())
        machine.nvml.happens(0, 79)  # while the next ranks load, and have not said yet what they use
        waits = machine.nvml.calls.count("nvmlEventSetWait_v2")
        await machine.until(lambda: machine.nvml.calls.count("nvmlEventSetWait_v2") > waits + 2)
        watch.close()
        assert len(failed) == 1

    run(test())
